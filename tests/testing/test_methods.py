"""The kit for methods: each wrong one fails by the check that is for it."""

from importlib.metadata import entry_points

import pytest
import torch
from torch import Tensor

from mti_lightning import ActGrad, Attribution, InputError
from mti_lightning.registry import ATTRIBUTIONS
from mti_lightning.testing import attribution_checks, check_attribution


class Product(Attribution):
    """Act×grad, for what is wrong to be built on."""

    def attribute(self, forward, create_graph: bool) -> Tensor:
        (gradient,) = torch.autograd.grad(
            forward.responses.sum(), forward.activations, create_graph=create_graph
        )
        return self.changed(forward.activations * gradient, forward)

    def changed(self, result: Tensor, forward) -> Tensor:
        return result


class FromBaseline(Product):
    needs_baseline = True

    def attribute(self, forward, create_graph: bool) -> Tensor:
        (gradient,) = torch.autograd.grad(forward.responses.sum(), forward.activations)
        return self.changed((forward.activations - forward.baseline) * gradient, forward)


class Pooled(Product):
    def changed(self, result, forward):
        return result.mean((-1, -2))


class NoTensor(Product):
    def changed(self, result, forward):
        return None


class Doubled(Product):
    def changed(self, result, forward):
        return result.double()


class Squeezed(Product):
    def changed(self, result, forward):
        return result.squeeze(0)


class Infinite(Product):
    def changed(self, result, forward):
        return result / torch.zeros_like(result)


class Noisy(Product):
    def changed(self, result, forward):
        return result * (1 + 0.01 * torch.rand_like(result))


class Drifting(Product):
    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def changed(self, result, forward):
        return result * (1 + 0.01 * torch.rand(1, generator=self.generator).to(result))


class Seeding(Product):
    def changed(self, result, forward):
        torch.manual_seed(0)
        return result


class Relative(Product):
    def changed(self, result, forward):
        return result / result.abs().max()


class Overwriting(Product):
    def changed(self, result, forward):
        forward.activations.detach().mul_(2)
        return result


class Hooking(Product):
    def changed(self, result, forward):
        forward.network.get_submodule("").register_forward_hook(lambda *_: None)
        return result


class HookingWhereItFails(Product):
    def changed(self, result, forward):
        handle = forward.network.register_forward_hook(lambda *_: None)
        forward.head(forward.activations)
        handle.remove()
        return result


class Training(Product):
    def changed(self, result, forward):
        with torch.no_grad():
            next(forward.network.parameters()).mul_(1.0001)
        return result


class Thawing(Product):
    def changed(self, result, forward):
        forward.network.requires_grad_()
        return result


class Reversed(Product):
    def changed(self, result, forward):
        return -result


class Nothing(Product):
    def changed(self, result, forward):
        return result * 0


class Exaggerating(Product):
    additive = True

    def changed(self, result, forward):
        return 2 * result


class Additive(FromBaseline):
    additive = True  # so it would have to add up over any head


class CutOff(Product):
    differentiable = True

    def changed(self, result, forward):
        return result.detach()


class HalfCutOff(Product):
    differentiable = True

    def attribute(self, forward, create_graph: bool) -> Tensor:
        (gradient,) = torch.autograd.grad(
            forward.responses.sum(), forward.activations, create_graph=create_graph
        )
        return forward.activations * gradient.detach()


class OtherWithGraph(Product):
    differentiable = True

    def attribute(self, forward, create_graph: bool) -> Tensor:
        result = super().attribute(forward, create_graph)
        return result * 2 if create_graph else result


class ZerosAsBaseline(Product):
    """Act×grad, which from a baseline of zeros is right."""

    needs_baseline = True


class DoubledFromBaseline(FromBaseline):
    additive = True

    def changed(self, result, forward):
        return result * (1 + forward.baseline.any())


class Vague(Product):
    additive = "mostly"


class WithoutUse(Product):
    baseline = "mean.npy"


class Failing(Product):
    def changed(self, result, forward):
        raise KeyError("no such thing")


