"""Images that are optimised together: what they are for, and the parameters they have."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from mti_lightning.attribution.signs import Sign
from mti_lightning.features.bound import BoundFeature
from mti_lightning.features.window import Window
from mti_lightning.images.boxes import Box, cut
from mti_lightning.images.parameters import ImageParameters
from mti_lightning.images.views import whole

Size = tuple[int, int]  # height and width


@dataclass(frozen=True)
class Entry:
    """One image of the bank: what it is made for.

    `key` names its random stream. It is made of what the image is, never of where it stands in the
    bank.
    """

    id: str
    key: int
    feature: int  # index into the objective's features
    objective: str
    seed: int
    sign: Sign | None = None
    source: int | None = None  # index into the objective's sources

    def __str__(self) -> str:
        return f"{self.id} of stream {self.key & 0xFFFF_FFFF:08x}"


@final
class ImageChunk(nn.Module):
    """As many images of the bank as are optimised together.

    A chunk has parameters of its own: a step on one chunk leaves the gradients of the others None,
    and an optimizer with momentum then leaves them alone.
    """

    moved: Tensor  # [N, h, w], Σ over steps of |∂loss/∂pixel|, averaged over channels

    def __init__(
        self,
        entries: Sequence[Entry],
        image: ImageParameters,
        canvas: Size,
        grid: Size,
        sources: Tensor | None,
        window: Window | None = None,
    ) -> None:
        super().__init__()
        self.entries, self.image = tuple(entries), image
        self.canvas, self.grid = canvas, grid  # of finished pictures, and of those optimised
        self.window = window  # the part of a view that all its features depend on
        trained, fixed = image.start([entry.key for entry in entries], grid, sources)
        self.trained = nn.ParameterDict(trained)
        self._fixed = tuple(fixed)
        for name, value in fixed.items():
            self.register_buffer(name, value, persistent=False)
        self.register_buffer("moved", torch.zeros(len(entries), *grid))
        self.faults: Tensor | None = None  # of each image, 0 for none, [N]; not yet looked at

    def forward(self, size: Size | None = None) -> Tensor:
        """Return the pictures, [N, 3, H, W] in 0..1, of their canvas or brought to a size."""
        if size is None:
            return self._decode(self.canvas, None)
        enough = all(own >= wanted for own, wanted in zip(self.grid, size, strict=True))
        return whole(self._decode(self.grid if enough else self.canvas, None), size)

    def optimised(self, box: Box | None = None) -> Tensor:
        """Return the pictures as they are optimised, or a box of each, [N, 3, h, w] in 0..1."""
        return self._decode(self.grid, box)

    def within(self, bound_features: Sequence[BoundFeature]) -> list[BoundFeature]:
        """Return each image's feature, where it is in the window, of an objective's features."""
        different = {entry.feature: bound_features[entry.feature] for entry in self.entries}
        if self.window is not None:
            position = self.window.group.position
            different = {place: feature.moved(position) for place, feature in different.items()}
        return [different[entry.feature] for entry in self.entries]

    def seen(self, pictures: Tensor) -> Tensor:
        """Return what of pictures of the backbone's input size the window covers."""
        return pictures if self.window is None else cut(pictures, self.window.box)

    def saliency(self, size: Size | None = None) -> Tensor:
        """Return how much each pixel was moved, [N, H, W], of the pictures of that size."""
        return whole(self.moved[:, None], size or self.canvas)[:, 0]

    def _decode(self, size: Size, box: Box | None) -> Tensor:
        fixed = {name: self.get_buffer(name) for name in self._fixed}
        with torch.autocast(self.moved.device.type, enabled=False):
            return self.image.decode({**dict(self.trained.items()), **fixed}, size, box)
