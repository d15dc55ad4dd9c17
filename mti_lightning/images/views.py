"""Views: seeded crops and noise against adversarial patterns, resampled once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mti_lightning.errors import InputError, check_range
from mti_lightning.images.boxes import Box
from mti_lightning.images.seeds import generator_at


@final
@dataclass(frozen=True)
class _Axis:
    """An anti-aliased linear resampling of one axis: of each picture a box is brought to a size.

    Attributes:
        start: Of each box, in shares of the source, [N].
        extent: Of each box, in shares of the source, [N].
        source: How many pixels there are.
        target: How many pixels a box becomes.
        seen: Those of the source that are there; all others weigh nothing.
        made: Those of the target that are asked for.
    """

    start: Tensor
    extent: Tensor
    source: int
    target: int
    seen: range
    made: range

    @property
    def _support(self) -> Tensor:
        """How far a pixel reaches, [N, 1, 1]."""
        return (self.extent * self.source / self.target).clamp(min=1)[:, None, None]

    def _weigh(self, pixels: Tensor, centre: Tensor) -> Tensor:
        """Return what some pixels of the source weigh, [N, made, K]."""
        offset = pixels - centre[:, :, None]
        weights = (1 - offset.abs() / self._support).clamp(min=0)
        weights = weights * ((pixels >= self.seen.start) & (pixels < self.seen.stop))
        return weights / weights.sum(2, keepdim=True).clamp(min=1e-12)

    def _centres(self) -> Tensor:
        places = torch.arange(self.made.start, self.made.stop, device=self.start.device)
        share = (places + 0.5) / self.target * self.extent[:, None]
        return (self.start[:, None] + share) * self.source - 0.5

    def matrix(self) -> Tensor:
        """Return the weights of all pixels that are there, [N, made, seen]."""
        pixels = torch.arange(self.seen.start, self.seen.stop, device=self.start.device)
        return self._weigh(pixels, self._centres())

    def rows(self, maps: Tensor) -> Tensor:
        """Resample the rows of maps, [N, C, seen, W], by those few that weigh anything."""
        centre, reach = self._centres(), self._support[:, :, 0]
        first = (centre - reach).floor() + 1
        taps = torch.arange(math.floor(2 * float(reach.max())) + 1)
        pixels = first[:, :, None] + taps  # [N, made, K]
        weights = self._weigh(pixels, centre)
        there = pixels.clamp(self.seen.start, self.seen.stop - 1).long() - self.seen.start
        # The same weights by the pixels of the source: which of the target each goes to.
        step = (self.extent * self.source / self.target)[:, None]
        seen = torch.arange(self.seen.start, self.seen.stop)
        before = ((seen - reach - centre[:, :1]) / step).floor()  # [N, seen]
        more = torch.arange(math.floor(2 * float((reach / step).max())) + 3)
        places = (before[:, :, None] + more).long()  # [N, seen, K']
        at = places.clamp(0, len(self.made) - 1).flatten(1)
        tap = seen[:, None] - first.long().gather(1, at).view_as(places)
        goes = (places >= 0) & (places < len(self.made)) & (tap >= 0) & (tap < len(taps))
        flat = at.view_as(places) * len(taps) + tap.clamp(0, len(taps) - 1)
        back = weights.flatten(1).gather(1, flat.flatten(1)).view_as(places) * goes
        found: Tensor = _Rows.apply(maps, there, weights, at.view_as(places), back)
        return found


class _Rows(torch.autograd.Function):
    """Sums of some rows of maps, whose gradient is such sums, too.

    That of PyTorch's own function adds in an order that depends on what else is in the batch.
    """

    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, there: Tensor, weights: Tensor, places: Tensor, back: Tensor
    ) -> Tensor:
        ctx.save_for_backward(places, back)
        return _sum_rows(maps, there, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        return _sum_rows(gradient, *ctx.saved_tensors), None, None, None, None


def _sum_rows(maps: Tensor, there: Tensor, weights: Tensor) -> Tensor:
    """Return Σ over K of weighted rows of maps [N, C, H, W], [N, C, h, W].

    Args:
        maps: The maps.
        there: Which rows of each picture's, [N, h, K].
        weights: Of these, [N, h, K].
    """
    count, channels, height, width = maps.shape
    planes = torch.arange(count * channels).view(count, channels, 1, 1) * height
    found = nn.functional.embedding_bag(
        (planes + there[:, None]).flatten(0, 2),
        maps.reshape(-1, width),
        per_sample_weights=weights[:, None].expand(-1, channels, -1, -1).flatten(0, 2),
        mode="sum",
    )
    return found.view(count, channels, -1, width)


def resample(
    pictures: Tensor,
    boxes: Tensor,
    size: tuple[int, int],
    part: Box | None = None,
    within: tuple[Box, tuple[int, int]] | None = None,
) -> Tensor:
    """Cut a box out of each picture and bring it to one size, anti-aliased, in one interpolation.

    What lies just outside a box weighs in at its border, as everywhere else.

    Args:
        pictures: [N, C, H, W].
        boxes: Top, left, height and width of each box in shares of the picture, [N, 4].
        size: Height and width of the result.
        part: Top, left, height and width of what is computed of it; by default the whole.
        within: Where `pictures` lie on their canvas, and its height and width, if they are not
            all of it.
    """
    top, left, *size_of_part = part or (0, 0, *size)
    given, canvas = within or ((0, 0, *pictures.shape[2:]), pictures.shape[2:])
    rows, columns = (
        _Axis(
            *(boxes[:, axis], boxes[:, axis + 2], canvas[axis], size[axis]),
            range(given[axis], given[axis] + given[axis + 2]),
            range(first, first + size_of_part[axis]),
        )
        for axis, first in enumerate((top, left))
    )
    if pictures.device.type == "cpu" and pictures.dtype == boxes.dtype:
        # A product with all pixels takes several times as long there.
        return columns.rows(rows.rows(pictures).mT.contiguous()).mT
    # In the boxes' precision: half precision cannot tell places apart.
    by_row, by_column = rows.matrix().to(pictures), columns.matrix().to(pictures)
    # The channels of a picture go through one product: broadcast ones copy the weights for each.
    count, channels, height, _ = pictures.shape
    height_of_part, width = size_of_part
    narrowed = (pictures.flatten(1, 2) @ by_column.mT).view(count, channels, height, width)
    resampled = by_row @ narrowed.transpose(1, 2).flatten(2)  # [N, h, C · w]
    return resampled.view(count, height_of_part, channels, width).transpose(1, 2)  # [N, C, h, w]


def whole(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring whole pictures to one size: the view without crop and noise."""
    if pictures.shape[2:] == size:
        return pictures
    box = torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=pictures.device).expand(len(pictures), 4)
    return resample(pictures, box, size)


