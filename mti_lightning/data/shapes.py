"""The vetoed shapes as source pictures: their shapes and vetoes are known."""

from typing import cast

import torch

from mti_lightning.backbone import Preprocessing
from mti_lightning.data.base import PictureData
from mti_lightning.data.datasets import Picture, Pictures
from mti_lightning.features.feature import Feature
from mti_lightning.vetoed_shapes.shapes import KINDS
from mti_lightning.vetoed_shapes.world import Contents, Split, VetoedShapes, veto_of


class ResizedShapes(Pictures):
    """The vetoed shapes at another size; the truth of each sample stays with it."""

    def __init__(self, world: VetoedShapes, size: tuple[int, int]) -> None:
        self.world, self.size = world, size
        self.keys = [world.key(index) for index in range(len(world))]

    def __getitem__(self, index: int) -> Picture:
        sample = self.world[index]
        if sample["picture"].shape[1:] != self.size:
            # Whole, whatever the backbone's crop: a shape cut off would make the truth a lie.
            sample["picture"] = torch.nn.functional.interpolate(
                sample["picture"][None], self.size, mode="bilinear", antialias=True
            )[0]  # [3, H, W]
        return cast("Picture", sample)  # and more

    def labels(self, feature: Feature) -> list[str] | None:
        """Return, for a class of the world, whether its shape and its veto are there."""
        kind = feature.channel
        if feature.layer != "fc" or kind is None or not 0 <= kind < len(KINDS):
            return None
        shape, veto = KINDS[kind], KINDS[veto_of(kind)]
        found = {(1, 1): f"{shape} and {veto}", (1, 0): shape, (0, 1): veto, (0, 0): "neither"}
        return [
            found[kind in kinds, veto_of(kind) in kinds]
            for kinds in map(self.world.kinds, range(len(self)))
        ]


class VetoedShapesPictures(PictureData):
    """Pictures of the vetoed shapes, whose shapes and vetoes are known.

    Args:
        size: Number of pictures.
        seed: Seed of the world.
        split: `train`, `validation` or `test`; no picture is in two splits.
        contents: `random`: one to three different shapes. `tense`: shape k = index mod 8 and its
            veto. `overlap`: as `tense`, the two drawn over each other.
        batch_size: Pictures per batch.
        num_workers: Processes that draw pictures; 0 draws them in the main one.

    Raises:
        InputError: If `size` is not positive, `seed` is negative, or `split` or `contents` is none
            of these.
    """

    def __init__(
        self,
        size: int = 16,
        seed: int = 0,
        split: Split = "test",
        contents: Contents = "tense",
        *,
        batch_size: int = 32,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        self.world = VetoedShapes(size, seed, split, contents)

    def _open(self, preprocessing: Preprocessing) -> ResizedShapes:
        return ResizedShapes(self.world, preprocessing.size)
