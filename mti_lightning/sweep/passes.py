"""The forward passes of a batch of a sweep: one for all that is measured of it, where that does."""

from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor

from mti_lightning.backbone import Backbone, Layer
from mti_lightning.images.boxes import Box, cut

# The part of pictures that a pass is of, None for the whole, and for each layer that is read
# whether gradients are taken with respect to it.
Reading = tuple[Box | None, dict[Layer, bool]]


@final
class Passes:
    """Passes of some pictures, each made when it is first asked for.

    Args:
        backbone: The frozen network.
        pictures: [N, 3, H, W] in 0..1.
        readings: All that will be read.
    """

    def __init__(self, backbone: Backbone, pictures: Tensor, readings: Iterable[Reading]) -> None:
        self.backbone, self.pictures = backbone, pictures
        self._wanted: dict[Box | None, dict[Layer, bool]] = {}
        self._made: dict[Box | None, dict[Layer, Tensor]] = {}
        for box, layers in readings:
            wanted = self._wanted.setdefault(box, {})
            for layer, is_cut in layers.items():
                wanted[layer] = wanted.get(layer, False) or is_cut

    def shown(self, box: Box | None) -> Tensor:
        """Return a part of the pictures."""
        return self.pictures if box is None else cut(self.pictures, box)

    def tapped(self, box: Box | None) -> dict[Layer, Tensor]:
        """Return what passes through the layers that are read, as `Backbone.run` does."""
        if box not in self._made:
            wanted = self._wanted[box]
            cuts = [layer for layer, is_cut in wanted.items() if is_cut]
            with torch.set_grad_enabled(bool(cuts)):
                self._made[box] = self.backbone.run(self.shown(box), [*wanted], cuts)
        return self._made[box]