WRONG = [
    (Vague, "declarations", "additive is 'mostly', neither True nor False"),
    (WithoutUse, "declarations", "it has the baseline 'mean.npy', but needs_baseline is False"),
    (Failing, "shape", "KeyError: 'no such thing'"),
    (Pooled, "shape", "it gave (2, 128) for activations of (2, 128, 12, 12)"),
    (NoTensor, "shape", "it gave NoneType, no tensor"),
    (Doubled, "shape", "it gave torch.float64 for activations in torch.float32"),
    (Infinite, "finite", "not all values are finite"),
    (Noisy, "deterministic", "it draws from the global random generator"),
    (Seeding, "deterministic", "it draws from the global random generator"),
    (Drifting, "deterministic", "a second time values differ by 0.00"),
    (Relative, "batch equals one by one", "a picture alone and in a batch: values differ by"),
    (Squeezed, "batch equals one by one", "it gave (128, 12, 12) for activations of (1, 128,"),
    (Overwriting, "activations untouched", "it overwrites the activations"),
    (Hooking, "hooks removed", "module '' is left hooked or altered"),
    (HookingWhereItFails, "hooks removed", "module '' is left hooked or altered after a failure"),
    (Training, "backbone frozen", "conv1.0.weight has changed"),
    (Thawing, "backbone frozen", "conv1.0.weight asks for a gradient"),
    (Reversed, "signs on a linear head", "over a linear head it gives the sign of act×grad to 0%"),
    (Nothing, "signs on a linear head", "over a linear head it gives the sign of act×grad to 0%"),
    (Exaggerating, "completeness", "over a linear head A misses r - r(baseline) by"),
    (ZerosAsBaseline, "signs on a linear head", "over a linear head it gives the sign of act×grad"),
    (DoubledFromBaseline, "completeness", "over a linear head A misses r - r(baseline) by"),
    (Additive, "completeness", "over a non-linear head A misses r - r(baseline) by"),
    (CutOff, "gradient", "its result is cut off from the pictures"),
    (HalfCutOff, "gradient", "its derivative by the pictures is off finite differences by"),
    (OtherWithGraph, "gradient", "with create_graph and without: values differ by"),
]


@pytest.mark.parametrize(("method", "name", "cause"), WRONG, ids=[w[0].__name__ for w in WRONG])
def test_what_is_wrong_fails_by_its_check(method, name: str, cause: str) -> None:
    failed = {check.name: check.cause for check in attribution_checks(method()) if not check.ok}
    assert name in failed
    assert cause in failed[name]
    others = {  # one mistake may show twice
        Drifting: {"batch equals one by one"},
        Noisy: {"batch equals one by one"},
        Training: {"deterministic", "batch equals one by one"},
        Hooking: {"deterministic"},
    }
    assert failed.keys() - {name} <= others.get(method, set())


def test_all_that_fails_is_in_one_message() -> None:
    class Twice(Reversed):
        additive = True

    with pytest.raises(AssertionError) as error:
        check_attribution(Twice())
    first, *rest = str(error.value).splitlines()
    assert first == "Twice fails 2 of 11 checks"
    assert [line.partition(":")[0] for line in rest] == ["signs on a linear head", "completeness"]


def test_act_times_grad_passes() -> None:
    check_attribution(ActGrad())
    checks = attribution_checks(ActGrad())
    assert len(checks) == 11
    assert {check.name: check.cause for check in checks if check.cause} == {
        "completeness": "not claimed"
    }


def test_a_method_may_decline_a_network() -> None:
    class Convolutional(Product):
        differentiable = True

        def changed(self, result, forward):
            if result.ndim == 3:
                raise InputError("tokens are not supported")
            return result

    class ForTokens(Product):
        differentiable = True

        def changed(self, result, forward):
            if result.ndim == 4:
                raise InputError("maps are not supported")
            return result

    for method, declined in (
        (Convolutional(), "declines tokens: tokens are not supported"),
        (ForTokens(), "declines maps: maps are not supported"),
    ):
        check_attribution(method)
        causes = {check.name: check.cause for check in attribution_checks(method)}
        assert causes["shape"] == causes["gradient"] == declined


def test_a_method_may_not_decline_everything() -> None:
    class Sulking(Product):
        def changed(self, result, forward):
            raise InputError("not today")

    with pytest.raises(AssertionError) as error:
        check_attribution(Sulking())
    assert str(error.value).splitlines()[1:] == [
        "shape: it declines maps: not today; declines tokens: not today; one of them has to do"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("point", entry_points(group=ATTRIBUTIONS), ids=lambda point: point.name)
def test_every_installed_method_passes(point) -> None:
    check_attribution(point.load()())
