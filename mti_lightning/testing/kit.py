"""The conformance kit: what every attribution method and every backbone must satisfy.

A plugin's own test takes three lines:

    from mti_lightning.testing.kit import check_attribution

    def test_my_method():
        check_attribution(MyMethod())

Nothing that a plugin declares is believed; what it claims is tried.
"""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Never, TypeVar, final

import timm
import torch
from torch import Tensor, nn

from mti_lightning.attribution.methods import ActGrad, Attribution, Pass, attribute
from mti_lightning.backbone.layers import usable_layers
from mti_lightning.backbone.network import Backbone, Layer
from mti_lightning.errors import InputError
from mti_lightning.features.bound import BoundFeature
from mti_lightning.features.feature import Feature
from mti_lightning.registry import find_plugins, layers_of_interest
from mti_lightning.vetoed_shapes.world import VetoedShapes

_SAME = 1e-4  # of the largest value: what batches of other sizes may differ by, in float32
_SLOPE = 0.01  # of a derivative, against finite differences in float64
_COMPLETE = {True: 0.001, False: 0.05}  # of |r|, over a linear head or another
_SIGNS = 0.99  # of what act×grad attributes over a linear head
_STEP = 1e-8

Trial = TypeVar("Trial")


@final
@dataclass(frozen=True)
class Check:
    """A check's result; `cause` says what was wrong, or what a method that passed declines."""

    name: str
    ok: bool
    cause: str = ""


def check_attribution(method: Attribution) -> None:
    """Make sure that an attribution method keeps its word.

    Raises:
        AssertionError: If it does not: all checks that failed, each with its cause.
    """
    _assert(type(method).__name__, attribution_checks(method))


def check_backbone(
    name: str, weights: str = "random", arguments: Mapping[str, Any] | None = None
) -> None:
    """Make sure that a model is fit to be a backbone.

    Args:
        name: The name it is registered by with timm.
        weights: As for `Backbone`.
        arguments: Further arguments for `timm.create_model`.

    Raises:
        AssertionError: If it is not: all checks that failed, each with its cause.
    """
    _assert(name, backbone_checks(name, weights, arguments))


def attribution_checks(method: Attribution) -> list[Check]:
    """Run every check of an attribution method; without a fit result the others are left out."""
    return _run(_METHOD, _MethodTrial(method))


def backbone_checks(
    name: str, weights: str = "random", arguments: Mapping[str, Any] | None = None
) -> list[Check]:
    """Run every check of a backbone; all others are left out if it cannot be built or run."""
    return _run(_BACKBONE, _BackboneTrial(name, weights, dict(arguments or {})))


def _assert(subject: str, checks: list[Check]) -> None:
    failed = [f"{check.name}: {check.cause}" for check in checks if not check.ok]
    if failed:
        raise AssertionError(
            f"{subject} fails {len(failed)} of {len(checks)} checks\n" + "\n".join(failed)
        )


class _Failure(Exception):  # noqa: N818  what a check finds
    """A check failed; the message is its cause."""


def _run(checks: Mapping[str, Callable[[Trial], str | None]], trial: Trial) -> list[Check]:
    results: list[Check] = []
    for name, check in checks.items():
        try:
            with warnings.catch_warnings():  # a method may warn of what the kit gives it
                warnings.simplefilter("ignore")
                results.append(Check(name, True, check(trial) or ""))
        except _Failure as failure:
            results.append(Check(name, False, str(failure)))
        except Exception as error:  # noqa: BLE001  a plugin may fail in any way
            cause = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            results.append(Check(name, False, cause))
        if name in _FIRST and not results[-1].ok:
            break
    return results


def _fail(cause: str) -> Never:
    raise _Failure(cause)


# Attribution methods


class _Given(NamedTuple):
    """What a method was given, and what it made of it."""

    forward: Pass
    before: Tensor  # the activations, as they were
    result: Any


