"""Layers by name, and how the activations of a layer lie."""

import math
from dataclasses import dataclass
from typing import Literal, Self

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


def infer_layout(
    shape: tuple[int, ...],
    picture_size: tuple[int, int],
    prefix_tokens: int = 0,
    channels_last: bool = False,
) -> ActivationLayout:
    """Tell how activations lie from their shape: a map has the aspect of the pictures.

    Args:
        shape: Of one picture's activations: one, two or three dimensions.
        picture_size: Height and width of the pictures that they are of.
        prefix_tokens: How many tokens stand before those of the map, once they are there.
        channels_last: What to take where both readings of a map are possible.
    """
    if len(shape) == 1:
        return ActivationLayout(shape, -1, None)
    if len(shape) == 2:
        for prefix in (prefix_tokens, 0):  # patches have no prefix yet
            if grid := _token_grid(shape[0] - prefix, picture_size):
                return ActivationLayout(shape, -1, grid, prefix)
        return ActivationLayout(shape, -1, None)
    first = _has_aspect(shape[1], shape[2], picture_size)
    last = _has_aspect(shape[0], shape[1], picture_size)
    if last and (not first or channels_last):
        return ActivationLayout(shape, -1, (shape[0], shape[1]))
    return ActivationLayout(shape, 1, (shape[1], shape[2]))


def _has_aspect(rows: int, columns: int, picture_size: tuple[int, int]) -> bool:
    height, width = picture_size
    return abs(rows * width - columns * height) <= max(width, height)  # within one position


def _token_grid(tokens: int, picture_size: tuple[int, int]) -> tuple[int, int] | None:
    height, width = picture_size
    rows = round(math.sqrt(max(tokens, 0) * height / width))
    if rows and tokens % rows == 0 and _has_aspect(rows, tokens // rows, picture_size):
        return rows, tokens // rows
    return None
