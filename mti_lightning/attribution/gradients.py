"""What act×grad of many features of the same pictures is made of: gradients, centred activations.

Pure functions on tensors.
"""

from collections.abc import Iterator

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
        chosen = responses[:, features]
        if chosen.shape[1] == 1:
            found = torch.autograd.grad(chosen.sum(), activations, retain_graph=True)[0][None]
        else:
            rows = torch.eye(chosen.shape[1]).to(chosen)[:, None]  # [F', 1, F']
            rows = rows.expand(-1, len(chosen), -1)  # [F', N, F']
            (found,) = torch.autograd.grad(
                chosen, activations, rows, retain_graph=True, is_grads_batched=True
            )
        yield features, found


def centre(activations: Tensor, mean: Tensor, layout: ActivationLayout) -> Tensor:
    """Subtract the mean activation of each channel, a − ā.

    Args:
        activations: a, [N, ...].
        mean: ā, [C].
        layout: How the activations lie.
    """
    return activations - layout.per_channel(mean.to(activations))
