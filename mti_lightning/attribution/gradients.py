"""What act×grad of many features of the same pictures is made of: gradients, centred activations.

Pure functions on tensors.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from mti_lightning.backbone import ActivationLayout


def gradients(
    responses: Tensor, activations: Tensor, at_once: int = 1
) -> Iterator[tuple[slice, Tensor]]:
    """Yield ∂r/∂a of features [F], and which of them, so many at once.

    Pictures do not mix in eval mode, so the gradient of a feature's sum is that of each picture.

    Args:
        responses: r, [N, F].
        activations: a, [N, ...], which they were computed from.
        at_once: F', of how many features a gradient [F', N, ...] is; one takes least memory.
    """
    for start in range(0, responses.shape[1], at_once):
        features = slice(start, min(start + at_once, responses.shape[1]))
        yield features, _gradients(responses[:, features], activations)


def mean_gradients(
    head: Callable[[Tensor], Tensor],
    activations: Tensor,
    baseline: Tensor,
    points: Sequence[float],
    count: int,
    at_once: int = 1,
) -> Iterator[tuple[slice, Tensor]]:
    """Yield ∂r/∂a of features [F], averaged over points of the way from a baseline, as `gradients`.

    Args:
        head: Computes responses, [N, F], from activations.
        activations: a, [N, ...].
        baseline: b, of a shape that expands to theirs.
        points: On the way, b at 0 and a at 1.
        count: F.
        at_once: F', of how many features a gradient [F', N, ...] is.
    """
    moved = activations - baseline
    for start in range(0, count, at_once):
        features = slice(start, min(start + at_once, count))
        total = torch.zeros(())
        for point in points:
            leaf = (baseline + point * moved).detach().requires_grad_()
            total = total.to(leaf) + _gradients(head(leaf)[:, features], leaf)
        yield features, total / len(points)


def _gradients(responses: Tensor, activations: Tensor) -> Tensor:
    """Return ∂r/∂a, [F, N, ...], of responses [N, F]."""
    if responses.shape[1] == 1:
        return torch.autograd.grad(responses.sum(), activations, retain_graph=True)[0][None]
    rows = torch.eye(responses.shape[1], device=responses.device)
    rows = rows.to(responses.dtype)[:, None]  # [F, 1, F]
    rows = rows.expand(-1, len(responses), -1)  # [F, N, F]
    (found,) = torch.autograd.grad(
        responses, activations, rows, retain_graph=True, is_grads_batched=True
    )
    return found


def centre(activations: Tensor, mean: Tensor, layout: ActivationLayout) -> Tensor:
    """Subtract the mean activation of each channel, a − ā.

    Args:
        activations: a, [N, ...].
        mean: ā, [C].
        layout: How the activations lie.
    """
    return activations - layout.per_channel(mean.to(activations))
