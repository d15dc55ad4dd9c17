"""The kit for backbones: each wrong model fails by the check that is for it."""

from functools import cache

import pytest
import timm
import torch
from timm.models import register_model
from torch import Tensor, nn

from mti_lightning.testing import backbone_checks, check_backbone

default_cfgs: dict[str, dict[str, object]] = {}  # where timm looks for them


class Small(nn.Module):
    """A network that is right, for what is wrong to be built on."""

    def __init__(self, num_classes: int = 5, **_: object) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU()
        self.head = nn.Linear(8, num_classes)
        self.register_buffer("seen", torch.zeros(1))
        self.num_classes = num_classes

    def features(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.stem(x))).mean((2, 3))

    def forward(self, x: Tensor):
        return self.head(self.features(x))


class Dropping(Small):
    def forward(self, x):
        return self.head(nn.functional.dropout(self.features(x)))


class BatchNormed(Small):
    def __init__(self, **arguments: object) -> None:
        super().__init__(**arguments)
        self.norm = nn.BatchNorm2d(8, track_running_stats=False)


class Counting(Small):
    def forward(self, x):
        self.seen += len(x)
        return super().forward(x)


class Waking(Small):
    def train(self, mode: bool = True):
        return super().train(True)


class Growing(Small):
    def forward(self, x):
        self.act.register_forward_hook(lambda *_: None)
        return super().forward(x)


class Detached(Small):
    def forward(self, x):
        return self.head(self.features(x.detach()))


class WithoutGraph(Small):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


class Pair(Small):
    def forward(self, x):
        return super().forward(x), x


class Deaf(Small):
    def forward(self, x):
        return super().forward(x * 0)


class Overflowing(Small):
    def forward(self, x):
        return super().forward(x) / 0


class OneModule(Small):
    def forward(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


class _Cubed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 3 * ctx.saved_tensors[0] ** 2 * gradient


class Once(Small):
    def forward(self, x):
        x = self.act(self.norm(self.stem(x)))
        return self.head(_Cubed.apply(x).square().mean((2, 3)))


WRONG_MODELS = [
    (Pair, "output", "in eval mode it gives tuple, no tensor"),
    (Deaf, "output", "it gives the same for different pictures"),
    (Overflowing, "output", "not all outputs are finite"),
    (Dropping, "deterministic", "a second time values differ by"),
    (BatchNormed, "batch equals one by one", "a picture alone and in a batch: values differ by"),
    (Counting, "frozen", "seen has changed"),
    (Waking, "frozen", "the network is in training mode"),
    (Growing, "hooks removed", "module 'act' is hooked or altered by a forward pass"),
    (Detached, "gradient", "its output is cut off from the pictures"),
    (WithoutGraph, "gradient", "its output is cut off from the pictures"),
    (OneModule, "layers", "no two of its modules can be tapped"),
    (
        Once,
        "act×grad and its gradient",
        "its derivative by the pictures is off finite differences by",
    ),
]


@cache
def registered(kind: type[nn.Module]) -> str:
    """Register a class as a timm model and return its name."""

    def build(pretrained: bool = False, **arguments: object) -> nn.Module:
        arguments = {key: value for key, value in arguments.items() if key == "num_classes"}
        return kind(**arguments)

    build.__name__ = f"tests_testing_{kind.__name__.lower()}"
    default_cfgs[build.__name__] = {"input_size": (3, 32, 32)}
    register_model(build)
    return build.__name__


@pytest.mark.parametrize(
    ("model", "name", "cause"), WRONG_MODELS, ids=[w[0].__name__ for w in WRONG_MODELS]
)
def test_a_wrong_model_fails_by_its_check(model, name: str, cause: str) -> None:
    checks = backbone_checks(registered(model))
    failed = {check.name: check.cause for check in checks if not check.ok}
    assert name in failed
    assert cause in failed[name]
    with pytest.raises(AssertionError, match=f"{registered(model)} fails"):
        check_backbone(registered(model))


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_vit", "test_convnext", "vetoed_shapes_resnet"]
)
def test_right_models_pass(name: str) -> None:
    check_backbone(name)
    assert len(backbone_checks(name)) == 9


def test_a_small_model_passes() -> None:
    check_backbone(registered(Small), arguments={"num_classes": 3})
    assert timm.create_model(registered(Small), num_classes=3).num_classes == 3


def test_a_model_without_its_preprocessing() -> None:
    def tests_testing_bare(pretrained: bool = False, **_: object) -> nn.Module:
        return Small()

    register_model(tests_testing_bare)
    with pytest.raises(AssertionError, match="builds: it is registered without default_cfgs"):
        check_backbone("tests_testing_bare")


def test_a_model_that_is_not_there() -> None:
    with pytest.raises(
        AssertionError, match=r"builds: InputError: timm has no model 'resnet5'; did"
    ):
        check_backbone("resnet5")
