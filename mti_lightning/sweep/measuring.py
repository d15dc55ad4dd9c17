"""What pictures measure for the features of a sweep: from pictures to numbers, without state."""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, final

import torch
from torch import Tensor

from mti_lightning.attribution.effects import (
    attributed_to_parts,
    effects_of_parts,
    true_signs,
)
from mti_lightning.attribution.gradients import centre, gradients, mean_gradients
from mti_lightning.attribution.methods import (
    Attribution,
    PathGradient,
    attribute,
    load_baseline,
)
from mti_lightning.attribution.tension import Tension
from mti_lightning.backbone import ActivationLayout, Backbone, Layer
from mti_lightning.features.bound import BoundFeature, FeatureGroup
from mti_lightning.features.receptive_field import find_window
from mti_lightning.features.window import Window, respond
from mti_lightning.images.boxes import Box, cut
from mti_lightning.log import log_info
from mti_lightning.superposition.interference import (
    FeatureProfiles,
    interference_index,
    profile_features,
)
from mti_lightning.superposition.rivals import MOST_RIVALS, choose_rivals
from mti_lightning.sweep.measures import OF_PARTS, OF_UNITS, TRUTH, columns_of

_AT_ONCE: Final = 2**25  # numbers of a Jacobian that are computed at once: 128 MiB
_AUTHORS: Final = Tension("l2")


@final
@dataclass(frozen=True)
class Part:
    """Features that are read together, and the part of the pictures that they depend on.

    Attributes:
        group: The features; behind the sweep's own may stand others that may explain them.
        places: Which of the sweep's features they are; of the others there are none.
        window: The part of the pictures; None for the whole.
        has_rivals: Whether the interference index is measured of them.
    """

    group: FeatureGroup
    places: list[int]
    window: Window | None
    has_rivals: bool

    @property
    def names(self) -> list[str]:
        """What all features of the group are called."""
        first = self.group.bound_features[0].feature
        if self.group.directions is not None:
            return [str(bound_feature.feature) for bound_feature in self.group.bound_features]
        return [str(replace(first, channel=channel)) for channel in self.group.channels]

    @property
    def box(self) -> Box | None:
        """The part of the attribution layer's map that is computed; None for all of it."""
        if self.window is None:
            return None
        top, left, *size = self.window.map_box
        if self.window.head is not None:
            inner = self.window.head.box
            top, left, size = top + inner[0], left + inner[1], list(inner[2:])
        return top, left, size[0], size[1]


@dataclass(frozen=True)
class _Slice:
    """Attributions of some features of a part, of all pictures."""

    places: list[int]  # of those that are the sweep's; others come behind
    activations: Tensor  # [N, ...]
    responses: Tensor  # [F, N]
    attribution: Tensor  # [F, N, ...]
    centred: Tensor | None  # [F, N, ...]; None where the method does not tell
    box: Box | None  # the part of the map that all of them are of; None for all of it


