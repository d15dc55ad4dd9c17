"""Layers by name, and how the activations of a layer lie."""

import math
from collections.abc import Container
from dataclasses import dataclass
from typing import Final, Literal, Self

import torch
from torch import Tensor

from mti_lightning.errors import InputError


@dataclass(frozen=True, order=True)
class Layer:
    """One side of a named module.

    Its string form is the module's name, with `/input` behind it for the input side:
    `layer3.0.act2/input` is the value before that activation function. Named by the input of the
    module that applies the function, a value before its activation can be reached in every family,
    also where timm fuses norm and activation (`bn1.act/input`).
    """

    module: str
    side: Literal["output", "input"] = "output"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the string form.

        Raises:
            InputError: If what stands behind the slash is not `input` or `output`.
        """
        module, slash, side = text.partition("/")
        if slash and side not in ("input", "output"):
            raise InputError(
                f"layer {text!r}: {side!r} is no side of a module; "
                f"write {module}/input or {module}/output"
            )
        return cls(module, "input" if side == "input" else "output")

    def __str__(self) -> str:
        return self.module + ("/input" if self.side == "input" else "")


@dataclass(frozen=True)
class ActivationLayout:
    """How activations lie at a layer: [N, C, H, W], [N, H, W, C], tokens [N, T, C] or [N, C].

    `grid` is (height, width) of the positions, None where there are none; the first
    `prefix_tokens` tokens (class token, registers) lie outside it.
    """

    shape: tuple[int, ...]  # without the batch
    channel_dim: int  # of the batched tensor: 1 or -1
    grid: tuple[int, int] | None
    prefix_tokens: int = 0

    @property
    def channels(self) -> int:
        return self.shape[0 if self.channel_dim == 1 else -1]

    @property
    def is_tokens(self) -> bool:
        return len(self.shape) == 2

    def on_grid(self, signed: Tensor) -> Tensor:
        """Return what lies on the grid of a map of one channel, [N, rows, columns].

        Args:
            signed: [N, ...] in this layout, with one channel or without that dimension; tokens off
                the grid, such as a class token, are left out.
        """
        assert self.grid is not None
        return signed.flatten(1)[:, self.off_grid :].reshape(-1, *self.grid)

    @property
    def off_grid(self) -> int:
        """How many tokens stand before those of the grid."""
        return self.prefix_tokens if self.is_tokens else 0

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Names of the dimensions, without the batch."""
        names = {1: (), 2: ("token",), 3: ("row", "column")}[len(self.shape)]
        return ("channel", *names) if self.channel_dim == 1 else (*names, "channel")

    @property
    def position_dims(self) -> tuple[int, ...]:
        """The dimensions of positions, counted from the end: any number may stand before them."""
        dims = range(-len(self.shape), 0)
        return tuple(dims[1:] if self.channel_dim == 1 else dims[:-1])

    def per_channel(self, values: Tensor) -> Tensor:
        """View one value per channel, [C], so that it broadcasts against activations."""
        shape = [1] * (len(self.shape) + 1)
        shape[self.channel_dim] = -1
        return values.view(shape)

    def at(self, activations: Tensor, position: str | tuple[int, ...] | None) -> Tensor:
        """Return the channels at one position, [N, C], or at every position, [N, P, C].

        Args:
            activations: Of the layer, [N, ...], or of a part of its map.
            position: An index into the positions, a text for every position, or None for a layer
                without positions.
        """
        values = activations.movedim(self.channel_dim, -1)  # [N, ..., C]
        if isinstance(position, tuple):
            index: tuple[slice | int, ...] = (slice(None), *position)
            return values[index]  # a single position is read alone
        return values.flatten(1, -2) if position else values

    def pool_mean(self, values: Tensor) -> Tensor:
        """Average values of the layer's shape, [..., *shape], over its positions, [..., C]."""
        return values.mean(self.position_dims) if self.position_dims else values

    def pool_sum(self, values: Tensor) -> Tensor:
        """Sum values of the layer's shape, [..., *shape], over its positions, [..., C]."""
        return values.sum(self.position_dims) if self.position_dims else values


# Shares of a dimension's length. Where it is the one of positions, half of it is moved by.
_MOVES: Final = 0.03
_AWRY: Final = 0.1
_FAR: Final = 0.25


@dataclass(frozen=True)
class Movement:
    """Where values change, along each dimension, when a half of the picture becomes another.

    Attributes:
        shares: For each dimension without the batch where the change is when it is the top, the
            bottom, the left and the right half, [4, n], each of sum 1.
    """

    shares: tuple[Tensor, ...]

    @classmethod
    def of(cls, values: Tensor) -> "Movement | None":
        """Compare the first picture's values with the others', [5, ...]; None if all are equal."""
        change = values[1:].float() - values[:1].float()
        largest = change.abs().max()
        if not largest:
            return None
        change = (change / largest).square_()
        shares = []
        for dim in range(1, change.ndim):
            along = change.sum([d for d in range(1, change.ndim) if d != dim]).cpu().double()
            shares.append(along / along.sum(1, keepdim=True).clamp(min=1e-12))
        return cls(tuple(shares))

    def reshaped(self, grid: tuple[int, int], prefix: int) -> "Movement":
        """Return the first dimension, but for its first places, as two."""
        cells = self.shares[0][:, prefix:].reshape(-1, *grid)
        parts = [cells.sum(2), cells.sum(1)]
        return Movement(tuple(p / p.sum(1, keepdim=True).clamp(min=1e-12) for p in parts))

    def along(self, dim: int) -> tuple[float, float]:
        """Return how far the change moves with the rows, and with the columns, of the picture."""
        count = self.shares[dim].shape[1]
        places = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        top, bottom, left, right = (self.shares[dim] @ places).tolist()
        return bottom - top, right - left