@final
class Views:
    """A random box of each picture and noise on it, from the picture's own stream.

    Boxes are the same on all devices. The noise is drawn where the pictures are, as drawing it on
    the CPU takes longer than a GPU's step: the same each time on one kind of device, and other
    numbers with the same spread on another.

    Args:
        count: Views per picture and step.
        box: Smallest and largest side of the box, in shares of the canvas.
        jitter: Standard deviation of the box's centre, in shares of the canvas; the box stays on
            the canvas.
        noise: Standard deviation of the uniform and of the Gaussian noise each, in the unit of
            pictures, 0..1.
    """

    def __init__(
        self,
        count: int = 1,
        box: tuple[float, float] = (0.9, 0.99),
        jitter: float = 0.05,
        noise: float = 0.02,
    ) -> None:
        check_range(1, count=count)
        check_range(0, jitter=jitter, noise=noise)
        if not 0 < box[0] <= box[1] <= 1:
            raise InputError(f"box {list(box)}: give 0 < smallest <= largest <= 1")
        self.count, self.box, self.jitter, self.noise = count, box, jitter, noise

    def covered_box(self, part: Box, size: tuple[int, int], canvas: tuple[int, int]) -> Box:
        """Return the box of the canvas that a part of a view can come from, whatever the stream.

        Args:
            part: Top, left, height and width of the part.
            size: Height and width of a view.
            canvas: Height and width of the canvas.
        """
        ends = []
        for start, length, target, source in zip(part[:2], part[2:], size, canvas, strict=True):
            least, most = self.box
            support = max(most * source / target, 1)
            first = least * start / target * source - support - 1
            last = (1 - least + least * (start + length) / target) * source + support + 1
            ends.append((max(math.floor(first), 0), min(math.ceil(last), source)))
        (top, bottom), (left, right) = ends
        return top, left, bottom - top, right - left

    def __call__(
        self,
        pictures: Tensor,
        keys: Sequence[int],
        step: int,
        size: tuple[int, int],
        part: Box | None = None,
        within: tuple[Box, tuple[int, int]] | None = None,
    ) -> Tensor:
        """Return views, [N · count, 3, h, w], those of one picture next to each other.

        Args:
            pictures: [N, 3, H, W].
            keys: Their random streams.
            step: The step, which with the key decides over box and noise.
            size: Height and width of a view.
            part: Top, left, height and width of what is computed of a view; by default the whole.
            within: Where `pictures` lie on their canvas, and its height and width, if they are
                not all of it.
        """
        count, shape = len(keys) * self.count, part[2:] if part else size
        shares, moves = torch.empty(count, 1), torch.empty(count, 2)
        device = pictures.device
        noise = torch.empty(count, 3, *shape, device=device)
        for index, key in enumerate(keys):
            generator = of_noise = generator_at(key, step)
            if device.type != "cpu":
                of_noise = generator_at(key, step, device)
            for view in range(index * self.count, (index + 1) * self.count):
                torch.rand(1, generator=generator, out=shares[view])
                torch.randn(2, generator=generator, out=moves[view])
                if self.noise:
                    uniform = torch.rand(3, *shape, generator=of_noise, device=device)
                    uniform.sub_(0.5).mul_(12**0.5)
                    torch.randn(3, *shape, generator=of_noise, out=noise[view]).add_(uniform)
        side = self.box[0] + (self.box[1] - self.box[0]) * shares
        corner = ((1 - side) / 2 + self.jitter * moves).clamp(0).minimum(1 - side)
        boxes = torch.cat([corner, side.expand(-1, 2)], 1)
        repeated = pictures.repeat_interleave(self.count, 0) if self.count > 1 else pictures
        views = resample(repeated, boxes.to(device, non_blocking=True), size, part, within)
        return views.add(noise.to(pictures), alpha=self.noise) if self.noise else views
