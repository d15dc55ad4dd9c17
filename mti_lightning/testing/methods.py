"""The kit for attribution methods: what each of them must satisfy.

Nothing that a method declares is believed; what it claims is tried.
"""

import copy
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

from mti_lightning.attribution.methods import Attribution
from mti_lightning.testing.checks import (
    Check,
    assert_passed,
    check_frozen,
    compare_slopes,
    difference_of,
    fail,
    hooks_of,
    name_changed,
    run_checks,
    values_of,
)
from mti_lightning.testing.trial import Broken, Given, MethodTrial, World

_COMPLETE = {True: 0.001, False: 0.05}  # of |r|, over a linear head or another
_SIGNS = 0.99  # of what act×grad attributes over a linear head


def check_attribution(method: Attribution) -> None:
    """Make sure that an attribution method keeps its word.

    Raises:
        AssertionError: If it does not: all checks that failed, each with its cause.
    """
    assert_passed(type(method).__name__, attribution_checks(method))


def attribution_checks(method: Attribution) -> list[Check]:
    """Run every check of an attribution method; without a fit result the others are left out."""
    return run_checks(_CHECKS, MethodTrial(method), first=("declarations", "shape", "finite"))


def _declares(trial: MethodTrial) -> None:
    method = trial.method
    if not isinstance(method, Attribution):
        fail(f"{method!r} is no Attribution")
    for name in ("differentiable", "additive", "needs_baseline"):
        if not isinstance(getattr(method, name), bool):
            fail(f"{name} is {getattr(method, name)!r}, neither True nor False")
    if method.baseline is not None and not method.needs_baseline:
        fail(f"it has the baseline {method.baseline!r}, but needs_baseline is False")


def _has_shape(given: Given) -> None:
    activations, result = given.forward.activations, given.result
    if not isinstance(result, Tensor):
        fail(f"it gave {type(result).__name__}, no tensor")
    if result.shape != activations.shape:
        fail(f"it gave {tuple(result.shape)} for activations of {tuple(activations.shape)}")
    if result.dtype != activations.dtype:
        fail(f"it gave {result.dtype} for activations in {activations.dtype}")


def _shape(trial: MethodTrial) -> str:
    for given in trial.accepted.values():
        _has_shape(given)
    return trial.declined


def _finite(trial: MethodTrial) -> None:
    for given in (trial.batch, *trial.linear):
        if not given.result.isfinite().all():
            fail("not all values are finite")


def _deterministic(trial: MethodTrial) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        state = torch.get_rng_state()
        again = trial.attribute(trial.world)
        if not torch.equal(torch.get_rng_state(), state):
            fail("it draws from the global random generator; give it a generator of its own")
    if not torch.equal(again.result, trial.batch.result):
        fail(f"a second time {difference_of(again.result, trial.batch.result, 0)}")


def _one_by_one(trial: MethodTrial) -> None:
    for row in range(len(trial.channels)):
        alone = trial.attribute(trial.world, slice(row, row + 1))
        _has_shape(alone)
        if difference := difference_of(alone.result[0], trial.batch.result[row]):
            fail(f"a picture alone and in a batch: {difference}")


def _untouched(trial: MethodTrial) -> None:
    for given in (trial.batch, *trial.linear):
        if not torch.equal(given.forward.activations.detach(), given.before):
            fail("it overwrites the activations that it is given")


def _hooks_removed(trial: MethodTrial) -> None:
    network = trial.world.backbone.network
    before = hooks_of(network)
    for fails in (False, True):
        with suppress(Broken):
            trial.attribute(trial.world, slice(1), fails=fails)
        if changed := name_changed(before, hooks_of(network)):
            fail(f"{changed} is left hooked or altered{' after a failure' if fails else ''}")


def _frozen(trial: MethodTrial) -> None:
    before = values_of(trial.world.backbone.network)
    trial.attribute(trial.world, slice(1))
    check_frozen(trial.world.backbone, before)


def _signs(trial: MethodTrial) -> None:
    for forward, activations, result in trial.linear:
        leaf = activations.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(forward.head(leaf).sum(), leaf)
        start = forward.baseline if trial.method.needs_baseline else 0.0
        expected = (activations - start) * gradient
        agree = expected.abs()[result.sign() == expected.sign()].sum() / expected.abs().sum()
        if agree < _SIGNS:
            fail(
                f"over a linear head it gives the sign of act×grad to {agree:.0%} of it; "
                f"{_SIGNS:.0%} is asked for"
            )


def _complete(trial: MethodTrial) -> str | None:
    if not trial.method.additive:
        return "not claimed"
    tried = {True: trial.linear}
    if trial.method.needs_baseline:  # the others have no response to compare with over other heads
        tried[False] = trial.bent
    for linear, (forward, _, result) in [(key, one) for key in tried for one in tried[key]]:
        with torch.no_grad():
            start = forward.head(forward.baseline.expand_as(forward.activations))
        responses = forward.responses.detach()
        error = (result.detach().flatten(1).sum(1) - (responses - start)).abs().sum()
        share = float(error / torch.maximum(responses.abs(), start.abs()).sum())
        if share > _COMPLETE[linear]:
            fail(
                f"it claims to be additive, but over a {'linear' if linear else 'non-linear'} head "
                f"A misses r - r(baseline) by {share:.2g} of |r|; {_COMPLETE[linear]} is allowed"
            )
    return None


def _gradient(trial: MethodTrial) -> str | None:
    if not trial.method.differentiable:
        return "not claimed"
    for world in trial.accepted:
        backbone = copy.deepcopy(world.backbone).to(torch.float64)
        _check_slopes(trial, world._replace(backbone=backbone))
    return trial.declined


def _check_slopes(trial: MethodTrial, world: World) -> None:
    def attributed(pictures: Tensor, create_graph: bool) -> Tensor:
        shown = world._replace(pictures=pictures)
        result: Tensor = trial.attribute(shown, slice(2), create_graph=create_graph).result
        return result

    compare_slopes(attributed, world.pictures[:2].double(), world.backbone.name)


_CHECKS: dict[str, Callable[[MethodTrial], str | None]] = {
    "declarations": _declares,
    "shape": _shape,
    "finite": _finite,
    "deterministic": _deterministic,
    "batch equals one by one": _one_by_one,
    "activations untouched": _untouched,
    "hooks removed": _hooks_removed,
    "backbone frozen": _frozen,
    "signs on a linear head": _signs,
    "completeness": _complete,
    "gradient": _gradient,
}
