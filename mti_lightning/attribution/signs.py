"""Signs: what excites, what inhibits, and where. Pure functions on tensors.

Attributions have the shape of the activations, with the batch first; `channel_dim` says where the
channels are. Values are in units of the response.
"""

from functools import cache
from typing import Literal

import torch
from torch import Tensor

from mti_lightning.backbone import ActivationLayout
from mti_lightning.images.boxes import Box

Sign = Literal["+", "-"]


def signed_map(attribution: Tensor, channel_dim: int = 1) -> Tensor:
    """Sum over channels: how much each position excites (> 0) or inhibits, [N, 1, H, W]."""
    return attribution.sum(channel_dim, keepdim=True)


def at_scale(
    signed: Tensor, scale: float, layout: ActivationLayout, box: Box | None = None
) -> Tensor:
    """Smooth a signed map to the scale of things; its sum stays.

    Neighbouring positions of one thing have both signs at an early layer. What is split at the
    scale of a position is texture, not what excites and what inhibits.

    Args:
        signed: [N, 1, h, w] or as the layer's layout has it, one channel.
        scale: Standard deviation of a Gaussian, in shares of the height and of the width of the
            part of the map that the feature depends on, where it is not 0: all of it for a class
            (and if it is half of it), a few positions for a channel at one position. 0 leaves the
            map as it is. Tokens off the grid stay by themselves.
        layout: How the layer's activations lie.
        box: Where on the layer's map the signed map lies, which is 0 elsewhere; None for all of it.

    Returns:
        Of the whole layer's size, in the same layout.
    """
    if layout.grid is None or not (scale or box):
        return signed
    values = signed.squeeze(layout.channel_dim)  # [N, h, w] or [N, T]
    if box is not None:
        whole = values.new_zeros(len(values), *layout.grid)
        top, left, height, width = box
        whole[:, top : top + height, left : left + width] = values
        values = whole
    if scale:
        smooth = _smooth(layout.on_grid(values), scale).flatten(1)  # [N, H · W]
        off = values.flatten(1)[:, : -smooth.shape[1]]
        values = torch.cat([off, smooth], 1).view_as(values)
    return values.unsqueeze(layout.channel_dim)


def _smooth(grid: Tensor, scale: float) -> Tensor:
    """Smooth maps [N, H, W]; their sums stay."""
    rows, columns = (  # [N, H, H], [N, W, W]
        _spreads(some.shape[1], scale, grid.device, grid.dtype)[_extent(some)]
        for some in ((grid != 0).any(2), (grid != 0).any(1))
    )
    with torch.autocast(grid.device.type, enabled=False):  # it would sum in half precision
        return rows @ grid @ columns.mT


def _extent(some: Tensor) -> Tensor:
    """Return from the first to the last that is true how many there are, of [N, L], [N].

    Half of all stand for all: at the edges of what a feature depends on activations may be 0.
    """
    places = torch.arange(length := some.shape[1], device=some.device)
    first, last = torch.where(some, places, length), torch.where(some, places, -1)
    found = (last.amax(1) - first.amin(1) + 1).clamp(min=0)
    return torch.where(2 * found < length, found, length)


@cache
@torch.inference_mode(mode=False)
def _spreads(length: int, scale: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return Gaussian weights for each extent from 0 to the length, [length + 1, length, length].

    From columns to rows: each column sums to 1, so that nothing is lost at an edge.
    """
    places = torch.arange(length, dtype=torch.float64)
    deviation = (scale * torch.arange(length + 1, dtype=torch.float64)).clamp(min=1e-6)
    apart = (places[:, None] - places) / deviation[:, None, None]
    weights = torch.exp(-(apart**2) / 2)
    return (weights / weights.sum(1, keepdim=True)).to(dtype).to(device)


def excitation(attribution: Tensor) -> Tensor:
    """E⁺ = Σ max(A, 0), [N]."""
    return attribution.clamp(min=0).flatten(1).sum(1)


def inhibition(attribution: Tensor) -> Tensor:
    """E⁻ = Σ max(−A, 0), [N], a non-negative number."""
    return (-attribution).clamp(min=0).flatten(1).sum(1)


def balance(excited: Tensor, inhibited: Tensor) -> Tensor:
    """min(E⁺, E⁻) / max(E⁺, E⁻): 1 where they cancel, 0 where one is absent or both are."""
    return torch.minimum(excited, inhibited) / torch.maximum(excited, inhibited).clamp(min=1e-12)


def split_target(
    attribution: Tensor, sign: Sign, coherent: bool, layout: ActivationLayout, scale: float
) -> Tensor:
    """Return T⁺ = max(A, 0) or T⁻ = max(−A, 0), of A's shape.

    Args:
        attribution: A.
        sign: `+` or `-`.
        coherent: Keep T⁺ only where the signed map `at_scale` excites, and T⁻ only where it
            inhibits. Without it the two overlap in every position, and an inversion shows the other
            sign's content, too.
        layout: How the layer's activations lie.
        scale: As `at_scale` takes it.
    """
    signed = attribution if sign == "+" else -attribution
    target = signed.clamp(min=0)
    if coherent and attribution.ndim > 2:
        summed = signed_map(signed, layout.channel_dim)
        target = target * (at_scale(summed, scale, layout) > 0)
    return target


def support_mask(attribution: Tensor, threshold: float = 0.01, channel_dim: int = 1) -> Tensor:
    """Return where Σ|A| over channels exceeds a share of its own maximum, per image.

    Returns:
        0 or 1, [N, 1, H, W]; all 1, [N, C], for an attribution without positions.
    """
    if attribution.ndim == 2:
        return torch.ones_like(attribution)
    strength = attribution.abs().sum(channel_dim, keepdim=True)
    peak = strength.flatten(1).amax(1).view(-1, *[1] * (attribution.ndim - 1))
    return (strength > threshold * peak).to(attribution.dtype)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the angle between a and b, [N]; 0, not NaN, where one of them is all zero."""
    a, b = a.flatten(1), b.flatten(1)
    of_a: Tensor = torch.linalg.vector_norm(a, dim=1).clamp(min=1e-12)
    of_b: Tensor = torch.linalg.vector_norm(b, dim=1).clamp(min=1e-12)
    return (a * b).sum(1) / (of_a * of_b)
