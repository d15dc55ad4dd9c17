"""Attribution against plain autograd, its own derivative against finite differences."""

import copy
import logging
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mti_lightning.attribution.methods import (
    ActGrad,
    Attribution,
    Pass,
    attribute,
    check_method,
    check_path,
)
from mti_lightning.backbone.network import Backbone, Layer
from mti_lightning.errors import InputError, RunError
from mti_lightning.features.bound import BoundFeature
from mti_lightning.features.feature import Feature
from mti_lightning.vetoed_shapes.world import VetoedShapes
from tests.test_backbone import FAMILIES, hooks, liven, normalised, plain

Index = tuple[int | slice, ...] | Literal["peak", "mean"]
EVERY = slice(None)


def reference(
    network: nn.Module, pictures: Tensor, layer: str, target: str, index: Index
) -> tuple[Tensor, Tensor, Tensor]:
    """Return activations, attribution and responses by two plain hooks and one plain backward.

    `index` reads the response off the target layer; `peak` and `mean` read channel 5 of a map.
    """
    kept: dict[str, Tensor] = {}

    def leaf(value: Tensor) -> Tensor:
        kept["layer"] = value.detach().requires_grad_()
        return kept["layer"]

    def hook(name: str, act: object) -> None:
        path, _, side = name.partition("/")
        module = network.get_submodule(path)
        if side:
            module.register_forward_pre_hook(lambda _, inputs: (act(inputs[0]), *inputs[1:]))
        else:
            module.register_forward_hook(lambda _, inputs, output: act(output))

    def keep(value: Tensor) -> Tensor:
        kept["target"] = value
        return value

    hook(layer, leaf)
    hook(target, keep)
    network(normalised(network, pictures))
    if index == "peak":
        responses = kept["target"][:, 5].flatten(1).amax(1)
    elif index == "mean":
        responses = kept["target"][:, 5].flatten(1).mean(1)
    else:
        responses = kept["target"][index]
    responses.sum().backward()
    a = kept["layer"]
    assert a.grad is not None
    return a.detach(), (a * a.grad).detach(), responses.detach()


def close(actual: Tensor, expected: Tensor) -> None:
    scale = float(expected.abs().max())
    assert scale > 0
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * scale)


# Attribution layer, feature, where the reference reads it. Pictures are as in FAMILIES.
CASES: list[tuple[str, str, str, Index]] = [
    ("resnet18", "layer2", "layer3.0.act1/input:5@[2,7]", (EVERY, 5, 2, 7)),
    ("resnet18", "layer2.1.act1/input", "layer4.1.act2/input:5@peak", "peak"),
    ("resnet18", "layer4", "fc:5", (EVERY, 5)),
    ("resnet50", "layer3", "layer4.2.act3/input:5@centre", (EVERY, 5, 1, 1)),
    ("resnet50", "layer3.5.act3", "layer4.0.act1/input:5@mean", "mean"),
    ("convnext_tiny", "stages.1", "stages.2.blocks.3.mlp.act/input:5@[2,4]", (EVERY, 2, 4, 5)),
    ("convnext_tiny", "stages.0.blocks.1.mlp.act/input", "head.fc:5", (EVERY, 5)),
    ("efficientnet_b0", "blocks.2", "blocks.3.1.bn1.act/input:5@peak", "peak"),
    ("efficientnet_b0", "blocks.2.0.bn1.act/input", "bn2.act/input:5@centre", (EVERY, 5, 1, 1)),
    ("efficientnet_b0", "blocks.3.0.bn1.act", "blocks.3.0.bn2.act/input:5", (EVERY, 5, 3, 2)),
    ("vit_tiny_patch16_224", "blocks.2", "blocks.5.mlp.act/input:5@0", (EVERY, 0, 5)),
    (
        "vit_tiny_patch16_224",
        "blocks.2.mlp.act/input",
        "blocks.5.mlp.act/input:5@centre",
        (EVERY, 1 + 2 * 6 + 3, 5),
    ),
    ("vit_tiny_patch16_224", "blocks.8", "head:5", (EVERY, 5)),
    ("mobilenetv3_small_100", "blocks.1", "blocks.3.0.bn1.act/input:5@mean", "mean"),
    ("mobilenetv3_small_100", "blocks.2.0.bn1.act/input", "act2/input:5", (EVERY, 5, 0, 0)),
    ("regnety_002", "s2", "s3.b2.conv1.bn.act/input:5@peak", "peak"),
    ("regnety_002", "s2.b1.conv2.bn.act/input", "s3.b2.act3/input:5@[1,2]", (EVERY, 5, 1, 2)),
    (
        "densenet121",
        "features.denseblock2",
        "features.denseblock3.denselayer4.norm2.act/input:5@peak",
        "peak",
    ),
    (
        "densenet121",
        "features.denseblock2.denselayer3.norm1.act/input",
        "features.norm5.act/input:5@[2,1]",
        (EVERY, 5, 2, 1),
    ),
    (
        "swin_tiny_patch4_window7_224",
        "layers.1",
        "layers.2.blocks.1.mlp.act/input:5@centre",
        (EVERY, 7 * 14 + 7, 5),
    ),
    (
        "swin_tiny_patch4_window7_224",
        "layers.0.blocks.1.mlp.act/input",
        "layers.2.blocks.0:5@[3,9]",
        (EVERY, 3, 9, 5),
    ),
]