def infer_layout(
    shape: tuple[int, ...],
    picture_size: tuple[int, int],
    movement: Movement | None,
    channels_last: bool | None,
    prefix_tokens: int = 0,
    sequences: Container[int] = (),
) -> ActivationLayout | None:
    """Tell how activations lie: rows and columns move with those of the pictures, channels do not.

    Where a layer sees the whole picture from everywhere, it is told by the module and by the shape:
    a map has the aspect of the pictures.

    Args:
        shape: Of one picture's activations: one, two or three dimensions.
        picture_size: Height and width of the pictures that they are of.
        movement: How they follow the pictures; None where they do not change at all.
        channels_last: What the module says; None where it says nothing.
        prefix_tokens: How many tokens stand before those of the map, once they are there.
        sequences: How many tokens the network has, as far as that is known.

    Returns:
        None where it cannot be told.
    """
    if len(shape) == 1:
        return ActivationLayout(shape, -1, None)
    if len(shape) == 2:
        return _infer_tokens(shape, picture_size, movement, prefix_tokens, sequences)
    readings = [
        ActivationLayout(shape, 1, (shape[1], shape[2])),
        ActivationLayout(shape, -1, (shape[0], shape[1])),
    ]
    for reading in readings:
        if reading.grid == (1, 1):
            return reading  # pooled: nothing moves
    verdicts = [_judge(_map_dims(reading), shape, movement) for reading in readings]
    sure = [reading for reading, verdict in zip(readings, verdicts, strict=True) if verdict]
    if len(sure) == 1:
        return sure[0]
    likely = [
        reading
        for reading, verdict in zip(readings, verdicts, strict=True)
        if verdict is None
        # Of tokens by tokens it is an attention matrix.
        and not (len({*_grid(reading)}) == 1 and _grid(reading)[0] in sequences)
        and _has_aspect(*_grid(reading), picture_size)
        and channels_last in (None, reading.channel_dim == -1)
    ]
    return likely[0] if len(likely) == 1 else None


def _grid(reading: ActivationLayout) -> tuple[int, int]:
    assert reading.grid is not None
    return reading.grid


def _map_dims(reading: ActivationLayout) -> tuple[int, int, int]:
    """Return which dimensions, without the batch, are rows, columns and channels."""
    return (1, 2, 0) if reading.channel_dim == 1 else (0, 1, 2)


def _judge(
    dims: tuple[int, int, int], shape: tuple[int, ...], movement: Movement | None
) -> bool | None:
    """Say whether rows and columns move as those of a map, and channels do not; None: unclear."""
    if movement is None:
        return None
    (down, down_awry), (across_awry, across), channels = (movement.along(dim) for dim in dims)
    right = [m for m, dim in ((down, dims[0]), (across, dims[1])) if shape[dim] > 1]
    twisted, strayed = max(abs(down_awry), abs(across_awry)), max(map(abs, channels))
    if not right:
        return None
    if min(right) >= _MOVES and min(right) > 2 * max(twisted, strayed):
        return True
    lopsided = max(right) >= _FAR and min(right) < _MOVES
    against = lopsided or strayed >= _FAR or (twisted >= _AWRY and twisted > min(right))
    return False if against else None


def _infer_tokens(
    shape: tuple[int, ...],
    picture_size: tuple[int, int],
    movement: Movement | None,
    prefix_tokens: int,
    sequences: Container[int],
) -> ActivationLayout | None:
    """Tell how tokens [T, C] lie; None if these may be channels and units, [C, …]."""
    moved = movement is not None
    if movement is not None and shape[0] > 1:
        down, channels = movement.along(0)[0], max(map(abs, movement.along(1)))
        moved = down >= _MOVES and down > 2 * channels
    if not (shape[0] == 1 or moved or shape[0] in sequences):
        return None
    for prefix in (prefix_tokens, 0):  # patches have no prefix yet
        grid = _token_grid(shape[0] - prefix, picture_size)
        if grid is None:
            continue
        if moved and movement is not None:
            cells = movement.reshaped(grid, prefix)
            (down, down_awry), (across_awry, across) = cells.along(0), cells.along(1)
            if max(abs(down_awry), abs(across_awry)) > max(_AWRY, min(down, across)):
                return ActivationLayout(shape, -1, None)  # in another order
        return ActivationLayout(shape, -1, grid, prefix)
    return ActivationLayout(shape, -1, None)


def _has_aspect(rows: int, columns: int, picture_size: tuple[int, int]) -> bool:
    height, width = picture_size
    return abs(rows * width - columns * height) <= max(width, height)  # within one position


def _token_grid(tokens: int, picture_size: tuple[int, int]) -> tuple[int, int] | None:
    height, width = picture_size
    rows = round(math.sqrt(max(tokens, 0) * height / width))
    if rows and tokens % rows == 0 and _has_aspect(rows, tokens // rows, picture_size):
        return rows, tokens // rows
    return None