@final
class _Watch(Attribution):
    """Stands between `attribute`, which stops at a wrong result, and the method."""

    def __init__(self, method: Attribution, fails: bool, from_mean: bool) -> None:
        self.method, self.fails, self.from_mean = method, fails, from_mean
        self.baseline, self.grey = method.baseline, method.grey
        self.given: _Given | None = None

    def attribute(self, forward: Pass, create_graph: bool) -> Tensor:
        before = forward.activations.detach().clone()
        if self.from_mean:
            dims = (0, *forward.layout.position_dims)
            forward = replace(forward, baseline=before.mean(dims, keepdim=True))
        passed = replace(forward, head=_broken) if self.fails else forward
        result = self.method.attribute(passed, create_graph)
        self.given = _Given(forward, before, result)
        return forward.activations


def _broken(_: Tensor) -> Never:
    raise _Broken


class _Broken(Exception):  # noqa: N818  raised on purpose
    """A head that fails, as where memory runs out."""


class _World(NamedTuple):
    """A network that methods are tried on; over its last layer the head is linear."""

    lies: str  # how its activations do
    backbone: Backbone
    pictures: Tensor
    head: str
    layer: str
    last: str


@final
class _MethodTrial:
    """A method, and the networks it is tried on.

    They are the vetoed shapes', and a small transformer of random weights, which is smooth and
    lays its activations out as tokens. A method may decline one of them.
    """

    channels: Sequence[int] = (0, 3, 5)  # each picture has a feature of its own

    def __init__(self, method: Attribution) -> None:
        self.method, self.declined = method, ""

    @cached_property
    def accepted(self) -> dict[_World, _Given]:
        """The networks that it does not decline, and what it gives for two pictures.

        Raises:
            _Failure: If there are none.
        """
        shapes, vit = Backbone("vetoed_shapes_resnet"), Backbone("test_vit", "random")
        shown = VetoedShapes(3, seed=7)
        pictures = torch.stack([shown[i]["picture"] for i in range(3)])  # [3, 3, 96, 96]
        size = (3, 3, *vit.preprocessing.size)
        noise = torch.rand(size, generator=torch.Generator().manual_seed(0))
        found: dict[_World, _Given] = {}
        for world in (
            _World("maps", shapes, pictures, "fc", "layer3", "layer4"),
            _World("tokens", vit, noise, "head", "blocks.1", "norm"),
        ):
            try:
                found[world] = self.attribute(world, slice(2))
            except InputError as error:
                self.declined += f"{'; ' * bool(self.declined)}declines {world.lies}: {error}"
        if not found:
            _fail(f"it {self.declined}; one of them has to do")
        return found

    @cached_property
    def world(self) -> _World:
        return next(iter(self.accepted))

    @cached_property
    def batch(self) -> _Given:
        return self.attribute(self.world)

    @cached_property
    def bent(self) -> list[_Given]:
        return [self.batch, *self._from_mean(self.world.layer)]

    @cached_property
    def linear(self) -> list[_Given]:
        last = self.world.last
        return [self.attribute(self.world, layer=last), *self._from_mean(last)]

    def _from_mean(self, layer: str) -> list[_Given]:
        """Attribute from the mean activation, where the method takes any baseline."""
        if not self.method.needs_baseline or self.method.grey is not None:
            return []
        return [self.attribute(self.world, layer=layer, from_mean=True)]

    def attribute(
        self,
        world: _World,
        rows: slice = slice(None),
        layer: str = "",
        create_graph: bool = False,
        fails: bool = False,
        from_mean: bool = False,
    ) -> _Given:
        backbone = world.backbone
        bound_features = [
            BoundFeature(Feature(world.head, channel), backbone) for channel in self.channels[rows]
        ]
        watch = _Watch(self.method, fails, from_mean)
        on = Layer.parse(layer or world.layer)
        attribute(backbone, world.pictures[rows], bound_features, on, watch, create_graph)
        assert watch.given is not None
        return watch.given