@pytest.mark.parametrize(("name", "layer", "feature", "index"), CASES)
def test_attribution_equals_plain_autograd_without_operations_in_place(
    name: str, layer: str, feature: str, index: Index
) -> None:
    backbone = Backbone(name, weights="random", input_size=FAMILIES[name])
    liven(backbone.network)
    before = {key: value.clone() for key, value in backbone.network.state_dict().items()}
    pictures = torch.rand(2, 3, *backbone.preprocessing.size)
    bound_feature = BoundFeature(Feature.parse(feature), backbone)
    expected = reference(plain(backbone), pictures, layer, str(bound_feature.layer), index)
    pictures.requires_grad_()
    check_path(backbone, bound_feature, Layer.parse(layer))
    for create_graph in (False, True):
        results = attribute(
            backbone, pictures, [bound_feature] * 2, Layer.parse(layer), ActGrad(), create_graph
        )
        for actual, wanted in zip(results, expected, strict=True):
            close(actual, wanted)
    after = backbone.network.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert hooks(backbone.network) == []


def test_a_piecewise_linear_head_is_explained_to_the_last_bit_of_its_response() -> None:
    backbone = Backbone("vetoed_shapes_resnet")
    world = VetoedShapes(32, seed=5)
    pictures = torch.stack([world[i]["picture"] for i in range(32)])
    logits, bias = backbone(pictures), backbone.network.fc.bias
    for kind in range(8):
        bound_features = [BoundFeature(Feature("fc", kind), backbone)] * 32
        _, a, r = attribute(backbone, pictures, bound_features, Layer("layer4"), ActGrad())
        torch.testing.assert_close(r, logits[:, kind], rtol=1e-5, atol=1e-5)
        error = (a.flatten(1).double().sum(1) + bias[kind] - r).abs()
        assert (error <= 1e-5 * r.abs().clamp(min=1)).all()


def test_features_mixed_in_one_batch_are_as_one_by_one() -> None:
    backbone = Backbone("resnet18", weights="random", input_size=(64, 64))
    liven(backbone.network)
    features = [
        "fc:3",
        "layer4.0.act1/input:5@peak",
        "layer3.1.act1/input:7@1,2",
        "fc:[" + ",".join(map(str, torch.randn(1000).tolist())) + "]",
        "layer4.0.act1/input:5@mean",
        "layer3:9",
    ]
    bound_features = [BoundFeature(Feature.parse(feature), backbone) for feature in features]
    order = [0, 1, 2, 3, 4, 5, 2, 0]
    pictures = torch.rand(len(order), 3, 64, 64)
    mixed = attribute(
        backbone, pictures, [bound_features[i] for i in order], Layer("layer2"), ActGrad()
    )
    for row, i in enumerate(order):
        alone = attribute(
            backbone, pictures[row : row + 1], [bound_features[i]], Layer("layer2"), ActGrad()
        )
        for whole, single in zip(mixed, alone, strict=True):
            close(whole[row : row + 1], single)


@pytest.mark.parametrize(
    ("name", "layer", "feature"),
    [
        ("test_vit", "blocks.2", "blocks.4.mlp.act/input:5@centre"),
        ("test_vit", "blocks.1.mlp.act/input", "head:5"),
        ("test_convnext", "stages.1", "stages.2.blocks.1.mlp.act/input:5@mean"),
    ],
)
def test_the_attribution_s_own_derivative_equals_finite_differences(
    name: str, layer: str, feature: str
) -> None:
    backbone = Backbone(name, weights="random").to(torch.float64)
    liven(backbone.network)
    bound_feature = BoundFeature(Feature.parse(feature), backbone)
    pictures = torch.rand(2, 3, *backbone.preprocessing.size, dtype=torch.float64)
    weighting = torch.randn(2, *backbone.layout(Layer.parse(layer)).shape, dtype=torch.float64)

    def weighted(pictures: Tensor, create_graph: bool) -> Tensor:
        _, attribution, _ = attribute(
            backbone, pictures, [bound_feature] * 2, Layer.parse(layer), ActGrad(), create_graph
        )
        return (attribution * weighting).sum()

    pictures.requires_grad_()
    (gradient,) = torch.autograd.grad(weighted(pictures, True), pictures)
    for _ in range(3):
        direction = torch.randn_like(pictures)
        step = 1e-5 * direction
        with torch.no_grad():
            ahead, behind = (weighted(pictures + sign * step, False) for sign in (1, -1))
        torch.testing.assert_close(
            (gradient * direction).sum(), (ahead - behind) / 2e-5, rtol=1e-5, atol=0
        )


