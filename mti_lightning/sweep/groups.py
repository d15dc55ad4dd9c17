"""Features that are read together, and the part of the pictures that they depend on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

from mti_lightning.attribution.methods import Attribution, PathGradient
from mti_lightning.backbone import Backbone, Layer
from mti_lightning.features.bound import BoundFeature, FeatureGroup
from mti_lightning.features.receptive_field import find_window
from mti_lightning.features.window import Window
from mti_lightning.images.boxes import Box
from mti_lightning.log import log_info
from mti_lightning.superposition.rivals import MOST_RIVALS, choose_rivals
from mti_lightning.sweep.linear import LinearHead


@final
@dataclass(frozen=True)
class Part:
    """Features that are read together, and the part of the pictures that they depend on.

    Attributes:
        group: The features; behind the sweep's own may stand others that may explain them.
        places: Which of the sweep's features they are; of the others there are none.
        window: The part of the pictures; None for the whole.
        has_rivals: Whether the interference index is measured of them.
        linear: How responses follow from the attribution layer, where they are linear in it.
    """

    group: FeatureGroup
    places: list[int]
    window: Window | None
    has_rivals: bool
    linear: LinearHead | None = None

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
