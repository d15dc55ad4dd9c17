"""DeepLift, with pictures and baselines in passes of their own.

Captum runs both in one batch of twice the size; a head takes a batch of its pictures' size, so the
baseline goes first, and what the modules saw then is kept. The rules are Captum's, but for two that
are not right there: its max pool loses what overlapping windows share, and its softmax sums over
the batch; here the one is mended, and the other left out.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mti_lightning import Attribution, InputError, Pass

_POOLS = (nn.MaxPool2d, nn.AdaptiveMaxPool2d)
# Those that look at each value by itself.
_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus),
)
_LEAST_CHANGE = 1e-10  # Captum's: of an input that changes less the gradient is taken
_ROUNDING = 1e-4  # of Σ|A|: more than that is no rounding
Seen = tuple[Tensor, Tensor]  # a module's input and output


class _Rescaled(torch.autograd.Function):
    """A module's output, whose gradient is the change in it over the change in its input."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, module: nn.Module, output: Tensor, before: Seen) -> Tensor:
        ctx.save_for_backward(given, output, *before)
        ctx.module = module
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        given, output, given_before, output_before = ctx.saved_tensors
        (gradient,), module = gradients, ctx.module
        change = given - given_before
        still = change.abs() < _LEAST_CHANGE
        if isinstance(module, _POOLS):
            # From the baseline's output up to the larger of both, then down to the picture's; each
            # part goes to the position that gives it.
            top = torch.maximum(output, output_before)
            up = _gradient(module, given, gradient * (top - output_before))
            down = _gradient(module, given_before, gradient * (output - top))
            rescaled = (up + down) / change
        else:
            rescaled = gradient * (output - output_before) / change
        plain = _gradient(module, given, gradient)
        return torch.where(still, plain, rescaled), None, None, None


def _gradient(module: nn.Module, given: Tensor, gradient: Tensor) -> Tensor:
    """Take a gradient through a module, past its hooks."""
    with torch.enable_grad():
        leaf = given.detach().requires_grad_()
        (result,) = torch.autograd.grad(module.forward(leaf.clone()), leaf, gradient)
    return result


@final
class DeepLift(Attribution):
    """DeepLift (Shrikumar et al. 2017, rescale rule): differences from a baseline, passed back.

    A sums to r − r(baseline) in networks of convolutions, linear layers, activation functions and
    max pools. What else is non-linear (layer norms, attention, gates) has no rule; where it keeps
    the attribution from adding up, that is an error.

    Args:
        baseline: The path of a .npy of one activation per channel, such as a sweep's
            `mean_activation`; activations of 0 by default.

    Raises:
        InputError: If the attribution does not add up.
    """

    differentiable = False
    additive = True
    needs_baseline = True

    def __init__(self, baseline: str | None = None) -> None:
        self.baseline = baseline

    def attribute(self, forward: Pass, create_graph: bool) -> Tensor:
        activations = forward.activations.detach().requires_grad_()
        baseline = forward.baseline.expand_as(activations)
        seen: dict[nn.Module, Seen] = {}

        def keep(module: nn.Module, given: Tensor, output: Tensor) -> None:
            seen[module] = given.detach(), output.detach().clone()

        def rescale(module: nn.Module, given: Tensor, output: Tensor) -> Tensor:
            result: Tensor = _Rescaled.apply(given, module, output.detach(), seen[module])
            return result

        with torch.no_grad(), _watched(forward.network, keep):
            before = forward.head(baseline)
        with _watched(forward.network, rescale):
            responses = forward.head(activations)
            (multipliers,) = torch.autograd.grad(responses.sum(), activations)
        result: Tensor = (activations.detach() - baseline) * multipliers
        summed = result.flatten(1)
        error = (summed.sum(1) - (responses.detach() - before)).abs()
        # A network with a rule for all of it misses nothing but what rounding makes of the sum.
        if (error > _ROUNDING * summed.abs().sum(1)).any():
            share = float((error / responses.detach().abs()).max())
            raise InputError(
                f"DeepLift: the attribution is off the response by {share:.1%}; the network has "
                "non-linear parts without a rule, such as layer norms or attention; take "
                "IntegratedGradients"
            )
        return result


@contextmanager
def _watched(
    network: nn.Module, take: Callable[[nn.Module, Tensor, Tensor], Tensor | None]
) -> Iterator[None]:
    """Have `take` see the input and output of every module that has a rule, or replace the output.

    Hooks on inputs are put up when the pass begins, behind the backbone's taps, so as to see what
    a tap inserts.

    Raises:
        InputError: If a module is used twice in a pass.
    """
    modules = [module for module in network.modules() if isinstance(module, _POOLS + _ACTIVATIONS)]
    given: dict[nn.Module, Tensor] = {}
    handles: list[RemovableHandle] = []

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        if module in given:
            raise InputError(
                "DeepLift: the network uses one module in two places; take IntegratedGradients"
            )
        given[module] = inputs[0]
        return inputs[0].clone()  # the module may work in place

    def after(module: nn.Module, _: Any, output: Tensor) -> Tensor | None:
        return take(module, given[module], output)

    def begin(*_: Any) -> None:
        handles.extend(module.register_forward_pre_hook(before) for module in modules)

    try:
        handles.append(network.register_forward_pre_hook(begin))
        handles.extend(module.register_forward_hook(after) for module in modules)
        yield
    finally:
        for handle in handles:
            handle.remove()
