"""The kit for backbones: what a model must satisfy to be one."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, final

import timm
import torch
from torch import Tensor

from mti_lightning.attribution.methods import ActGrad, Attribution, attribute
from mti_lightning.backbone import Backbone
from mti_lightning.backbone.layers import usable_layers
from mti_lightning.errors import InputError
from mti_lightning.features.bound import BoundFeature
from mti_lightning.features.feature import Feature
from mti_lightning.registry import find_plugins, layers_of_interest
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
    assert_passed(name, backbone_checks(name, weights, arguments))


def backbone_checks(
    name: str, weights: str = "random", arguments: Mapping[str, Any] | None = None
) -> list[Check]:
    """Run every check of a backbone; all others are left out if it cannot be built or run."""
    return run_checks(
        _CHECKS, _Trial(name, weights, dict(arguments or {})), first=("builds", "output", "layers")
    )


@final
class _Trial:
    """A model, and pictures for it."""

    def __init__(self, name: str, weights: str, arguments: dict[str, Any]) -> None:
        self.name, self._weights, self._arguments = name, weights, arguments

    @cached_property
    def backbone(self) -> Backbone:
        find_plugins(Attribution)  # one of them may register it; other broken ones do not matter
        return Backbone(self.name, self._weights, arguments=self._arguments)

    @cached_property
    def pictures(self) -> Tensor:
        return self.backbone.noise(3)

    @cached_property
    def before(self) -> dict[str, Tensor]:
        return values_of(self.backbone.network)

    @cached_property
    def hooked(self) -> dict[str, object]:
        return hooks_of(self.backbone.network)

    @cached_property
    def output(self) -> Tensor:
        assert self.before is not None
        assert self.hooked is not None
        with torch.no_grad():
            output: Tensor = self.backbone(self.pictures)
        return output


def _builds(trial: _Trial) -> None:
    if timm.is_model(trial.name) and timm.get_pretrained_cfg(trial.name) is None:
        fail("it is registered without default_cfgs, which hold its mean, std and input size")
    mean, std = trial.backbone.mean, trial.backbone.std
    if mean.shape != (3, 1, 1) or std.shape != (3, 1, 1) or not (std > 0).all():
        fail(f"mean {mean.flatten().tolist()}, std {std.flatten().tolist()}: give three of each")


def _outputs(trial: _Trial) -> None:
    output = trial.output
    if not isinstance(output, Tensor):
        fail(f"in eval mode it gives {type(output).__name__}, no tensor")
    if output.ndim < 2 or len(output) != len(trial.pictures):
        fail(f"it gives {tuple(output.shape)} for {len(trial.pictures)} pictures")
    if not output.isfinite().all():
        fail("not all outputs are finite")
    if torch.equal(output[0], output[1]):
        fail("it gives the same for different pictures")


def _repeats(trial: _Trial) -> None:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(12345)
        again = trial.backbone(trial.pictures)
    if not torch.equal(again, trial.output):
        fail(f"a second time {difference_of(again, trial.output, 0)}")


def _pictures_apart(trial: _Trial) -> None:
    for row, picture in enumerate(trial.pictures):
        with torch.no_grad():
            alone = trial.backbone(picture[None])[0]
        if difference := difference_of(alone, trial.output[row]):
            fail(f"a picture alone and in a batch: {difference}")


def _stays_frozen(trial: _Trial) -> None:
    trial.backbone.train()
    check_frozen(trial.backbone, trial.before)


def _no_hooks(trial: _Trial) -> None:
    if changed := name_changed(trial.hooked, hooks_of(trial.backbone.network)):
        fail(f"{changed} is hooked or altered by a forward pass")


def _reaches_pictures(trial: _Trial) -> None:
    leaf = trial.pictures.clone().requires_grad_()
    output = trial.backbone(leaf)
    if not output.requires_grad:
        fail("its output is cut off from the pictures")
    (gradient,) = torch.autograd.grad(output.square().sum(), leaf, allow_unused=True)
    if gradient is None or not gradient.flatten(1).any(1).all():
        fail("no gradient reaches the pictures")
    if not gradient.isfinite().all():
        fail("not all gradients of the pictures are finite")


def _has_layers(trial: _Trial) -> None:
    layers = usable_layers(trial.backbone)
    if not any(layer.attributable for layer in layers) or len(layers) < 2:
        fail("no two of its modules can be tapped; a layer is a module that runs once in a pass")
    try:
        of_interest = layers_of_interest(trial.name)
    except InputError as error:
        fail(str(error))
    for name in of_interest:
        if name not in {str(layer.layer) for layer in layers}:
            fail(f"LAYERS names {name!r}, which mti layers does not list")


def _attributes(trial: _Trial) -> None:
    backbone = trial.backbone.to(torch.float64)
    *before, target = usable_layers(backbone)
    between = [layer.layer for layer in before if layer.attributable]
    bound_feature = BoundFeature(Feature.parse(target.feature.replace("CHANNEL", "0")), backbone)

    def attributed(pictures: Tensor, create_graph: bool) -> Tensor:
        layer = between[len(between) // 2]  # something before it, something behind it
        return attribute(backbone, pictures, [bound_feature] * 2, layer, ActGrad(), create_graph)[1]

    compare_slopes(attributed, trial.pictures[:2].double(), trial.name)


_CHECKS: dict[str, Callable[[_Trial], str | None]] = {
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
