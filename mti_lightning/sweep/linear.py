"""Heads that are one linear map and a bias: their gradient is the same for all pictures.

Then neither a backward pass nor a channel's attributions are needed, only matrix products. Each is
of one picture, so that its bits do not depend on what else is in the batch.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from mti_lightning.attribution.gradients import gradients

_EXACT: Final = 1e-5  # of the largest response
_FAR: Final = -100.0  # times a point that is random: a saturated unit shows there


@final
@dataclass(frozen=True)
class LinearHead:
    """What a head is made of.

    Attributes:
        gradient: ∂r/∂a of features, [F, S, C], at those positions where it is not 0 for all, or
            [F, 1, C] where it is the same at all of these.
        bias: r of activations that are all 0, [F].
        support: Which of all positions these are, in a row, [S].
        shape: Of one picture's activations.
        channel_dim: Of activations with their batch.
    """

    gradient: Tensor
    bias: Tensor
    support: Tensor
    shape: tuple[int, ...]
    channel_dim: int

    def respond(self, activations: Tensor) -> Tensor:
        """Return r, [N, F], of activations [N, ...]."""
        rows, seen = self.gradient.flatten(1), self._seen(activations)  # [F, S' · C], [N, S, C]
        if self.gradient.shape[1] < seen.shape[1]:
            seen = seen.sum(1, keepdim=True)
        return torch.stack([rows @ of_one.flatten() for of_one in seen]) + self.bias

    def slices(self, at_once: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield ∂r/∂a of some features, [F', 1, ...], and which, as `gradients` does."""
        for start in range(0, len(self.gradient), at_once):
            features = slice(start, min(start + at_once, len(self.gradient)))
            yield features, self.gradient_of(features)[:, None]

    def gradient_of(self, features: slice) -> Tensor:
        """Return ∂r/∂a of some features, [F', ...], at all positions."""
        gradient = self.gradient[features].expand(-1, len(self.support), -1)
        channels_last = gradient.new_zeros(len(gradient), self._positions, gradient.shape[2])
        channels_last.index_copy_(1, self.support, gradient)
        dim = self.channel_dim % (len(self.shape) + 1)
        sizes = [size for place, size in enumerate(self.shape, 1) if place != dim]
        return channels_last.view(len(gradient), *sizes, -1).movedim(-1, dim)

    def signed_map(self, activations: Tensor) -> Tensor:
        """Return Σ over channels of a ⊙ ∂r/∂a, [F, N, ...], the channels' dimension being 1."""
        found = self._summed(self._seen(activations), self.gradient)
        if found.shape[2] < self._positions:
            seen, found = found, found.new_zeros(*found.shape[:2], self._positions)
            found.index_copy_(2, self.support, seen)
        shape = list(activations.shape)
        shape[self.channel_dim] = 1
        return found.view(len(found), *shape)

    def norms(self, activations: Tensor) -> Tensor:
        """Return the sum over positions of the norm over channels of a ⊙ ∂r/∂a, [F, N]."""
        seen = self._seen(activations)
        return self._summed(seen.square(), self.gradient.square()).sqrt().sum(2)

    @property
    def _positions(self) -> int:
        return math.prod(self.shape) // self.gradient.shape[2]

    def _seen(self, activations: Tensor) -> Tensor:
        """Return activations at the positions that count, [N, S, C]."""
        rows = _in_a_row(activations, self.channel_dim)
        whole = len(self.support) == rows.shape[1]
        return rows if whole else rows.index_select(1, self.support)

    @staticmethod
    def _summed(seen: Tensor, gradient: Tensor) -> Tensor:
        """Return the products' sum over channels, [F, N, S]."""
        columns = gradient.permute(1, 2, 0).contiguous()  # [S', C, F]
        if len(columns) == 1:
            each = [of_one @ columns[0] for of_one in seen]  # [S, F]
        else:
            each = [torch.bmm(of_one[:, None], columns)[:, 0] for of_one in seen]
        return torch.stack(each).permute(2, 0, 1).contiguous()


def find_linear_head(
    head: Callable[[Tensor], Tensor],
    activations: Tensor,
    channel_dim: int,
    at_once: int,
    most: int = 2**25,
) -> LinearHead | None:
    """Return what a head is made of, if it is linear: tried on random points and on real ones.

    Args:
        head: Computes responses, [N, F], from activations, whatever pictures these are of.
        activations: Of two pictures, [2, ...].
        channel_dim: Of the activations.
        at_once: Of how many features gradients are taken together.
        most: How many numbers a gradient may be.
    """
    own = activations.detach()
    noise = torch.randn(own.shape, generator=torch.Generator().manual_seed(0)).to(own)
    first, second = (noise * own.std() + own.mean())[:, None]
    points = torch.cat([torch.zeros_like(first), first, second, first + second, _FAR * first, own])
    with torch.no_grad():
        bias, *found = head(points).float()
    one, other, both, far = (responses - bias for responses in found[:4])
    if not (_same(one + other, both) and _same(_FAR * one, far)):
        return None
    with torch.enable_grad():
        leaf = points[:1].clone().requires_grad_()
        responses = head(leaf)
        drawn = torch.rand(len(bias), generator=torch.Generator().manual_seed(1)).to(responses)
        # Of all features together, none of which hides another.
        (mixed,) = torch.autograd.grad((responses @ drawn).sum(), leaf, retain_graph=True)
        rows = _in_a_row(mixed, channel_dim)[0]  # [P, C]
        support = rows.any(1).nonzero().flatten()
        alike = _same(rows[support], rows[support[:1]].expand(len(support), -1))
        kept = support[:1] if alike else support
        if not len(kept) or len(bias) * len(kept) * rows.shape[1] > most:
            return None
        gradient = torch.cat(
            [
                _in_a_row(of_some[:, 0], channel_dim).index_select(1, kept)
                for _, of_some in gradients(responses, leaf, at_once)
            ]
        ).float()
    linear = LinearHead(gradient, bias, support, tuple(own.shape[1:]), channel_dim)
    return linear if _same(linear.respond(points[1:].float()), torch.stack(found)) else None


def _in_a_row(values: Tensor, channel_dim: int) -> Tensor:
    """Return values [N, ...] with their positions in a row, [N, P, C]."""
    last = values.movedim(channel_dim, -1)
    return last[:, None] if last.ndim == 2 else last.flatten(1, -2)


def _same(one: Tensor, other: Tensor) -> bool:
    """Say whether numbers are the same, as far as single precision tells."""
    return bool((one - other).abs().max() <= _EXACT * other.abs().max()) if one.numel() else True
