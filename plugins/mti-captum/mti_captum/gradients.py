"""Captum's gradient methods: its function is the rest of the network, its input the activations."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import numpy as np
import torch
from captum import attr
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from mti_lightning import Attribution, InputError
from mti_lightning.attribution import Pass

_TOLERANCE = 0.05


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
class IntegratedGradients(Attribution):
    """Integrated gradients (Sundararajan et al. 2017), from a baseline to the activations.

    A sums to r − r(baseline), whatever the network is made of, up to the integration's error: at
    layer3 of the embedded world's network 0.2% of |r| on the average, and less than 1% in 99 of 100
    pictures. A warning says where it is more than 5%, as from zeros through layer norms.

    Args:
        steps: Points at which the gradient is taken, each a forward and a backward pass. At 50,
            Captum's own default, the error is twice as large.
        baseline: The path of a .npy of one activation per channel, such as a sweep's
            `mean_activation`; activations of 0 by default.

    Raises:
        InputError: If there are no steps.
    """

    differentiable = False
    additive = True
    needs_baseline = True

    def __init__(self, steps: int = 128, baseline: str | None = None) -> None:
        if steps < 1:
            raise InputError(f"steps {steps}: give 1 or more")
        self.steps, self.baseline = steps, baseline

    def attribute(self, forward: Pass, create_graph: bool) -> Tensor:
        baseline = forward.baseline.expand_as(forward.activations)
        # As many rows at a time as there are pictures: the head knows them by their place.
        result: Tensor = attr.IntegratedGradients(forward.head).attribute(
            forward.activations.detach(),
            baseline,
            n_steps=self.steps,
            internal_batch_size=len(forward.activations),
        )
        with torch.no_grad():
            before = forward.head(baseline)
        error = shortfall(result, forward.responses.detach(), before)
        if error > _TOLERANCE:
            rank_zero_warn(
                f"IntegratedGradients: the attribution is off the response by {error:.0%}; "
                "give more steps, or another baseline"
            )
        return result


def shortfall(attribution: Tensor, responses: Tensor, before: Tensor) -> float:
    """Return how far attributions are from adding up to r − r(baseline), as a share of |r|."""
    error = (attribution.flatten(1).sum(1) - (responses - before)).abs().sum()
    return float(error / torch.maximum(responses.abs(), before.abs()).sum().clamp(min=1e-12))


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