def test_without_create_graph_nothing_of_the_graph_is_kept() -> None:
    backbone = Backbone("resnet18", weights="random", input_size=(64, 64))
    bound_feature = BoundFeature(Feature("fc", 3), backbone)
    pictures = torch.rand(1, 3, 64, 64, requires_grad=True)
    for kept in attribute(backbone, pictures, [bound_feature], Layer("layer2"), ActGrad()):
        assert not kept.requires_grad
    (_, a, _) = attribute(
        backbone, pictures.detach(), [bound_feature], Layer("layer2"), ActGrad(), True
    )
    assert a.requires_grad  # by way of the activations alone
    with torch.no_grad():  # as in validation and in predict
        _, a, _ = attribute(backbone, pictures, [bound_feature], Layer("layer2"), ActGrad())
    assert a.abs().sum() > 0


class Occlusion(Attribution):
    """What the response loses when a channel is set to nought: by forward passes alone."""

    differentiable = False

    def attribute(self, forward: Pass, create_graph: bool) -> Tensor:
        result = torch.zeros_like(forward.activations)
        with torch.no_grad():
            for channel in range(3):
                without = forward.activations.detach().clone()
                without[:, channel] = 0
                result[:, channel, 0, 0] = forward.responses - forward.head(without)
        return result


def test_another_method_can_ask_for_other_activations() -> None:
    backbone = Backbone("vetoed_shapes_resnet")
    bound_feature = BoundFeature(Feature("fc", 3), backbone)
    pictures = torch.stack([VetoedShapes(4, seed=5)[i]["picture"] for i in range(4)])
    _, a, _ = attribute(backbone, pictures, [bound_feature] * 4, Layer("layer4"), ActGrad())
    _, lost, _ = attribute(backbone, pictures, [bound_feature] * 4, Layer("layer4"), Occlusion())
    # The head over the last stage is linear, so what a channel adds is what is lost without it.
    torch.testing.assert_close(lost[:, :3, 0, 0], a[:, :3].sum((2, 3)), rtol=1e-4, atol=1e-5)


def test_a_method_that_fails_leaves_no_hook() -> None:
    class Failing(Attribution):
        differentiable = False

        def attribute(self, forward: Pass, create_graph: bool) -> Tensor:
            forward.head(forward.activations[:, :1])  # of the wrong shape
            raise AssertionError("not reached")

    backbone = Backbone("resnet18", weights="random", input_size=(64, 64))
    bound_feature = BoundFeature(Feature("fc", 3), backbone)
    with pytest.raises(RuntimeError, match="channels"):
        attribute(backbone, torch.rand(1, 3, 64, 64), [bound_feature], Layer("layer2"), Failing())
    assert hooks(backbone.network) == []


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


def test_a_layer_may_be_attributed_to_itself() -> None:
    backbone = Backbone("resnet18", weights="random", input_size=(64, 64))
    bound_feature = BoundFeature(Feature("layer3", 5, position=(1, 2)), backbone)
    check_path(backbone, bound_feature, Layer("layer3"))
    _, a, r = attribute(
        backbone, torch.rand(2, 3, 64, 64), [bound_feature] * 2, Layer("layer3"), ActGrad()
    )
    torch.testing.assert_close(a[:, 5, 1, 2], r)
    assert a.count_nonzero() == r.count_nonzero()


class FromBaseline(Attribution):
    """(a − baseline) ⊙ ∂r/∂a, times `factor`."""

    additive = True
    needs_baseline = True

    def __init__(self, baseline: str | None = None, factor: float = 1.0) -> None:
        self.baseline, self.factor = baseline, factor

    def attribute(self, forward: Pass, create_graph: bool) -> Tensor:
        (gradient,) = torch.autograd.grad(forward.responses.sum(), forward.activations)
        return self.factor * (forward.activations - forward.baseline) * gradient


