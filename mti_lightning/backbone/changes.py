"""Changes of what a layer hands on: some of its channels scaled, or set to other values."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from mti_lightning.backbone.layout import ActivationLayout, Layer
from mti_lightning.errors import InputError


@final
@dataclass(frozen=True)
class Change:
    """What becomes of some channels of a layer before the rest of the network gets them.

    Attributes:
        layer: The layer.
        layout: How its activations lie.
        channels: Which, [k] of them.
        scales: Whether `values` multiply the channels; else they take their place.
        values: One for each of the channels, [k], or the layer's activations of other pictures,
            [M, ...]: row i gets those of picture i mod M.
    """

    layer: Layer
    layout: ActivationLayout
    channels: tuple[int, ...]
    scales: bool
    values: Tensor

    @classmethod
    def of(
        cls,
        layer: Layer,
        layout: ActivationLayout,
        channels: Sequence[int],
        scales: bool,
        values: Tensor | float | Sequence[float],
    ) -> "Change":
        """Check and make one.

        Raises:
            InputError: If a channel does not exist or is named twice, or the values do not fit.
        """
        named = [int(channel) for channel in channels]
        if not all(0 <= channel < layout.channels for channel in named):
            raise InputError(f"channels {named}: {layer} has 0..{layout.channels - 1}")
        if len({*named}) < len(named):
            raise InputError(f"channels {named}: name each once")
        given = torch.as_tensor(values, dtype=torch.float32).detach()
        if given.ndim == 0:
            given = given.expand(len(named))
        whole = not scales and given.shape[1:] == layout.shape and len(given) > 0
        if given.shape != (len(named),) and not whole:
            takes = f"one or [{len(named)}]"
            takes += "" if scales else f", or activations of other pictures, [M, {layout.shape}]"
            raise InputError(f"values of shape {list(given.shape)} for {layer}: give {takes}")
        return cls(layer, layout, tuple(named), scales, given)

    def __call__(self, activations: Tensor) -> Tensor:
        """Return a layer's activations [N, ...], changed; gradients go through what is scaled."""
        dim = self.layout.channel_dim
        where = torch.tensor(self.channels, dtype=torch.long, device=activations.device)
        own, values = activations.index_select(dim, where), self.values.to(activations)
        if values.ndim == 1:
            shape = [1] * own.ndim
            shape[dim] = -1
            values = values.view(shape)
        elif values.shape[1:] != activations.shape[1:]:
            raise InputError(
                f"activations of other pictures are {list(values.shape[1:])} at {self.layer}, where"
                f" {list(activations.shape[1:])} are computed; set the channels to numbers"
            )
        else:
            rows = torch.arange(len(own), device=values.device) % len(values)
            values = values.index_select(dim, where)[rows]
        return activations.index_copy(dim, where, own * values if self.scales else values + 0 * own)

    @property
    def digest(self) -> bytes:
        """What tells it from others."""
        told = f"{self.layer} {self.channels} {self.scales} {list(self.values.shape)}"
        return hashlib.sha256(told.encode() + self.values.cpu().numpy().tobytes()).digest()
