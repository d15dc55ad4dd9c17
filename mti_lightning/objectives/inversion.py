"""Inversions: what in a source picture excites a feature, and what inhibits it."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from mti_lightning.attribution import signs
from mti_lightning.attribution.checks import check_method, check_path
from mti_lightning.backbone import Layer
from mti_lightning.errors import InputError, RenderError, check_range
from mti_lightning.features.bound import FeatureGroup
from mti_lightning.features.window import Window
from mti_lightning.images.boxes import cut
from mti_lightning.images.parameters import ImageParameters, Pyramid
from mti_lightning.images.seeds import derive_seed
from mti_lightning.objectives.base import Objective
from mti_lightning.objectives.chunk import Entry, ImageChunk
from mti_lightning.objectives.metrics import LEAST_COSINE, listed
from mti_lightning.objectives.turns import Turn

Target = tuple[Tensor, Tensor]  # T, of a layer's shape, and its support mask
_LEAST_REACHED = 1e-6


class Inversion(Objective):
    """Images whose activations match T⁺ or T⁻ of a source picture.

    Maximises ⟨z, T⟩/‖T‖ · max(cos(z, T), 0.1)^p over the support mask, where the source's |A| is
    more than 1% of its maximum; z are the image's activations at the attribution layer. Of several
    layers it is the geometric mean.

    Args:
        power: p, mostly from 1 to 4: how strongly features that are not in the target are kept
            quiet; at 0 not at all.
        coherent: Take T⁺ only from positions that excite on the whole, T⁻ only from those that
            inhibit, at the scale of the tension measure; False for the authors' way, every
            position.
        also: Earlier layers to be matched as well, each by its own attribution, such as the two
            stages before; every picture is then computed whole.
    """

    needs_sources = True
    decisive: ClassVar[tuple[str, ...]] = ("power", "coherent", "also")
    noise = 0.01

    def __init__(
        self,
        *args: Any,
        power: float = 4.0,
        coherent: bool = True,
        also: Sequence[str] = (),
        optimizer: OptimizerCallable = lambda parameters: torch.optim.Adam(
            parameters, lr=0.2, fused=True
        ),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, optimizer=optimizer, **kwargs)
        check_range(0, power=power)
        self.power, self.coherent = power, coherent
        self.also = [*also]
        self.layers = [self.layer, *(Layer.parse(name) for name in also)]
        if len({*self.layers}) < len(self.layers):
            raise InputError(f"also: name each layer once, and not {self.layer} itself")
        for layer in self.layers[1:]:
            for group in FeatureGroup.of(self.bound_features):
                check_path(self.backbone, group.bound_features[0], layer)
            check_method(self.attribution, self.backbone, layer, self.bound_features[0])
        self.without_target = ""  # says which images cannot be made

    def default_image(self) -> ImageParameters:
        return Pyramid(contrast=self.contrast)

    def windows(self) -> list[Window | None]:
        return [None] * len(self.features) if self.also else super().windows()

    def target(self, chunk: ImageChunk) -> Mapping[Layer, Target]:
        """Return T and its support mask for each layer that is matched."""
        return {layer: self.targets_of(chunk.entries, layer) for layer in self.layers}

    def targets_of(self, entries: Sequence[Entry], layer: Layer | None = None) -> Target:
        """Return T, of a layer's shape, and its support mask, [N, 1, H, W].

        Args:
            entries: The images.
            layer: One of those that are matched; the attribution layer by default.
        """
        layer = layer or self.layer
        pairs, layout = [(e.source or 0, e.feature) for e in entries], self.backbone.layout(layer)
        attribution, negative, _ = (
            of.to(self.device) for of in self.attribute_sources(pairs, layer)
        )
        targets = torch.cat(
            [
                signs.split_target(
                    part, entry.sign or "+", self.coherent, layout, self.tension.scale
                )
                for part, entry in zip(attribution[:, None], entries, strict=True)
            ]
        )
        # Where an activation is negative, as in a transformer, it has to become so again to have
        # the same effect.
        targets = torch.where(negative, -targets, targets)
        return targets, signs.support_mask(attribution, channel_dim=layout.channel_dim)

    def plan(self) -> list[Entry]:
        """Leave out, with a warning, what has no target; the others do not change by it.

        Raises:
            RenderError: If nothing is left.
        """
        entries = super().plan()
        kept: list[Entry] = []
        for start in range(0, len(entries), self.batch_size):
            part = entries[start : start + self.batch_size]
            targets, support = self.targets_of(part)
            shown = (targets * support).flatten(1).any(1).tolist()
            kept += [entry for entry, shows in zip(part, shown, strict=True) if shows]
        left_out = {*entries} - {*kept}
        if not left_out:
            return entries
        without_target = dict.fromkeys(
            f"{e.sign} of {self.shown[e.feature]} in {self.source_keys[e.source or 0]}"
            for e in entries
            if e in left_out
        )
        self.without_target = (
            f"{len(left_out)} of {len(entries)} images cannot be made, as nothing "
            f"excites (+) or inhibits (-) at layer {self.layer}: {listed([*without_target])}; "
            "try an earlier attribution layer, or coherent: false"
        )
        if not kept:
            raise RenderError(self.without_target)
        rank_zero_warn(self.without_target)
        return kept

    def losses(self, views: Tensor, turn: Turn, progress: float) -> Tensor:
        shown = self.backbone.run(views, [*turn.target])
        reached = torch.stack(
            [self._reached(shown[layer], turn, layer) for layer in turn.target]
        )  # [layers, N]
        if len(reached) == 1:
            return -reached[0]
        # The geometric mean's gradient, where one of them is below 0, too.
        each = reached.detach().clamp(min=_LEAST_REACHED)
        mean = each.log().mean(0).exp()
        losses: Tensor = -(reached * mean / each).mean(0)
        return losses

    def _reached(self, shown: Tensor, turn: Turn, layer: Layer) -> Tensor:
        """Return how far views' activations at a layer match their target, [N]."""
        wanted, support = _within(turn.chunk, turn.target[layer])
        if self.views.count > 1:
            wanted, support = (t.repeat_interleave(self.views.count, 0) for t in (wanted, support))
        shown = shown * support
        dims = tuple(range(1, shown.ndim))
        of_shown, of_wanted = (
            torch.linalg.vector_norm(values, dim=dims).clamp(min=1e-12)
            for values in (shown, wanted)
        )
        dot = (shown * wanted).sum(dims) / of_wanted
        # Below 0 the slope would vanish; noise may start there, where activations have both signs.
        similar = (dot / of_shown).clamp(min=LEAST_COSINE)
        # On a CPU a power of few floats is off by the last bit or not, depending on how many there
        # are. A Mac's GPU has no doubles.
        exact = similar.double() if similar.device.type == "cpu" else similar
        reached: Tensor = dot * (exact**self.power).to(dot)
        return reached

    @torch.no_grad()
    def restart_stuck(self, turn: Turn) -> None:
        """Give images that are as good as nothing a fresh start from noise.

        Where nothing of the target answers to the first noise there is no gradient either, and no
        number of steps would change it: of eight starts of one such picture one stayed at 0.04.
        """
        if self.accentuate:
            return
        chunk = turn.chunk
        seen = chunk.seen(chunk(self.input_size))
        activations = self.backbone.run(seen, [self.layer])[self.layer]
        stuck = (
            (_cosine(activations, chunk, turn.target[self.layer]) < LEAST_COSINE)
            .nonzero()
            .flatten()
        )
        if not len(stuck):
            return
        keys = [derive_seed(chunk.entries[row].key, "renewed") for row in stuck.tolist()]
        for name, values in self.image.start(keys, chunk.grid, None)[0].items():
            parameter = chunk.trained[name]
            parameter[stuck] = values.to(self.device)
            state = self.optimizers().state[parameter]  # type: ignore[union-attr]
            for moment in state.values():
                if isinstance(moment, Tensor) and moment.shape == parameter.shape:
                    moment[stuck] = 0
        chunk.moved[stuck] = 0

    def cosine_to_target(self, activations: Tensor, chunk: ImageChunk) -> Tensor:
        return _cosine(activations, chunk, self.target(chunk)[self.layer])


def _cosine(activations: Tensor, chunk: ImageChunk, target: Target) -> Tensor:
    wanted, support = _within(chunk, target)
    cosine: Tensor = signs.cosine(activations * support, wanted)
    return cosine


def _within(chunk: ImageChunk, target: Target) -> Target:
    """Return what of a target the chunk's window covers."""
    if chunk.window is None:
        return target
    return cut(target[0], chunk.window.map_box), cut(target[1], chunk.window.map_box)


@final
class PositiveInversion(Inversion):
    """+ inversion: what in each source picture excites each feature."""

    signs = ("+",)


@final
class NegativeInversion(Inversion):
    """− inversion: what in each source picture inhibits each feature."""

    signs = ("-",)


@final
class SignedInversion(Inversion):
    """+ and − inversions of each source picture, side by side."""

    signs = ("+", "-")
