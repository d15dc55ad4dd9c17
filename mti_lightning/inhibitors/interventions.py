"""Responses of pictures while units of a layer are silenced, scaled or set to other values."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, final

import torch
from torch import Tensor

from mti_lightning.backbone import Backbone, Layer
from mti_lightning.backbone.changes import Change
from mti_lightning.features.bound import BoundFeature

_AT_ONCE: Final = 2**20  # numbers that go through the rest of the network together


@final
@dataclass(frozen=True)
class Intervention:
    """What becomes of some units.

    Attributes:
        units: Which; none leaves the network as it is.
        to: By what they are multiplied; `mean`: each is set to its mean activation; `resampled`: to
            its activations in another picture.
    """

    units: tuple[int, ...] = ()
    to: float | Literal["mean", "resampled"] = 0.0


@torch.no_grad()
def respond_to(
    backbone: Backbone,
    layer: Layer,
    feature: BoundFeature,
    batches: Iterable[Tensor],
    interventions: Sequence[Intervention],
    mean: Tensor,
    donors: Tensor,
) -> Tensor:
    """Return the feature's responses under each intervention, [I, N].

    Args:
        backbone: The network.
        layer: Whose channels are the units.
        feature: The feature.
        batches: Pictures, [n, 3, H, W] in 0..1 each.
        interventions: What is done.
        mean: The mean activation of each channel, [C].
        donors: Activations of the layer in other pictures, [M, ...], for what is `resampled`.
    """
    layout = backbone.layout(layer)

    def change(intervention: Intervention) -> Change:
        units, to = intervention.units, intervention.to
        if to == "mean":
            return Change.of(layer, layout, units, False, mean[list(units)])
        if to == "resampled":
            return Change.of(layer, layout, units, False, donors)
        return Change.of(layer, layout, units, True, float(to))

    changes, found = [change(intervention) for intervention in interventions], []
    for pictures in batches:
        activations = backbone.run(pictures, [layer])[layer]
        at_once = max(1, _AT_ONCE // activations.numel())
        rows = [torch.empty(0, len(activations))]
        for start in range(0, len(changes), at_once):
            some = [change(activations) for change in changes[start : start + at_once]]
            tapped = backbone.run_behind(layer, torch.cat(some), [feature.layer], pictures)
            rows.append(feature(tapped[feature.layer]).float().cpu().view(len(some), -1))
        found.append(torch.cat(rows))
    return torch.cat([torch.empty(len(changes), 0), *found], 1)