def _declares(trial: _MethodTrial) -> None:
    method = trial.method
    if not isinstance(method, Attribution):
        _fail(f"{method!r} is no Attribution")
    for name in ("differentiable", "additive", "needs_baseline"):
        if not isinstance(getattr(method, name), bool):
            _fail(f"{name} is {getattr(method, name)!r}, neither True nor False")
    if method.baseline is not None and not method.needs_baseline:
        _fail(f"it has the baseline {method.baseline!r}, but needs_baseline is False")


def _has_shape(given: _Given) -> None:
    activations, result = given.forward.activations, given.result
    if not isinstance(result, Tensor):
        _fail(f"it gave {type(result).__name__}, no tensor")
    if result.shape != activations.shape:
        _fail(f"it gave {tuple(result.shape)} for activations of {tuple(activations.shape)}")
    if result.dtype != activations.dtype:
        _fail(f"it gave {result.dtype} for activations in {activations.dtype}")


def _shape(trial: _MethodTrial) -> str:
    for given in trial.accepted.values():
        _has_shape(given)
    return trial.declined


def _finite(trial: _MethodTrial) -> None:
    for given in (trial.batch, *trial.linear):
        if not given.result.isfinite().all():
            _fail("not all values are finite")


def _deterministic(trial: _MethodTrial) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        state = torch.get_rng_state()
        again = trial.attribute(trial.world)
        if not torch.equal(torch.get_rng_state(), state):
            _fail("it draws from the global random generator; give it a generator of its own")
    if not torch.equal(again.result, trial.batch.result):
        _fail(f"a second time {_difference(again.result, trial.batch.result, 0)}")


def _one_by_one(trial: _MethodTrial) -> None:
    for row in range(len(trial.channels)):
        alone = trial.attribute(trial.world, slice(row, row + 1))
        _has_shape(alone)
        if difference := _difference(alone.result[0], trial.batch.result[row]):
            _fail(f"a picture alone and in a batch: {difference}")


def _difference(found: Tensor, expected: Tensor, tolerance: float = _SAME) -> str:
    found, expected = found.detach(), expected.detach()
    scale = float(expected.abs().max().clamp(min=1e-12))
    share = float((found - expected).abs().max()) / scale
    return "" if share <= tolerance else f"values differ by {share:.2g} of the largest"


def _untouched(trial: _MethodTrial) -> None:
    for given in (trial.batch, *trial.linear):
        if not torch.equal(given.forward.activations.detach(), given.before):
            _fail("it overwrites the activations that it is given")


def _hooks_removed(trial: _MethodTrial) -> None:
    network = trial.world.backbone.network
    before = _hooks(network)
    for fails in (False, True):
        with suppress(_Broken):
            trial.attribute(trial.world, slice(1), fails=fails)
        if changed := _changed(before, _hooks(network)):
            _fail(f"{changed} is left hooked or altered{' after a failure' if fails else ''}")


def _frozen(trial: _MethodTrial) -> None:
    before = _values(trial.world.backbone.network)
    trial.attribute(trial.world, slice(1))
    _check_frozen(trial.world.backbone, before)


def _signs(trial: _MethodTrial) -> None:
    for forward, activations, result in trial.linear:
        leaf = activations.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(forward.head(leaf).sum(), leaf)
        start = forward.baseline if trial.method.needs_baseline else 0.0
        expected = (activations - start) * gradient
        agree = expected.abs()[result.sign() == expected.sign()].sum() / expected.abs().sum()
        if agree < _SIGNS:
            _fail(
                f"over a linear head it gives the sign of act×grad to {agree:.0%} of it; "
                f"{_SIGNS:.0%} is asked for"
            )


def _complete(trial: _MethodTrial) -> str | None:
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
            _fail(
                f"it claims to be additive, but over a {'linear' if linear else 'non-linear'} head "
                f"A misses r - r(baseline) by {share:.2g} of |r|; {_COMPLETE[linear]} is allowed"
            )
    return None


def _gradient(trial: _MethodTrial) -> str | None:
    if not trial.method.differentiable:
        return "not claimed"
    for world in trial.accepted:
        backbone = copy.deepcopy(world.backbone).to(torch.float64)
        _check_slopes(trial, world._replace(backbone=backbone))
    return trial.declined


