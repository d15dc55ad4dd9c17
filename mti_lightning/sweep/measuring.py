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
    baseline_of,
)
from mti_lightning.attribution.tension import Tension
from mti_lightning.backbone import ActivationLayout, Backbone, Layer
from mti_lightning.features.window import respond
from mti_lightning.images.boxes import Box, cut
from mti_lightning.superposition.interference import (
    FeatureProfiles,
    interference_index,
    profile_features,
)
from mti_lightning.sweep.groups import Part
from mti_lightning.sweep.linear import LinearHead, find_linear_head
from mti_lightning.sweep.measures import OF_PARTS, OF_UNITS, TRUTH, columns_of
from mti_lightning.sweep.passes import Passes, Reading

_AT_ONCE: Final = 2**25  # numbers of a Jacobian that are computed at once: 128 MiB
_AUTHORS: Final = Tension("l2")

Measured = tuple[dict[str, Tensor], dict[int, Tensor]]  # numbers and maps


@dataclass(frozen=True)
class _Slice:
    """Attributions of some features of a part, of all pictures."""

    places: list[int]  # of those that are the sweep's; others come behind
    activations: Tensor  # [N, ...]
    moved: Tensor  # a - b, [N, ...]
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
        linear_of: The digest of the network whose linear heads `parts` hold.
    """

    backbone: Backbone
    layer: Layer
    method: Attribution
    tension: Tension
    parts: Sequence[Part]
    mean_activation: Tensor | None = None
    profiles: Mapping[int, FeatureProfiles] = field(default_factory=dict)
    units: bool = False
    linear_of: str = ""

    @property
    def layout(self) -> ActivationLayout:
        """How activations lie at the attribution layer."""
        return self.backbone.layout(self.layer)

    def window(self, place: int) -> Box | None:
        """Return the box in pixels that a feature depends on; None where it is not known."""
        (part,) = (part for part in self.parts if place in part.places)
        return part.window.box if part.window else None

    def measure(
        self,
        pictures: Tensor,
        keep: Collection[int] = (),
        without: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> Measured:
        """Measure pictures for all features, as `measure_together` does."""
        return measure_together([self], pictures, [keep], without, masks)[0]

    def up_to_date(self) -> "Measurement":
        """Return the same measurement, without linear heads of other weights or other units."""
        has_linear = any(part.linear is not None for part in self.parts)
        if not has_linear or self.backbone.digest() == self.linear_of:
            return self
        return replace(self, parts=[replace(part, linear=None) for part in self.parts])

    def readings(self, parts: Iterable[Part]) -> list[Reading]:
        """Return what is read of pictures for some parts."""
        return [self._reading(part) for part in parts if isinstance(self.method, PathGradient)]

    def _reading(self, part: Part) -> Reading:
        window, target = part.window, part.group.bound_features[0].layer
        box = window.box if window else None
        if part.linear is not None or (window is not None and window.head is not None):
            return box, {self.layer: False}
        return box, {self.layer: True, target: False}

    def measure_by(
        self,
        passes: Passes,
        keep: Collection[int] = (),
        without: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> Measured:
        """Measure the pictures of passes, as `measure_together` does."""
        pictures, parts = passes.pictures, self.parts
        numbers = self._nothing(pictures, masks)
        maps: dict[int, Tensor] = {}
        for part in parts:
            if part.linear is not None and masks is None and self._takes_sums(part):
                of_part, kept = self._measure_linear(part, part.linear, passes, keep)
                _put(numbers, part.places, of_part)
                maps |= kept
                continue
            slices = []  # pooled, of features that may explain each other
            for piece in self._attributions(part, passes):
                if piece.places:
                    _put(numbers, piece.places, self._reduce(piece, masks))
                if part.has_rivals and piece.centred is not None:
                    slices.append(self._pool(piece))
                pairs = zip(piece.places, piece.attribution, strict=False)
                own = [(place, found) for place, found in pairs if place in keep]
                maps |= {p: self._kept(piece.box, piece.moved, found) for p, found in own}
            if slices and (profiles := self.profiles.get(part.places[0])):
                activations, attributions = slices[0][0], torch.cat([one[1] for one in slices], 1)
                with torch.autocast(pictures.device.type, enabled=False):
                    index = interference_index(activations, attributions, profiles.to(attributions))
                _put(numbers, part.places, {"interference": index.T[: len(part.places)]})
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
            passes = Passes(self.backbone, pictures.clone(), self.readings([part]))
            pieces = list(self._attributions(part, passes))
            pooled = [self._pool(piece) for piece in pieces]
            responses = torch.cat([piece.responses for piece in pieces]).T
            found.append((pooled[0][0], torch.cat([one[1] for one in pooled], 1), responses))
        activations, attributions, responses = (torch.cat(v) for v in zip(*found, strict=True))
        with torch.autocast(activations.device.type, enabled=False):
            return profile_features(activations, attributions, responses)

    def _attributions(self, part: Part, passes: Passes) -> Iterator[_Slice]:
        """Attribute the features of a part, as many at once as memory bears."""
        if not isinstance(self.method, PathGradient):
            pictures = passes.pictures
            for place, bound_feature in zip(part.places, part.group.bound_features, strict=True):
                same = [bound_feature] * len(pictures)
                activations, attribution, response = attribute(
                    self.backbone, pictures, same, self.layer, self.method
                )
                values = activations.float()
                moved = values - baseline_of(self.method, self.layout, values)
                told = response[None].float(), attribution[None].float()
                yield _Slice([place], values, moved, *told, None, None)
            return
        head: Callable[[Tensor], Tensor]
        if part.linear is not None:
            activations, head = self._activations(part, passes), part.linear.respond
            responses = head(activations)
        else:
            activations, responses, head = self._respond(part, passes)
        values, at_once = activations.detach().float(), max(1, _AT_ONCE // activations.numel())
        baseline = baseline_of(self.method, self.layout, activations)
        centred = None
        if self.mean_activation is not None:
            centred = centre(values, self.mean_activation, self.layout)
        if part.linear is not None:
            each = part.linear.slices(at_once)
        elif (points := self.method.points) == (1.0,):
            each = gradients(responses, activations, at_once)
        else:
            of = (baseline, points, responses.shape[1], at_once)
            each = mean_gradients(head, activations.detach(), *of)
        moved = values if self.method.baseline is None else values - baseline.float()
        for features, found in each:
            gradient = found.float()  # [F, N, ...]
            yield _Slice(
                part.places[features],
                values,
                moved,
                responses.detach().T[features].float(),
                moved * gradient,
                None if centred is None else centred * gradient,
                part.box,
            )

    def _activations(self, part: Part, passes: Passes) -> Tensor:
        """Return activations [N, ...] of the smallest part of the map that a part depends on."""
        found = passes.tapped(part.window and part.window.box)[self.layer].detach().float()
        head = part.window and part.window.head
        return cut(found, head.box) if head else found

    def _takes_sums(self, part: Part) -> bool:
        """Say whether sums over channels are all that is measured of a part's attributions."""
        whole = self.units or part.has_rivals or not self.layout.position_dims
        return not whole and self.tension.summed == "channels" and self.tension.measure != "l2"

    def _measure_linear(
        self, part: Part, linear: LinearHead, passes: Passes, keep: Collection[int]
    ) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
        """Return numbers, [F, N], and maps that are kept, without attributions of each channel."""
        values, of = self._activations(part, passes), (self.layout, part.box)
        baseline = baseline_of(self.method, self.layout, values)
        with torch.autocast(values.device.type, enabled=False):
            moved = values if self.method.baseline is None else values - baseline
            signed = linear.signed_map(moved).flatten(0, 1)  # [F · N, ...]
            excited, inhibited = self.tension.split(signed, *of)
            found = {
                "excitation": excited,
                "inhibition": inhibited,
                "tension": self.tension(signed, *of),
            }
            if self.mean_activation is not None:
                centred = linear.signed_map(centre(values, self.mean_activation, self.layout))
                found["tension_centred"] = self.tension(centred.flatten(0, 1), *of)
            numbers = {name: column.view(-1, len(values)) for name, column in found.items()}
            numbers["response"] = linear.respond(values).T
            numbers["tension_l2"] = linear.norms(moved)
        rows = {place: row for row, place in enumerate(part.places) if place in keep}
        kept = {p: moved * linear.gradient_of(slice(row, row + 1)) for p, row in rows.items()}
        return numbers, {p: self._kept(part.box, moved, found) for p, found in kept.items()}

    def with_linear_heads(self) -> "Measurement":
        """Return the same measurement, for which heads that are linear have been found."""
        if not isinstance(self.method, PathGradient):
            return self
        parts = [replace(part, linear=self._find_linear(part)) for part in self.parts]
        return replace(self, parts=parts, linear_of=self.backbone.digest())

    @torch.inference_mode(mode=False)
    def _find_linear(self, part: Part) -> LinearHead | None:
        target = part.group.bound_features[0].layer
        has_head = part.window is not None and part.window.head is not None
        if not (has_head or self.backbone.is_only_way(self.layer, (target,))):
            return None  # other pictures would give other responses
        passes = Passes(self.backbone, self.backbone.noise(2), self.readings([part]))
        activations, _, head = self._respond(part, passes)
        at_once = max(1, _AT_ONCE // activations.numel())
        return find_linear_head(head, activations, self.layout.channel_dim, at_once)

    def _respond(
        self, part: Part, passes: Passes
    ) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """Return activations [N, ...], from them the part's responses, [N, F], and how.

        They are of the smallest part of the map that the features depend on.
        """
        window, target = part.window, part.group.bound_features[0].layer
        tapped = passes.tapped(window and window.box)
        if window is not None and window.head is not None:
            head = partial(respond, self.backbone, self.layer, window.head)
            leaf = cut(tapped[self.layer].detach(), window.head.box).requires_grad_()
            return leaf, head(leaf), head
        group = part.group if window is None else window.group
        shown = passes.shown(window and window.box)

        def behind(activations: Tensor) -> Tensor:
            found = self.backbone.run_behind(self.layer, activations, [target], shown)
            return group(found[target])

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
            shown = self._on_map(piece.box, attribution)  # [F · N, ...]
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

    def _kept(self, box: Box | None, moved: Tensor, attribution: Tensor) -> Tensor:
        """Return what is kept: the attribution, and the sign of a - b, [2, N, ...]."""
        return torch.stack([self._on_map(box, v) for v in (attribution, moved.sign())])

    def _on_map(self, box: Box | None, values: Tensor) -> Tensor:
        """Put values [N, ...] in their place on the whole map; they are 0 elsewhere."""
        if box is None:
            return values
        whole = values.new_zeros(len(values), *self.layout.shape)
        cut(whole, box).copy_(values)
        return whole


@torch.inference_mode(mode=False)
@torch.enable_grad()
def measure_together(
    measurements: Sequence[Measurement],
    pictures: Tensor,
    keeps: Sequence[Collection[int]],
    without: Tensor | None = None,
    masks: Tensor | None = None,
) -> list[Measured]:
    """Measure pictures in one way or several, of one network, by the same forward passes.

    Args:
        measurements: The ways.
        pictures: [N, 3, H, W] in 0..1.
        keeps: For each way the features whose attribution maps are wanted.
        without: Of composites, as `Loaded` has them.
        masks: Of composites, as `Loaded` has them.

    Returns:
        For each of `COLUMNS` a number, [N, F], of composites for each of `TRUTH`, too, for each
        of `OF_PARTS` [N, F, K], and of `units` `OF_UNITS` [N, F, C]; for each of `keep`
        attribution and sign of the activations, [2, N, ...].
    """
    backbone, ways = measurements[0].backbone, [way.up_to_date() for way in measurements]
    # Of many features gradients are taken together, and one after the other.
    with backbone.working(), backbone.differentiated_twice(measurements[0].layer):
        readings = [reading for way in ways for reading in way.readings(way.parts)]
        # Cloned, as of inference mode no gradient can be taken.
        passes = Passes(backbone, pictures.clone(), readings)
        return [
            way.measure_by(passes, keep, without, masks)
            for way, keep in zip(ways, keeps, strict=True)
        ]


def _put(numbers: Mapping[str, Tensor], places: list[int], found: Mapping[str, Tensor]) -> None:
    """Put numbers of some features, [F', ...], in their places, without waiting for a device."""
    where = torch.tensor(places).to(numbers["response"].device, non_blocking=True)
    for name, values in found.items():
        numbers[name].index_copy_(0, where, values.float())
