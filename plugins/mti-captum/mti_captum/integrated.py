"""Integrated gradients that add up, picture by picture."""

from dataclasses import replace
from typing import final

import torch
from captum import attr
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from mti_lightning import Attribution, InputError, Pass

_TOLERANCE = 0.01  # of |r|
_ROUNDING = 1e-6  # of Σ|A|: what float32 makes of a sum
_PARTS, _STEPS = 16, 8  # of a way that is divided, and of each part


@final
class IntegratedGradients(Attribution):
    """Integrated gradients (Sundararajan et al. 2017), from a baseline to the activations.

    A sums to r − r(baseline), to 1% of |r|, whatever the network is made of.

    Args:
        steps: Points at which the gradient is taken, each a forward and a backward pass.
        baseline: The path of a .npy of one activation per channel, such as a sweep's
            `mean_activation`; activations of 0 by default.
        most: Where the sum misses more than 1% of |r|, as in 1 of 100 pictures of the embedded
            world, the picture's way is divided where it is roughest, at a cost of up to this many
            passes. A warning says where that is not enough.

    Raises:
        InputError: If there are no steps.
    """

    differentiable = False
    additive = True
    needs_baseline = True

    def __init__(self, steps: int = 128, baseline: str | None = None, most: int = 2048) -> None:
        if steps < 1:
            raise InputError(f"steps {steps}: give 1 or more")
        self.steps, self.baseline, self.most = steps, baseline, most

    def attribute(self, forward: Pass, create_graph: bool) -> Tensor:
        result, change = _between(forward, 0.0, 1.0, self.steps)
        responses = forward.responses.detach()
        off = _missing(result, change, responses) > _TOLERANCE
        for row in off.nonzero().flatten().tolist() if self.most >= _PARTS * _STEPS else ():
            # By itself, so that no other picture has a say.
            rows = slice(row, row + 1)
            alone = forward.at(forward.pictures[rows].detach(), [row])
            alone = replace(alone, baseline=forward.baseline.expand_as(result)[rows])
            result[rows] = self._divided(alone, change[rows])
        missing = _missing(result, change, responses)
        if count := int((missing > _TOLERANCE).sum()):
            rank_zero_warn(
                f"IntegratedGradients: in {count} of {len(missing)} pictures the attribution is "
                f"off the response by up to {float(missing.max()):.0%}; give a higher most, or "
                "another baseline"
            )
        return result

    def _divided(self, forward: Pass, change: Tensor) -> Tensor:
        """Attribute one picture's response; halve the worst part of the way until it adds up."""
        total, responses = torch.zeros_like(forward.activations), forward.responses.detach()
        missing: dict[tuple[float, float], float] = {}

        def add(low: float, high: float) -> None:
            found, of_part = _between(forward, low, high, _STEPS)
            total.add_(found)
            missing[low, high] = float((of_part - found.sum()).abs())

        for number in range(_PARTS):
            add(number / _PARTS, (number + 1) / _PARTS)
        for _ in range((self.most // _STEPS - _PARTS) // 3):
            if _missing(total, change, responses) <= _TOLERANCE:
                break
            low, high = max(missing, key=missing.__getitem__)
            # It is computed again, as all that were kept would fill the memory.
            total -= _between(forward, low, high, _STEPS)[0]
            del missing[low, high]
            add(low, (low + high) / 2)
            add((low + high) / 2, high)
        return total


def _between(forward: Pass, low: float, high: float, steps: int) -> tuple[Tensor, Tensor]:
    """Return what a part of the way contributes, and by how much responses change on it, [N]."""
    way = forward.baseline.expand_as(forward.activations), forward.activations.detach()
    first, last = torch.lerp(*way, low), torch.lerp(*way, high)
    # As many rows at a time as there are pictures: the head knows them by their place.
    result: Tensor = attr.IntegratedGradients(forward.head).attribute(
        last, first, n_steps=steps, internal_batch_size=len(last)
    )
    with torch.no_grad():
        return result, forward.head(last) - forward.head(first)


def _missing(attribution: Tensor, change: Tensor, responses: Tensor) -> Tensor:
    """Return by how much attributions miss the change in the responses, as shares of |r|, [N]."""
    summed = attribution.flatten(1)
    least = responses.abs().maximum(summed.abs().sum(1) * (_ROUNDING / _TOLERANCE))
    return (summed.sum(1) - change).abs() / least.clamp(min=1e-12)
