"""Captum's gradient methods: its function is the rest of the network, its input the activations."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import numpy as np
import torch
from captum import attr
from torch import Tensor

from mti_lightning import Attribution, InputError, Pass


@final
class GradientXActivation(Attribution):
    """Activation times gradient by Captum: the same as ActGrad, to compare with."""

    differentiable = False  # Captum keeps no graph
    additive = False  # r less a bias is what it sums to
    needs_baseline = False

    def attribute(self, forward: Pass, create_graph: bool) -> Tensor:
        activations = forward.activations.detach().requires_grad_()
        result: Tensor = attr.InputXGradient(forward.head).attribute(activations)
        return result


@final
class GradientShap(Attribution):
    """Gradient SHAP (expected gradients): the gradient at random places on the way from a baseline.

    With one baseline, an estimate of integrated gradients that costs as few passes as one likes.
    All pictures share the places, so that none depends on its neighbours.

    Args:
        samples: Places, each a forward and a backward pass.
        seed: Draws them; what else is random in a run does not change.
        baseline: The path of a .npy of one activation per channel, such as a sweep's
            `mean_activation`; activations of 0 by default.

    Raises:
        InputError: If there are no samples.
    """

    differentiable = False
    additive = False  # on the average it is
    needs_baseline = True

    def __init__(self, samples: int = 16, seed: int = 0, baseline: str | None = None) -> None:
        if samples < 1:
            raise InputError(f"samples {samples}: give 1 or more")
        self.samples, self.seed, self.baseline = samples, seed, baseline

    def attribute(self, forward: Pass, create_graph: bool) -> Tensor:
        # To Captum the whole batch is one example, and a sample a batch: [1, N, ...].
        method = attr.GradientShap(lambda batch: forward.head(batch[0]).sum()[None])
        activations = forward.activations.detach()[None].requires_grad_()
        baseline = forward.baseline.expand_as(forward.activations)[None]
        total = torch.zeros_like(forward.activations)
        with _seeded(self.seed, activations.device):
            for _ in range(self.samples):
                total += method.attribute(activations, baseline, n_samples=1).detach()[0]
        return total / self.samples


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators, which Captum draws from, and put them back."""
    state = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002
