"""Receptive-field windows: the part of a picture, and of a map, that features depend on."""

from dataclasses import dataclass, replace
from typing import final

from torch import Tensor

from mti_lightning.backbone import Backbone, Layer
from mti_lightning.features.bound import FeatureGroup
from mti_lightning.images.boxes import Box, cut


@final
@dataclass(frozen=True)
class Window:
    """The part of a picture that some features at one position depend on.

    Attributes:
        box: Top, left, height and width in pixels.
        map_box: The same in the attribution layer's map: what a picture cut to `box` gives there
            is that part of the whole picture's map, wherever the features depend on it.
        group: The features, their position as it is in a cut picture.
        head: How to get from the map to the features alone; None where that is not found.
    """

    box: Box
    map_box: Box
    group: FeatureGroup
    head: "Head | None" = None

    def of(self, group: FeatureGroup) -> "Window":
        """Return the same for other channels: they depend on the same part."""
        head = self.head and replace(self.head, group=group.moved(self.head.position))
        return replace(self, group=group.moved(self.group.position), head=head)

    def crop(self, pictures: Tensor) -> Tensor:
        """Cut pictures [N, 3, H, W] to the window, [N, 3, h, w]."""
        return cut(pictures, self.box)


@final
@dataclass(frozen=True)
class Head:
    """The part of the attribution layer's map that the features depend on.

    Attributes:
        box: Top, left, height and width in the map of a picture that was cut to the window.
        picture_size: Height and width of pictures for which the layer's map has just that size.
        group: The features, their position as it is for such pictures.
    """

    box: Box
    picture_size: tuple[int, int]
    group: FeatureGroup

    @property
    def position(self) -> tuple[int, ...]:
        """Where the features are read."""
        assert isinstance(self.group.position, tuple)
        return self.group.position


def respond(
    backbone: Backbone, layer: Layer, head: Head, activations: Tensor, blank: float = 0.0
) -> Tensor:
    """Return the features' responses, [N, F], for a part of the map, [N, C, h, w].

    What pictures full of `blank` give before the layer is thrown away; only their size counts.
    """
    pictures = activations.new_full((len(activations), 3, *head.picture_size), blank)
    target = head.group.bound_features[0].layer
    if blank:
        tapped = backbone.run(pictures, [target], insert={layer: activations})
    else:
        tapped = backbone.run_behind(layer, activations, [target], pictures)
    responses: Tensor = head.group(tapped[target])
    return responses
