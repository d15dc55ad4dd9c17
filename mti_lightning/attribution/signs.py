"""Signs: what excites, what inhibits, and where. Pure functions on tensors.

Attributions have the shape of the activations, with the batch first; `channel_dim` says where the
channels are. Values are in units of the response.
"""

from typing import Literal

import torch
from torch import Tensor

Sign = Literal["+", "-"]


def signed_map(attribution: Tensor, channel_dim: int = 1) -> Tensor:
    """Sum over channels: how much each position excites (> 0) or inhibits, [N, 1, H, W]."""
    return attribution.sum(channel_dim, keepdim=True)


def excitation(attribution: Tensor) -> Tensor:
    """E⁺ = Σ max(A, 0), [N]."""
    return attribution.clamp(min=0).flatten(1).sum(1)


def inhibition(attribution: Tensor) -> Tensor:
    """E⁻ = Σ max(−A, 0), [N], a non-negative number."""
    return (-attribution).clamp(min=0).flatten(1).sum(1)


def balance(excited: Tensor, inhibited: Tensor) -> Tensor:
    """min(E⁺, E⁻) / max(E⁺, E⁻): 1 where they cancel, 0 where one is absent or both are."""
    return torch.minimum(excited, inhibited) / torch.maximum(excited, inhibited).clamp(min=1e-12)


def split_target(attribution: Tensor, sign: Sign, coherent: bool, channel_dim: int = 1) -> Tensor:
    """Return T⁺ = max(A, 0) or T⁻ = max(−A, 0), of A's shape.

    Args:
        attribution: A.
        sign: `+` or `-`.
        coherent: Keep T⁺ only where the attribution summed over channels excites, and T⁻ only where
            it inhibits. Without it the two overlap in every position, and an inversion shows the
            other sign's content, too.
        channel_dim: Where the channels are.
    """
    signed = attribution if sign == "+" else -attribution
    target = signed.clamp(min=0)
    if coherent and attribution.ndim > 2:
        target = target * (signed_map(signed, channel_dim) > 0)
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