def test_a_method_knows_what_it_was_made_with() -> None:
    assert FromBaseline().arguments == {"baseline": None, "factor": 1.0}
    assert FromBaseline("mean.npy", factor=2.0).arguments == {"baseline": "mean.npy", "factor": 2.0}
    assert copy.deepcopy(FromBaseline(factor=3.0)).arguments["factor"] == 3.0
    assert ActGrad().arguments == {}
    with pytest.raises(TypeError):
        ActGrad(3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("name", "layer", "feature"),
    [("vetoed_shapes_resnet", "layer4", "fc:3"), ("test_vit", "norm", "head:3")],
)
def test_a_baseline_is_laid_out_as_the_activations_are(
    name: str, layer: str, feature: str, tmp_path: Path
) -> None:
    backbone = Backbone(name, "pretrained" if name == "vetoed_shapes_resnet" else "random")
    site = backbone.layout(Layer(layer))
    values = np.arange(site.channels, dtype=np.float32)
    np.save(tmp_path / "mean.npy", values)
    method = FromBaseline(str(tmp_path / "mean.npy"))
    pictures = torch.rand(2, 3, *backbone.preprocessing.size)
    bound_features = [BoundFeature(Feature.parse(feature), backbone)] * 2
    check_method(method, backbone, Layer(layer), bound_features[0])
    a, plain, _ = attribute(backbone, pictures, bound_features, Layer(layer), ActGrad())
    _, from_zeros, _ = attribute(backbone, pictures, bound_features, Layer(layer), FromBaseline())
    torch.testing.assert_close(from_zeros, plain)
    _, found, _ = attribute(backbone, pictures, bound_features, Layer(layer), method)
    start = torch.from_numpy(values).view([-1, 1, 1] if site.channel_dim == 1 else [-1])
    gradient = torch.where(a == 0, 0, plain / a)
    torch.testing.assert_close(
        torch.where(a == 0, 0, found), (a - start) * gradient, rtol=1e-4, atol=1e-5
    )


def check(method: Attribution, layer: str = "layer4") -> None:
    backbone = Backbone("vetoed_shapes_resnet")
    check_method(method, backbone, Layer(layer), BoundFeature(Feature("fc", 3), backbone))


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (None, "is no .npy of activations: [Errno 2] No such file"),
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


def test_a_pass_leads_to_other_pictures() -> None:
    class Along(Attribution):
        """The change from grey, by a straight way from picture to picture."""

        grey = 0.25

        def attribute(self, forward: Pass, create_graph: bool) -> Tensor:
            self.forward, self.other = forward, forward.at(1 - forward.pictures)
            return forward.activations - forward.baseline

    backbone, pictures, method = (
        Backbone("test_resnet", "random"),
        torch.rand(2, 3, 64, 64),
        Along(),
    )
    bound_features = [BoundFeature(Feature("fc", channel), backbone) for channel in (3, 5)]
    # A shortcut leads round the layer: the head, too, has to be of the other pictures.
    layer = Layer("layer2.0.conv1")
    activations, change, _ = attribute(backbone, pictures, bound_features, layer, method)
    grey = backbone.run(torch.full((1, 3, 64, 64), 0.25), [layer])[layer]
    torch.testing.assert_close(activations - change, grey.expand_as(change))
    assert method.forward.layout == backbone.layout(layer)
    assert method.forward.pictures is pictures
    expected = attribute(backbone, 1 - pictures, bound_features, layer, ActGrad())
    assert torch.equal(method.other.activations, expected[0])
    assert torch.equal(method.other.responses, expected[2])
    torch.testing.assert_close(method.other.head(method.other.activations), expected[2])
    (gradient,) = torch.autograd.grad(method.other.responses.sum(), method.other.activations)
    torch.testing.assert_close(gradient * method.other.activations, expected[1])
    other = method.forward.at(pictures[:1], [1])
    torch.testing.assert_close(
        other.responses, attribute(backbone, pictures[:1], bound_features[1:], layer, ActGrad())[2]
    )
    assert hooks(backbone.network) == []


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


@pytest.mark.parametrize(
    ("result", "cause"),
    [
        (torch.zeros(1, 192), "gave (1, 192) for activations of shape (1, 192, 6, 6)"),
        (None, "gave NoneType for activations of shape (1, 192, 6, 6)"),
        (torch.full((1, 192, 6, 6), torch.nan), "gave values that are not finite"),
    ],
    ids=["shape", "type", "nan"],
)
def test_a_result_that_is_no_attribution_stops_the_run(result: Tensor | None, cause: str) -> None:
    class Wrong(Attribution):
        def attribute(self, forward: Pass, create_graph: bool) -> Tensor:
            return result  # type: ignore[return-value]

    backbone = Backbone("vetoed_shapes_resnet")
    bound_feature = BoundFeature(Feature("fc", 3), backbone)
    with pytest.raises(RunError) as error:
        attribute(backbone, torch.rand(1, 3, 96, 96), [bound_feature], Layer("layer4"), Wrong())
    assert str(error.value) == f"attribution method Wrong of module {__name__} {cause}"
    assert hooks(backbone.network) == []
