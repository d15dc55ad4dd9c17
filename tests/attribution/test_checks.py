"""A method is tried before a run, and what it gives is looked at in it."""

import logging
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mti_lightning.attribution.checks import check_method, check_path
from mti_lightning.attribution.methods import ActGrad, Attribution, Pass
from mti_lightning.backbone import Backbone, Layer
from mti_lightning.errors import InputError, RunError
from mti_lightning.features.bound import BoundFeature
from mti_lightning.features.feature import Feature
from tests.attribution.test_methods import FromBaseline, Occlusion
from tests.backbone.networks import hooks


@pytest.mark.parametrize(
    ("layer", "feature"),
    [
        ("layer4", "layer3:5"),  # behind
        ("layer3.0.downsample", "layer3.0.bn2:5"),  # beside
        ("fc", "layer4:5"),
        ("layer3", "layer3/input:5"),
    ],
)
def test_an_attribution_layer_that_does_not_feed_the_target_is_refused(
    layer: str, feature: str
) -> None:
    backbone = Backbone("resnet18", weights="random", input_size=(64, 64))
    bound_feature = BoundFeature(Feature.parse(feature), backbone)
    with pytest.raises(InputError) as error:
        check_path(backbone, bound_feature, Layer.parse(layer))
    assert str(error.value) == (
        f"attribution layer {layer!r} does not feed feature {feature!r}: "
        "it lies behind the target layer or beside it; name an earlier layer"
    )
    assert hooks(backbone.network) == []


def check(method: Attribution, layer: str = "layer4") -> None:
    backbone = Backbone("vetoed_shapes_resnet")
    check_method(method, backbone, Layer(layer), BoundFeature(Feature("fc", 3), backbone))


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (None, "is no .npy of activations: No such file"),
        (b"no array", "is no .npy of activations: "),
        (np.zeros(3), "is of shape (3,); the attribution layer has 192 channels, so it takes (192"),
        (np.zeros((192, 1)), "is of shape (192, 1); the attribution layer has 192 channels"),
        (np.array(["a"] * 192), "is no .npy of activations: can't convert"),
    ],
)
def test_a_baseline_that_does_not_fit_is_refused(
    content: bytes | np.ndarray | None, cause: str, tmp_path: Path
) -> None:
    path = tmp_path / "mean.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(InputError) as error:
        check(FromBaseline(str(path)))
    assert str(error.value).startswith(f"baseline {str(path)!r} {cause}")


def test_a_baseline_for_a_method_that_takes_none_is_refused() -> None:
    method = ActGrad()
    method.baseline = "mean.npy"
    with pytest.raises(InputError, match=r"ActGrad takes no baseline; leave 'mean\.npy' out"):
        check(method)


def test_it_is_said_once_where_signs_do_not_add_up(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mti_lightning"):
        for method in (ActGrad(), FromBaseline(), Occlusion()):
            check(method)
    assert caplog.messages == ["Occlusion is not additive: E+ less E- is not the response"]


class Broken(FromBaseline):
    def attribute(self, forward: Pass, create_graph: bool) -> Tensor:
        warnings.warn("of a picture that is not the user's", stacklevel=1)
        if self.factor == 1:
            raise KeyError("no\n such thing")
        return torch.rand(1)


@pytest.mark.parametrize(
    ("factor", "cause"),
    [
        (1.0, "fails: KeyError: 'no\\n such thing'"),
        (2.0, "gave (1,) for activations of shape (1, 192, 6, 6)"),
    ],
)
def test_a_method_is_tried_before_the_run(factor: float, cause: str) -> None:
    backbone, state = Backbone("vetoed_shapes_resnet"), torch.get_rng_state()
    with pytest.raises(RunError) as error:
        check(Broken(factor=factor))
    assert str(error.value) == f"attribution method Broken of module {__name__} {cause}"
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(InputError, match="'fc' does not feed feature 'layer1:3'"):
        check_method(
            FromBaseline(), backbone, Layer("fc"), BoundFeature(Feature("layer1", 3), backbone)
        )
