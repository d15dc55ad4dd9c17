"""Attribution against plain autograd."""

import pytest
import torch
from torch import Tensor

from mti_lightning.attribution.checks import check_path
from mti_lightning.attribution.methods import ActGrad, Attribution, Pass, attribute
from mti_lightning.backbone import Backbone, Layer
from mti_lightning.errors import RunError
from mti_lightning.features.bound import BoundFeature
from mti_lightning.features.feature import Feature
from mti_lightning.vetoed_shapes.world import VetoedShapes
from tests.attribution.autograd import EVERY, Index, close, reference
from tests.backbone.networks import FAMILIES, hooks, liven, plain

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
    backbone.double()  # in which rounding opens or closes no ReLU
    before = {key: value.clone() for key, value in backbone.network.state_dict().items()}
    pictures = torch.rand(2, 3, *backbone.preprocessing.size).double()
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


def test_a_layer_may_be_attributed_to_itself() -> None:
    backbone = Backbone("resnet18", weights="random", input_size=(64, 64))
    bound_feature = BoundFeature(Feature("layer3", 5, position=(1, 2)), backbone)
    check_path(backbone, bound_feature, Layer("layer3"))
    _, a, r = attribute(
        backbone, torch.rand(2, 3, 64, 64), [bound_feature] * 2, Layer("layer3"), ActGrad()
    )
    torch.testing.assert_close(a[:, 5, 1, 2], r)
    assert a.count_nonzero() == r.count_nonzero()


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
