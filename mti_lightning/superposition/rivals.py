"""Rivals: features of one layer that may explain each other's tension, and what each looks like."""

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from mti_lightning.attribution.gradients import centre, mean_gradients
from mti_lightning.attribution.methods import ActGrad, PathGradient, baseline_of
from mti_lightning.backbone import Backbone, Layer
from mti_lightning.features.bound import FeatureGroup
from mti_lightning.images.boxes import Box, cut
from mti_lightning.superposition.interference import FeatureProfiles, interference_index

MOST_RIVALS = 64  # each costs a backward pass


def choose_rivals(group: FeatureGroup, count: int, seed: int = 0) -> FeatureGroup:
    """Return the features of a group, and behind them other channels of their layer, at random.

    A direction's rivals are the group's other directions: channels are another basis.

    Args:
        group: Features of one layer at one position.
        count: How many features there shall be in all, where there are so many.
        seed: Draws the others.
    """
    if group.directions is not None:
        return group
    own = dict.fromkeys(channel for channel in group.channels if channel is not None)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(group.bound_features[0].layout.channels, generator=generator).tolist()
    others = [channel for channel in drawn if channel not in own]
    return group.with_channels([*own, *others[: max(0, count - len(own))]])


@final
@dataclass(frozen=True)
class Rivals:
    """Features that may explain each other, and what they look like in a data set.

    Attributes:
        group: The features.
        layer: The attribution layer.
        mean_activation: ā of its channels, [C].
        box: The part of its map that the features depend on; None for all of it.
        profiles: What each looks like where it is clearly expressed.
        method: By whose gradients they were measured.
    """

    group: FeatureGroup
    layer: Layer
    mean_activation: Tensor
    box: Box | None
    profiles: FeatureProfiles
    method: PathGradient = field(default_factory=ActGrad)

    def index(self, backbone: Backbone, pictures: Tensor) -> Tensor:
        """Return the interference index of pictures [N, 3, H, W] in 0..1, [N, F]."""
        layout, target = backbone.layout(self.layer), self.group.bound_features[0].layer
        with torch.no_grad():
            activations = backbone.run(pictures, [self.layer])[self.layer]

        def head(values: Tensor) -> Tensor:
            return self.group(backbone.run_behind(self.layer, values, [target], pictures)[target])

        baseline = baseline_of(self.method, layout, activations)
        with torch.enable_grad():
            each = mean_gradients(head, activations, baseline, self.method.points, len(self.group))
            gradient = torch.cat([found for _, found in each])
        attributions = centre(activations, self.mean_activation, layout) * gradient
        seen = activations if self.box is None else cut(activations, self.box)
        return interference_index(
            layout.pool_mean(seen),
            layout.pool_sum(attributions).transpose(0, 1),
            self.profiles.to(activations),
        )