@final
@dataclass(frozen=True)
class Measurement:
    """How pictures are measured.

    Attributes:
        backbone: The frozen network.
        layer: The attribution layer.
        method: The attribution method.
        tension: The tension measure.
        parts: The features, those that are read together in one part.
        mean_activation: ā, [C]; without it no centred tension and no interference is measured.
        profiles: What features with rivals look like, by their part's first place.
        units: Whether contributions are measured of each unit.
    """

    backbone: Backbone
    layer: Layer
    method: Attribution
    tension: Tension
    parts: Sequence[Part]
    mean_activation: Tensor | None = None
    profiles: Mapping[int, FeatureProfiles] = field(default_factory=dict)
    units: bool = False

    @property
    def layout(self) -> ActivationLayout:
        """How activations lie at the attribution layer."""
        return self.backbone.layout(self.layer)

    def window(self, place: int) -> Box | None:
        """Return the box in pixels that a feature depends on; None where it is not known."""
        (part,) = (part for part in self.parts if place in part.places)
        return part.window.box if part.window else None

    @torch.inference_mode(mode=False)
    @torch.enable_grad()
    def measure(
        self,
        pictures: Tensor,
        keep: Collection[int] = (),
        without: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
        """Measure pictures for all features.

        Args:
            pictures: [N, 3, H, W] in 0..1.
            keep: The features whose attribution maps are wanted.
            without: Of composites, as `Loaded` has them.
            masks: Of composites, as `Loaded` has them.

        Returns:
            For each of `COLUMNS` a number, [N, F], of composites for each of `TRUTH`, too, for each
            of `OF_PARTS` [N, F, K], and of `units` `OF_UNITS` [N, F, C]; for each of `keep`
            attribution and sign of the activations, [2, N, ...].
        """
        pictures = pictures.clone()  # of inference mode no gradient can be taken
        numbers = self._nothing(pictures, masks)
        maps: dict[int, Tensor] = {}
        for part in self.parts:
            slices = []  # pooled, of features that may explain each other
            for piece in self._attributions(part, pictures):
                if piece.places:
                    for name, values in self._reduce(piece, masks).items():
                        numbers[name][piece.places] = values.float()
                if part.has_rivals and piece.centred is not None:
                    slices.append(self._pool(piece))
                for place, attribution in zip(piece.places, piece.attribution, strict=False):
                    if place in keep:
                        kept = (attribution, piece.activations.sign())
                        maps[place] = torch.stack([self._on_map(piece, values) for values in kept])
            if slices and (profiles := self.profiles.get(part.places[0])):
                activations, attributions = slices[0][0], torch.cat([one[1] for one in slices], 1)
                with torch.autocast(pictures.device.type, enabled=False):
                    index = interference_index(activations, attributions, profiles.to(attributions))
                numbers["interference"][part.places] = index.T[: len(part.places)].float()
        found = {name: values.transpose(0, 1) for name, values in numbers.items()}
        return found | ({} if without is None else self._truth(pictures, without)), maps

    def _nothing(self, pictures: Tensor, masks: Tensor | None) -> dict[str, Tensor]:
        """Return NaN for all that is attributed, [F, N], [F, N, K] or [F, N, C]."""
        shape = (sum(len(part.places) for part in self.parts), len(pictures))
        # Single, whatever precision the network computes in.
        none = torch.full(shape, torch.nan, dtype=torch.float32, device=pictures.device)
        numbers = {name: none.clone() for name in columns_of(0)}
        if masks is not None:
            numbers[OF_PARTS[1]] = none[..., None].repeat(1, 1, masks.shape[1])
        if self.units:
            numbers[OF_UNITS] = none[..., None].repeat(1, 1, self.layout.channels)
        return numbers

    def _truth(self, pictures: Tensor, without: Tensor) -> dict[str, Tensor]:
        """Return what the parts of composites do, and by that true E⁺, E⁻ and tension."""
        places = [place for part in self.parts for place in part.places]
        own = [part.group.bound_features[: len(part.places)] for part in self.parts]
        in_order = sorted(zip(places, itertools.chain(*own), strict=True), key=lambda of: of[0])
        asked = [bound_feature for _, bound_feature in in_order]
        effects = effects_of_parts(self.backbone, pictures, without, asked).float()  # [N, F, K]
        return dict(zip(TRUTH, true_signs(effects), strict=True)) | {OF_PARTS[0]: effects}

    @torch.inference_mode(mode=False)
    @torch.enable_grad()
    def profile(self, part: Part, batches: Iterable[Tensor]) -> FeatureProfiles:
        """Measure what the features of a part with rivals look like.

        Args:
            part: One of `parts`.
            batches: Pictures of a reference set, [N, 3, H, W] in 0..1 each.
        """
        found = []
        for pictures in batches:
            pieces = list(self._attributions(part, pictures.clone()))
            pooled = [self._pool(piece) for piece in pieces]
            responses = torch.cat([piece.responses for piece in pieces]).T
            found.append((pooled[0][0], torch.cat([one[1] for one in pooled], 1), responses))
        activations, attributions, responses = (torch.cat(v) for v in zip(*found, strict=True))
        with torch.autocast(activations.device.type, enabled=False):
            return profile_features(activations, attributions, responses)

    def _attributions(self, part: Part, pictures: Tensor) -> Iterator[_Slice]:
        """Attribute the features of a part, as many at once as memory bears."""
        if not isinstance(self.method, PathGradient):
            for place, bound_feature in zip(part.places, part.group.bound_features, strict=True):
                same = [bound_feature] * len(pictures)
                activations, attribution, response = attribute(
                    self.backbone, pictures, same, self.layer, self.method
                )
                told = activations.float(), response[None].float(), attribution[None].float()
                yield _Slice([place], *told, None, None)
            return
        activations, responses, head = self._respond(part, pictures)
        values, at_once = activations.detach().float(), max(1, _AT_ONCE // activations.numel())
        baseline = load_baseline(self.method, self.layout).to(activations)
        centred = None
        if self.mean_activation is not None:
            centred = centre(values, self.mean_activation, self.layout)
        if (points := self.method.points) == (1.0,):
            each = gradients(responses, activations, at_once)
        else:
            of = (baseline, points, responses.shape[1], at_once)
            each = mean_gradients(head, activations.detach(), *of)
        start = values if self.method.baseline is None else values - baseline.float()
        for features, found in each:
            gradient = found.float()  # [F, N, ...]
            yield _Slice(
                part.places[features],
                values,
                responses.detach().T[features].float(),
                start * gradient,
                None if centred is None else centred * gradient,
                part.box,
            )

    def _respond(
        self, part: Part, pictures: Tensor
    ) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """Return activations [N, ...], as a leaf, from them the part's responses, [N, F], and how.

        They are of the smallest part of the map that the features depend on.
        """
        window, target = part.window, part.group.bound_features[0].layer
        if window is not None and window.head is not None:
            head = partial(respond, self.backbone, self.layer, window.head)
            with torch.no_grad():
                found = self.backbone.run(window.crop(pictures), [self.layer])[self.layer]
            leaf = cut(found, window.head.box).requires_grad_()
            return leaf, head(leaf), head
        shown, group = pictures, part.group
        if window is not None:
            shown, group = window.crop(pictures), window.group

        def behind(activations: Tensor) -> Tensor:
            tapped = self.backbone.run_behind(self.layer, activations, [target], shown)
            return group(tapped[target])

        tapped = self.backbone.run(shown, [self.layer, target], cut=self.layer)
        return tapped[self.layer], group(tapped[target]), behind

    def _reduce(self, piece: _Slice, masks: Tensor | None) -> dict[str, Tensor]:
        """Return what is measured of the sweep's own features, [F, N], [F, N, K] or [F, N, C]."""
        own, of = len(piece.places), (self.layout, piece.box)
        responses, attribution = piece.responses[:own], piece.attribution[:own].flatten(0, 1)
        excited, inhibited = self.tension.split(attribution, *of)  # [F · N]
        found = {
            "excitation": excited,
            "inhibition": inhibited,
            "tension": self.tension(attribution, *of),
            "tension_l2": _AUTHORS(attribution, *of),
        }
        if piece.centred is not None:
            found["tension_centred"] = self.tension(piece.centred[:own].flatten(0, 1), *of)
        if masks is not None:
            shown = self._on_map(piece, attribution)  # [F · N, ...]
            places = masks.repeat(own, 1, 1, 1)
            found[OF_PARTS[1]] = attributed_to_parts(shown, places, self.layout)
        if self.units:
            found[OF_UNITS] = self.layout.pool_sum(attribution)
        shape = responses.shape
        found = {name: values.view(*shape, *values.shape[1:]) for name, values in found.items()}
        return {"response": responses, **found}

    def _pool(self, piece: _Slice) -> tuple[Tensor, Tensor]:
        """Pool activations and centred attributions over positions, [N, C] and [N, F, C]."""
        assert piece.centred is not None
        attributions = self.layout.pool_sum(piece.centred)  # [F, N, C]
        return self.layout.pool_mean(piece.activations), attributions.transpose(0, 1)

    def _on_map(self, piece: _Slice, values: Tensor) -> Tensor:
        """Put values [N, ...] in their place on the whole map; they are 0 elsewhere."""
        if piece.box is None:
            return values
        whole = values.new_zeros(len(values), *self.layout.shape)
        cut(whole, piece.box).copy_(values)
        return whole


def find_parts(
    bound_features: Sequence[BoundFeature],
    backbone: Backbone,
    layer: Layer,
    method: Attribution,
    rivals: int | None,
) -> list[Part]:
    """Group features, and find the part of the pictures that each group depends on.

    Args:
        bound_features: The features of a sweep.
        backbone: The network.
        layer: The attribution layer.
        method: The attribution method; the interference index is measured by gradients alone.
        rivals: How many features of a group may explain each other, as in `Sweep`.
    """
    parts = []
    for group, places in FeatureGroup.of(bound_features).items():
        found = find_window(backbone, layer, group)
        if isinstance(found, str):
            first = group.bound_features[0].shown
            log_info(f"whole pictures are computed for {first}: {found}")
        window = None if isinstance(found, str) else found
        among = _with_rivals(group, rivals) if isinstance(method, PathGradient) else None
        if among is not None and window is not None:
            window = window.of(among)
        parts.append(Part(among or group, places, window, among is not None))
    return parts


def _with_rivals(group: FeatureGroup, count: int | None) -> FeatureGroup | None:
    """Return the features and their rivals; None where no index is measured."""
    if count == 0:
        return None
    channels = group.bound_features[0].layout.channels
    if count is None:
        every = group.directions is None and len(group.channels) == channels
        return group if every and 1 < channels <= MOST_RIVALS else None
    rivals = choose_rivals(group, count)
    return rivals if len(rivals.channels) > 1 else None