def _check_slopes(trial: _MethodTrial, world: _World) -> None:
    def attributed(pictures: Tensor, create_graph: bool) -> Tensor:
        shown = world._replace(pictures=pictures)
        result: Tensor = trial.attribute(shown, slice(2), create_graph=create_graph).result
        return result

    _compare_slopes(attributed, world.pictures[:2].double(), world.backbone.name)


def _compare_slopes(
    attributed: Callable[[Tensor, bool], Tensor], pictures: Tensor, network: str
) -> None:
    """Compare derivatives of an attribution by float64 pictures with finite differences."""
    generator = torch.Generator().manual_seed(1)
    leaf = pictures.clone().requires_grad_()
    result = attributed(leaf, True)
    if difference := _difference(result, attributed(pictures, False)):
        _fail(f"with create_graph and without: {difference}")
    if not result.requires_grad:
        _fail("it claims to be differentiable, but its result is cut off from the pictures")
    weights = torch.randn(result.shape, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((result * weights).sum(), leaf, allow_unused=True)
    gradient = torch.zeros_like(pictures) if gradient is None else gradient
    directions = torch.randn(2, *pictures.shape, generator=generator, dtype=torch.float64)
    found = (directions * gradient).flatten(1).sum(1)
    ahead, behind = (
        torch.stack([(attributed(pictures + way * d, False) * weights).sum() for d in directions])
        for way in (_STEP, -_STEP)
    )
    expected = (ahead - behind).detach() / (2 * _STEP)
    error = float((found - expected).norm() / expected.norm().clamp(min=1e-6))
    if not error <= _SLOPE:
        _fail(
            f"in float64 its derivative by the pictures is off finite differences by {error:.0%} "
            f"on {network}; {_SLOPE:.0%} is allowed"
        )


_METHOD: dict[str, Callable[[_MethodTrial], str | None]] = {
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


# Backbones


@final
class _BackboneTrial:
    """A model, and pictures for it."""

    def __init__(self, name: str, weights: str, arguments: dict[str, Any]) -> None:
        self.name, self._weights, self._arguments = name, weights, arguments

    @cached_property
    def backbone(self) -> Backbone:
        find_plugins(Attribution)  # one of them may register it; other broken ones do not matter
        return Backbone(self.name, self._weights, arguments=self._arguments)

    @cached_property
    def pictures(self) -> Tensor:
        size = (3, 3, *self.backbone.preprocessing.size)
        return torch.rand(size, generator=torch.Generator().manual_seed(0))

    @cached_property
    def before(self) -> dict[str, Tensor]:
        return _values(self.backbone.network)

    @cached_property
    def hooked(self) -> dict[str, object]:
        return _hooks(self.backbone.network)

    @cached_property
    def output(self) -> Tensor:
        assert self.before is not None
        assert self.hooked is not None
        with torch.no_grad():
            output: Tensor = self.backbone(self.pictures)
        return output


def _builds(trial: _BackboneTrial) -> None:
    if timm.is_model(trial.name) and timm.get_pretrained_cfg(trial.name) is None:
        _fail("it is registered without default_cfgs, which hold its mean, std and input size")
    mean, std = trial.backbone.mean, trial.backbone.std
    if mean.shape != (3, 1, 1) or std.shape != (3, 1, 1) or not (std > 0).all():
        _fail(f"mean {mean.flatten().tolist()}, std {std.flatten().tolist()}: give three of each")


def _outputs(trial: _BackboneTrial) -> None:
    output = trial.output
    if not isinstance(output, Tensor):
        _fail(f"in eval mode it gives {type(output).__name__}, no tensor")
    if output.ndim < 2 or len(output) != len(trial.pictures):
        _fail(f"it gives {tuple(output.shape)} for {len(trial.pictures)} pictures")
    if not output.isfinite().all():
        _fail("not all outputs are finite")
    if torch.equal(output[0], output[1]):
        _fail("it gives the same for different pictures")


def _repeats(trial: _BackboneTrial) -> None:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(12345)
        again = trial.backbone(trial.pictures)
    if not torch.equal(again, trial.output):
        _fail(f"a second time {_difference(again, trial.output, 0)}")


def _pictures_apart(trial: _BackboneTrial) -> None:
    for row, picture in enumerate(trial.pictures):
        with torch.no_grad():
            alone = trial.backbone(picture[None])[0]
        if difference := _difference(alone, trial.output[row]):
            _fail(f"a picture alone and in a batch: {difference}")


def _stays_frozen(trial: _BackboneTrial) -> None:
    trial.backbone.train()
    _check_frozen(trial.backbone, trial.before)


def _no_hooks(trial: _BackboneTrial) -> None:
    if changed := _changed(trial.hooked, _hooks(trial.backbone.network)):
        _fail(f"{changed} is hooked or altered by a forward pass")


def _reaches_pictures(trial: _BackboneTrial) -> None:
    leaf = trial.pictures.clone().requires_grad_()
    output = trial.backbone(leaf)
    if not output.requires_grad:
        _fail("its output is cut off from the pictures")
    (gradient,) = torch.autograd.grad(output.square().sum(), leaf, allow_unused=True)
    if gradient is None or not gradient.flatten(1).any(1).all():
        _fail("no gradient reaches the pictures")
    if not gradient.isfinite().all():
        _fail("not all gradients of the pictures are finite")


def _has_layers(trial: _BackboneTrial) -> None:
    layers = usable_layers(trial.backbone)
    if not any(layer.attributable for layer in layers) or len(layers) < 2:
        _fail("no two of its modules can be tapped; a layer is a module that runs once in a pass")
    try:
        of_interest = layers_of_interest(trial.name)
    except InputError as error:
        _fail(str(error))
    for name in of_interest:
        if name not in {str(layer.layer) for layer in layers}:
            _fail(f"LAYERS names {name!r}, which mti layers does not list")


def _attributes(trial: _BackboneTrial) -> None:
    backbone = trial.backbone.to(torch.float64)
    *before, target = usable_layers(backbone)
    between = [layer.layer for layer in before if layer.attributable]
    bound_feature = BoundFeature(Feature.parse(target.feature.replace("CHANNEL", "0")), backbone)

    def attributed(pictures: Tensor, create_graph: bool) -> Tensor:
        layer = between[len(between) // 2]  # something before it, something behind it
        return attribute(backbone, pictures, [bound_feature] * 2, layer, ActGrad(), create_graph)[1]

    _compare_slopes(attributed, trial.pictures[:2].double(), trial.name)


_BACKBONE: dict[str, Callable[[_BackboneTrial], str | None]] = {
    "builds": _builds,
    "output": _outputs,
    "deterministic": _repeats,
    "batch equals one by one": _pictures_apart,
    "frozen": _stays_frozen,
    "hooks removed": _no_hooks,
    "gradient": _reaches_pictures,
    "layers": _has_layers,
    "act×grad and its gradient": _attributes,
}
_FIRST = (
    "declarations",
    "shape",
    "finite",
    "builds",
    "output",
    "layers",
)  # others follow from them


# What may not change


def _values(network: nn.Module) -> dict[str, Tensor]:
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return {name: value.detach().clone() for name, value in tensors.items()}


def _check_frozen(backbone: Backbone, before: Mapping[str, Tensor]) -> None:
    network = backbone.network
    for name, module in network.named_modules():
        if module.training:
            _fail(f"{name or 'the network'} is in training mode")
    after = _values(network)
    for name, value in before.items():
        if name not in after or not torch.equal(after[name], value):
            _fail(f"{name} has changed")
    for name, parameter in network.named_parameters():
        if parameter.requires_grad or parameter.grad is not None:
            _fail(f"{name} asks for a gradient")


def _hooks(network: nn.Module) -> dict[str, object]:
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


def _changed(before: Mapping[str, object], after: Mapping[str, object]) -> str:
    """Name the first module that is no longer what it was."""
    for name in {**before, **after}:
        if before.get(name) != after.get(name):
            return f"module {name!r}"
    return ""
