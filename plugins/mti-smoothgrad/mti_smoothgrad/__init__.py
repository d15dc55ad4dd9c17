"""SmoothGrad as an attribution method of mti-lightning."""

from typing import final

import torch
from torch import Tensor

from mti_lightning import Attribution, InputError, Pass


@final
class SmoothGrad(Attribution):
    """SmoothGrad (Smilkov et al. 2017): activation times the mean gradient at noisy activations.

    All pictures share the noise, which is scaled to each one's activations.

    Args:
        samples: How many gradients are averaged; each costs a forward and a backward pass.
        noise: Standard deviation of the noise, as a share of the activations'.
        seed: Draws the noise; what else is random in a run does not change.

    Raises:
        InputError: If there are no samples.
    """

    differentiable = True

    def __init__(self, samples: int = 8, noise: float = 0.1, seed: int = 0) -> None:
        if samples < 1:
            raise InputError(f"samples {samples}: give 1 or more")
        self.samples, self.noise, self.seed = samples, noise, seed

    def attribute(self, forward: Pass, create_graph: bool) -> Tensor:
        activations = forward.activations
        generator = torch.Generator().manual_seed(self.seed)
        of_picture = tuple(range(1, activations.ndim))
        scale = self.noise * activations.std(of_picture, keepdim=True)  # [N, 1, ...]
        total = torch.zeros_like(activations)
        for _ in range(self.samples):
            noise = torch.randn(activations.shape[1:], generator=generator).to(activations)
            noisy = activations + scale * noise
            (gradient,) = torch.autograd.grad(
                forward.head(noisy).sum(), noisy, create_graph=create_graph
            )
            total = total + gradient
        return activations * total / self.samples
