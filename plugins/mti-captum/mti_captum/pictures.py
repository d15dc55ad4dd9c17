"""Captum's layer methods along the way from a grey picture to the picture.

Captum makes one batch of all points of the way; here each point is a pass of its own.
"""

from typing import final

import numpy as np
import torch
from torch import Tensor

from mti_lightning import Attribution, InputError, Pass


def _check(steps: int, grey: float) -> None:
    if steps < 1:
        raise InputError(f"steps {steps}: give 1 or more")
    if not 0 <= grey <= 1:
        raise InputError(f"grey {grey}: give a brightness from 0, black, to 1, white")


def _pass_at(forward: Pass, grey: float, share: float) -> tuple[Pass, Tensor]:
    """Return the pass a share of the way from grey, and its gradient ∂r/∂a."""
    there = forward.at(torch.lerp(torch.full_like(forward.pictures, grey), forward.pictures, share))
    (gradient,) = torch.autograd.grad(there.responses.sum(), there.activations)
    return there, gradient


@final
class Conductance(Attribution):
    """Conductance (Dhamdhere et al. 2018): what changes in the response by way of each activation.

    On the way from a grey picture to the picture, Σ ∂r/∂a · Δa. Where nothing goes round the layer,
    as a shortcut does, A sums to r − r(grey), up to what the steps miss.

    Args:
        steps: Parts of the way, each a forward and a backward pass.
        grey: The brightness of the picture that the way begins at, from 0 to 1.

    Raises:
        InputError: If there are no steps, or that is no brightness.
    """

    differentiable = False
    additive = False
    needs_baseline = True

    def __init__(self, steps: int = 64, grey: float = 0.5) -> None:
        _check(steps, grey)
        self.steps = steps
        self.grey: float = grey

    def attribute(self, forward: Pass, create_graph: bool) -> Tensor:
        last, gradient = _pass_at(forward, self.grey, 0.0)
        total = torch.zeros_like(last.activations)
        for step in range(1, self.steps + 1):
            there, ahead = _pass_at(forward, self.grey, step / self.steps)
            total += (gradient + ahead) / 2 * (there.activations - last.activations).detach()
            last, gradient = there, ahead
        return total


@final
class InternalInfluence(Attribution):
    """Internal influence (Leino et al. 2018): the mean of ∂r/∂a on the way from a grey picture.

    It is a gradient; times (a − a(grey)) it is in units of the response, as attributions are.

    Args:
        steps: Points of the way, each a forward and a backward pass.
        grey: The brightness of the picture that the way begins at, from 0 to 1.

    Raises:
        InputError: If there are no steps, or that is no brightness.
    """

    differentiable = False
    additive = False
    needs_baseline = True

    def __init__(self, steps: int = 64, grey: float = 0.5) -> None:
        _check(steps, grey)
        self.steps = steps
        self.grey: float = grey

    def attribute(self, forward: Pass, create_graph: bool) -> Tensor:
        points, weights = np.polynomial.legendre.leggauss(self.steps)  # as Captum's, from -1 to 1
        influence = torch.zeros_like(forward.activations)
        for point, weight in zip(points.tolist(), weights.tolist(), strict=True):
            influence += weight / 2 * _pass_at(forward, self.grey, (1 + point) / 2)[1]
        return (forward.activations.detach() - forward.baseline) * influence
