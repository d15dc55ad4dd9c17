"""Responses of pictures while units of a layer are silenced, scaled or set to other values."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor

from mti_lightning.backbone import Backbone, Layer
from mti_lightning.features.bound import BoundFeature


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
    found = []
    for pictures in batches:
        activations = backbone.run(pictures, [layer])[layer]
        rows = []
        for intervention in interventions:
            with _changing(backbone, layer, intervention, mean, donors):
                tapped = backbone.run_behind(layer, activations, [feature.layer], pictures)
            rows.append(feature(tapped[feature.layer]).float().cpu())
        found.append(torch.stack(rows))
    return torch.cat(found, 1)


def _changing(
    backbone: Backbone, layer: Layer, intervention: Intervention, mean: Tensor, donors: Tensor
) -> AbstractContextManager[Any]:
    units, to = intervention.units, intervention.to
    if not units:
        return nullcontext()
    if to == "mean":
        return backbone.replaced(layer, units, mean[list(units)])
    if to == "resampled":
        return backbone.replaced(layer, units, donors)
    return backbone.scaled(layer, units, float(to))
