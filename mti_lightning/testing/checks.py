"""What the kits share: running checks, comparing values, and seeing what was changed."""

import warnings
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Never, TypeVar, final

import torch
from torch import Tensor, nn

from mti_lightning.backbone import Backbone
from mti_lightning.errors import reason_of

_SAME = 1e-4  # of the largest value: what batches of other sizes may differ by, in float32
_SLOPE = 0.01  # of a derivative, against finite differences in float64
_STEPS = (1e-8, 1e-10)  # the shorter one where a kink lies within the longer

Trial = TypeVar("Trial")


@final
@dataclass(frozen=True)
class Check:
    """A check's result; `cause` says what was wrong, or what a method that passed declines."""

    name: str
    ok: bool
    cause: str = ""


def assert_passed(subject: str, checks: list[Check]) -> None:
    """Make sure that all checks passed.

    Raises:
        AssertionError: If one did not: all that failed, each with its cause.
    """
    failed = [f"{check.name}: {check.cause}" for check in checks if not check.ok]
    if failed:
        raise AssertionError(
            f"{subject} fails {len(failed)} of {len(checks)} checks\n" + "\n".join(failed)
        )


class Failure(Exception):  # noqa: N818  what a check finds
    """A check failed; the message is its cause."""


def run_checks(
    checks: Mapping[str, Callable[[Trial], str | None]], trial: Trial, first: Container[str]
) -> list[Check]:
    """Run checks in order; where one of the `first` fails, the others would only follow from it."""
    results: list[Check] = []
    for name, check in checks.items():
        try:
            with warnings.catch_warnings():  # a method may warn of what the kit gives it
                warnings.simplefilter("ignore")
                results.append(Check(name, True, check(trial) or ""))
        except Failure as failure:
            results.append(Check(name, False, str(failure)))
        except Exception as error:  # noqa: BLE001  a plugin may fail in any way
            cause = f"{type(error).__name__}: {reason_of(error)}"
            results.append(Check(name, False, cause))
        if name in first and not results[-1].ok:
            break
    return results


def fail(cause: str) -> Never:
    """Let the check that runs fail."""
    raise Failure(cause)


def difference_of(found: Tensor, expected: Tensor, tolerance: float = _SAME) -> str:
    """Return by how much values differ, in words; nothing if by no more than is tolerated."""
    found, expected = found.detach(), expected.detach()
    scale = float(expected.abs().max().clamp(min=1e-12))
    share = float((found - expected).abs().max()) / scale
    return "" if share <= tolerance else f"values differ by {share:.2g} of the largest"


def compare_slopes(
    attributed: Callable[[Tensor, bool], Tensor], pictures: Tensor, network: str
) -> None:
    """Fail if derivatives of an attribution by float64 pictures are not finite differences."""
    generator = torch.Generator().manual_seed(1)
    leaf = pictures.clone().requires_grad_()
    result = attributed(leaf, True)
    if difference := difference_of(result, attributed(pictures, False)):
        fail(f"with create_graph and without: {difference}")
    if not result.requires_grad:
        fail("it claims to be differentiable, but its result is cut off from the pictures")
    weights = torch.randn(result.shape, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((result * weights).sum(), leaf, allow_unused=True)
    gradient = torch.zeros_like(pictures) if gradient is None else gradient
    directions = torch.randn(2, *pictures.shape, generator=generator, dtype=torch.float64)
    found = (directions * gradient).flatten(1).sum(1)

    def total(pictures: Tensor) -> Tensor:
        return (attributed(pictures, False) * weights).sum().detach()

    errors = []
    for step in _STEPS:
        expected = torch.stack(
            [
                (total(pictures + step * d) - total(pictures - step * d)) / (2 * step)
                for d in directions
            ]
        )
        errors.append(float((found - expected).norm() / expected.norm().clamp(min=1e-6)))
        if errors[-1] <= _SLOPE:
            return
    fail(
        f"in float64 its derivative by the pictures is off finite differences by {min(errors):.0%} "
        f"on {network}; {_SLOPE:.0%} is allowed"
    )


def values_of(network: nn.Module) -> dict[str, Tensor]:
    """Return copies of a network's parameters and buffers."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return {name: value.detach().clone() for name, value in tensors.items()}


def check_frozen(backbone: Backbone, before: Mapping[str, Tensor]) -> None:
    """Fail if a network is in training mode, asks for gradients, or its values have changed."""
    network = backbone.network
    for name, module in network.named_modules():
        if module.training:
            fail(f"{name or 'the network'} is in training mode")
    after = values_of(network)
    for name, value in before.items():
        if name not in after or not torch.equal(after[name], value):
            fail(f"{name} has changed")
    for name, parameter in network.named_parameters():
        if parameter.requires_grad or parameter.grad is not None:
            fail(f"{name} asks for a gradient")


def hooks_of(network: nn.Module) -> dict[str, object]:
    """Return what hangs on each module, and whether it works in place or has another `forward`."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        name: (
            [list(vars(module)[kind]) for kind in kinds],
            vars(module).get("inplace"),
            vars(module).get("forward"),
        )
        for name, module in network.named_modules()
    }


def name_changed(before: Mapping[str, object], after: Mapping[str, object]) -> str:
    """Name the first module that is no longer what it was."""
    for name in {**before, **after}:
        if before.get(name) != after.get(name):
            return f"module {name!r}"
    return ""
