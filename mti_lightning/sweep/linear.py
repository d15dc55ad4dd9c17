"""Heads that are one linear map and a bias: their gradient is the same for all pictures.

Then neither a backward pass nor a channel's attributions are needed, only matrix products. Each is
of one picture, so that its bits do not depend on what else is in the batch.
"""

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
        gradient: ∂r/∂a of features, [F, ...].
        bias: r of activations that are all 0, [F].
        channel_dim: Of activations with their batch.
    """

    gradient: Tensor
    bias: Tensor
    channel_dim: int

    def respond(self, activations: Tensor) -> Tensor:
        """Return r, [N, F], of activations [N, ...]."""
        rows = self.gradient.flatten(1)
        return torch.stack([rows @ of_one.flatten() for of_one in activations]) + self.bias

    def slices(self, at_once: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield ∂r/∂a of some features, [F', 1, ...], and which, as `gradients` does."""
        for start in range(0, len(self.gradient), at_once):
            features = slice(start, min(start + at_once, len(self.gradient)))
            yield features, self.gradient[features, None]

    def signed_map(self, activations: Tensor) -> Tensor:
        """Return Σ over channels of a ⊙ ∂r/∂a, [F, N, ...], the channels' dimension being 1."""
        found = self._summed(activations, self.gradient)
        shape = list(activations.shape)
        shape[self.channel_dim] = 1
        return found.view(len(found), *shape)

    def norms(self, activations: Tensor) -> Tensor:
        """Return the sum over positions of the norm over channels of a ⊙ ∂r/∂a, [F, N]."""
        return self._summed(activations.square(), self.gradient.square()).sqrt().sum(2)

    def _summed(self, activations: Tensor, gradient: Tensor) -> Tensor:
        """Return the products' sum over channels, [F, N, P]."""
        rows, columns = (
            values.movedim(self.channel_dim, -1).flatten(1, -2)
            for values in (activations, gradient)
        )  # [N, P, C], [F, P, C]
        columns = columns.permute(1, 2, 0).contiguous()  # [P, C, F]
        each = [torch.bmm(of_one[:, None], columns)[:, 0] for of_one in rows]  # [P, F]
        return torch.stack(each).permute(2, 0, 1).contiguous()


def find_linear_head(
    head: Callable[[Tensor], Tensor], activations: Tensor, channel_dim: int, at_once: int
) -> LinearHead | None:
    """Return what a head is made of, if it is linear: tried on random points and on real ones.

    Args:
        head: Computes responses, [N, F], from activations, whatever pictures these are of.
        activations: Of two pictures, [2, ...].
        channel_dim: Of the activations.
        at_once: Of how many features gradients are taken together.
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
        gradient = torch.cat([g[:, 0] for _, g in gradients(head(leaf), leaf, at_once)]).float()
    linear = LinearHead(gradient, bias, channel_dim)
    return linear if _same(linear.respond(points[1:].float()), torch.stack(found)) else None


def _same(one: Tensor, other: Tensor) -> bool:
    """Say whether responses are the same, as far as single precision tells."""
    return bool((one - other).abs().max() <= _EXACT * other.abs().max())
