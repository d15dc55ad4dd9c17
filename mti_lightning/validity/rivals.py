"""The interference check: features of a layer that may explain each other's tension."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from mti_lightning.attribution.gradients import gradients
from mti_lightning.backbone import Backbone, Layer
from mti_lightning.features.bound import BoundFeature, FeatureGroup
from mti_lightning.superposition.interference import (
    clear_response,
    interference_index,
    profile_features,
)
from mti_lightning.superposition.rivals import MOST_RIVALS, choose_rivals


@final
@dataclass
class RivalGroup:
    """Features of a layer that may explain each other.

    Attributes:
        group: The features.
        columns: Of each of the report's features among them its place there.
        of: How many there are in the layer.
        parts: What `check_rivals` measured, batch by batch.
    """

    group: FeatureGroup
    columns: dict[int, int]
    of: int
    parts: dict[str, list[Tensor]] = field(default_factory=dict)


def find_rivals(bound_features: Sequence[BoundFeature], seed: int) -> list[RivalGroup]:
    """Return which features may explain each other: the report's, and others of their layer.

    A random choice of channels where there are many: those that were asked for are seldom the
    rivals, and without rivals everything looks genuine.
    """
    groups = []
    for group, places in FeatureGroup.of(bound_features).items():
        chosen = choose_rivals(group, MOST_RIVALS, seed)
        columns = {
            place: column if channel is None else chosen.channels.index(channel)
            for column, (place, channel) in enumerate(zip(places, group.channels, strict=True))
        }
        directions = group.directions is not None
        of = len(places) if directions else group.bound_features[0].layout.channels
        if len(columns) > 1 or of > 1:
            groups.append(RivalGroup(chosen, columns, of))
    return groups


def check_rivals(
    backbone: Backbone, pictures: Tensor, group: FeatureGroup, layer: Layer
) -> dict[str, Tensor]:
    """Measure what the interference index needs of features that may explain each other.

    The attribution is a ⊙ ∂r/∂a by whatever method pictures are explained: the index subtracts the
    mean activation, which no other method lets it do.

    Returns:
        Responses [N, F], activations [N, C], a ⊙ ∂r/∂a and ∂r/∂a, [N, F, C], pooled over space.
    """
    target = group.bound_features[0].layer
    tapped = backbone.run(pictures, [layer, target], cut=layer)
    activations, responses = tapped[layer], group(tapped[target])
    layout, seen = backbone.layout(layer), activations.detach()
    found: dict[str, list[Tensor]] = {"attribution": [], "gradient": []}
    for _, gradient in gradients(responses, activations):
        for name, values in (("attribution", seen * gradient), ("gradient", gradient)):
            found[name].append(layout.pool_sum(values)[0])
    return {name: torch.stack(values, 1) for name, values in found.items()} | {
        "activations": layout.pool_mean(seen),
        "responses": responses.detach(),
    }


def interference_of(rivals: Mapping[str, Tensor]) -> Tensor:
    """Return the interference index of all pictures and features, [N, F], from `check_rivals`."""
    activations = rivals["activations"]
    centred = rivals["attribution"] - activations.mean(0) * rivals["gradient"]  # [N, F, C]
    reference = profile_features(activations, centred, rivals["responses"])
    return interference_index(activations, centred, reference)


def interference_by_feature(
    groups: Sequence[RivalGroup],
) -> dict[int, tuple[Tensor, Tensor, tuple[int, int]]]:
    """Return for each feature with rivals what `judge_interference` takes of it.

    The index, [N]; which pictures express the feature, [N]; how many took part, of how many.
    """
    found = {}
    for rivals in groups:
        parts = {name: torch.cat(values) for name, values in rivals.parts.items()}
        index = interference_of(parts)  # [N, F]
        expressed = parts["responses"] > clear_response(parts["responses"])
        for place, column in rivals.columns.items():
            took_part = (index.shape[1], rivals.of)
            found[place] = (index[:, column], expressed[:, column], took_part)
    return found
