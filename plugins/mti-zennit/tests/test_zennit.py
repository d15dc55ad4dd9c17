"""Relevance against zennit on torchvision's networks, and what must stay as it was."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from mti_zennit import ModifiedGradient, Relevance
from torch import Tensor, nn
from zennit import composites
from zennit.attribution import Gradient
from zennit.rules import Epsilon
from zennit.torchvision import ResNetCanonizer
from zennit.types import Linear

from mti_lightning import (
    ActGrad,
    Attribution,
    Backbone,
    BoundFeature,
    Feature,
    InputError,
    Layer,
    VetoedShapes,
    attribute,
)
from mti_lightning.cli import main
from mti_lightning.testing import check_attribution

CONFIGS = Path(__file__).parents[1] / "configs"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    scale = float(expected.abs().max())
    assert scale > 0
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale)


def liven(network: nn.Module) -> None:
    """Give batch norms statistics of their own.

    And no ε: zennit leaves it in those that it has merged, so that its pass is not quite the
    network's, while the activations that a method is given are.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
            for value in (module.weight, module.running_var):
                value.data.uniform_(0.5, 1.5)
            for value in (module.bias, module.running_mean):
                value.data.uniform_(-0.1, 0.1)


def shapes(count: int) -> Tensor:
    world = VetoedShapes(count, seed=5)
    return torch.stack([world[index]["picture"] for index in range(count)])


def run(
    backbone: Backbone,
    pictures: Tensor,
    feature: str,
    layer: str,
    method: Attribution,
    create_graph: bool = False,
) -> Tensor:
    bound_feature = BoundFeature(Feature.parse(feature), backbone)
    result: Tensor = attribute(
        backbone,
        pictures,
        [bound_feature] * len(pictures),
        Layer.parse(layer),
        method,
        create_graph,
    )[1]
    return result


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Backbone]:
    """torchvision's and timm's ResNet-18 with the same weights."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=10).eval()
    liven(network)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(network.state_dict(), path)
    backbone = Backbone(
        "resnet18", str(path), input_size=(64, 64), arguments={"num_classes": 10}
    ).to(torch.float64)
    for module in backbone.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
    return network.double(), backbone


def propagated(
    network: nn.Module, composite: composites.Composite, inputs: Tensor, channel: int, layer: str
) -> Tensor:
    """Return the relevance that reaches a layer, by zennit alone."""
    kept: list[Tensor] = []
    path, _, side = layer.partition("/")

    def keep(value: Tensor) -> Tensor:
        kept.append(value)
        return value.clone()

    with composite.context(network):
        module = network.get_submodule(path)
        handle = (
            module.register_forward_pre_hook(lambda _, given: keep(given[0]), prepend=True)
            if side
            else module.register_forward_hook(lambda _module, _given, output: keep(output))
        )
        response = network(inputs.requires_grad_())[:, channel]
        (relevance,) = torch.autograd.grad(response, kept[0], response.detach())
        handle.remove()
    return relevance


def _epsilon() -> composites.Composite:
    rules = [*composites.layer_map_base(), (Linear, Epsilon())]
    return composites.LayerMapComposite(rules, canonizers=[ResNetCanonizer()])


def _gamma_box() -> composites.Composite:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    low, high = -mean / std, (1 - mean) / std
    return composites.EpsilonGammaBox(low, high, canonizers=[ResNetCanonizer()])


COMPOSITES: dict[str, Callable[[], composites.Composite]] = {
    "epsilon": _epsilon,
    "epsilon_gamma_box": _gamma_box,
    **{
        name: lambda name=name: composites.COMPOSITES[name](canonizers=[ResNetCanonizer()])
        for name in (
            "epsilon_plus",
            "epsilon_plus_flat",
            "epsilon_alpha2_beta1",
            "epsilon_alpha2_beta1_flat",
        )
    },
}


@pytest.mark.parametrize("layer", ["layer3", "layer2.1.conv2/input", "layer1.0.bn1", "conv1/input"])
@pytest.mark.parametrize("name", COMPOSITES)
def test_relevance_is_that_of_zennit_on_torchvision_s_twin(
    name: str, layer: str, twins: tuple[nn.Module, Backbone]
) -> None:
    network, backbone = twins
    pictures = torch.rand(3, 3, 64, 64, dtype=torch.float64)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    expected = propagated(network, COMPOSITES[name](), (pictures - mean) / std, 5, layer)
    close(run(backbone, pictures, "fc:5", layer, Relevance(name)), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["beta_smooth", "guided_backprop", "deconvnet"])
def test_a_bent_gradient_is_that_of_zennit(name: str, twins: tuple[nn.Module, Backbone]) -> None:
    network, backbone = twins
    # torchvision's block uses one ReLU for both, of which zennit would keep the last input.
    twin = timm.create_model("resnet18", num_classes=10).eval().double()
    twin.load_state_dict(network.state_dict())
    for module in twin.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
    pictures = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    kept: list[Tensor] = []
    with composites.COMPOSITES[name]().context(twin):
        twin.layer2.register_forward_hook(lambda _module, _given, output: kept.append(output))
        response = twin(((pictures - mean) / std).requires_grad_())[:, 5]
        (gradient,) = torch.autograd.grad(response.sum(), kept[0])
    found = run(backbone, pictures, "fc:5", "layer2", ModifiedGradient(name))  # type: ignore[arg-type]
    close(found, (kept[0] * gradient).detach())


@pytest.mark.parametrize("layer", ["layer4", "layer3", "layer2.0.act1/input"])
def test_the_plain_gradient_is_act_times_grad(layer: str) -> None:
    backbone, pictures = Backbone("vetoed_shapes_resnet"), shapes(4)
    for kind in (0, 3):
        expected = run(backbone, pictures, f"fc:{kind}", layer, ActGrad())
        close(
            run(backbone, pictures, f"fc:{kind}", layer, ModifiedGradient("none")), expected, 1e-6
        )


@pytest.mark.parametrize("place", [1, 2, 3], ids=["layer2", "layer3", "layer4"])
def test_act_grad_captum_and_zennit_give_the_same(place: int) -> None:
    captum = pytest.importorskip("mti_captum")
    backbone, pictures = Backbone("vetoed_shapes_resnet"), shapes(4)
    network, layer = backbone.network, f"layer{place + 1}"
    stages = [network.layer1, network.layer2, network.layer3, network.layer4]
    head = nn.Sequential(*stages[place + 1 :], network.global_pool, network.fc)
    activations = backbone.run(pictures, [Layer(layer)])[Layer(layer)].detach()
    for kind in (0, 3):
        one = torch.eye(8)[[kind] * len(pictures)]
        _, gradient = Gradient(head)(activations.clone(), one)
        for method in (ActGrad(), captum.GradientXActivation(), ModifiedGradient("none")):
            found = run(backbone, pictures, f"fc:{kind}", layer, method)
            close(found, activations * gradient, 1e-6)


def test_over_a_linear_head_every_composite_is_act_times_grad() -> None:
    backbone, pictures = Backbone("vetoed_shapes_resnet"), shapes(8)
    expected = run(backbone, pictures, "fc:3", "layer4", ActGrad())
    for name in ("epsilon", "epsilon_plus", "epsilon_gamma_box", "epsilon_alpha2_beta1"):
        close(run(backbone, pictures, "fc:3", "layer4", Relevance(name)), expected, 1e-4)


def test_the_layer_below_the_feature_keeps_its_signs() -> None:
    backbone, pictures = Backbone("vetoed_shapes_resnet"), shapes(8)
    bound_feature = BoundFeature(Feature.parse("layer4.0.bn2:40@centre"), backbone)
    layer = Layer("layer4.0.act1")
    _, expected, responses = attribute(backbone, pictures, [bound_feature] * 8, layer, ActGrad())
    assert (responses < 0).any()
    for name in ("epsilon_plus", "epsilon_alpha2_beta1"):
        _, found, _ = attribute(backbone, pictures, [bound_feature] * 8, layer, Relevance(name))
        close(found, expected, 1e-4)


@pytest.mark.parametrize(
    "method", [Relevance(), ModifiedGradient(), ModifiedGradient("none")], ids=lambda m: m.composite
)
def test_it_keeps_its_word(method: Attribution) -> None:
    check_attribution(method)


def test_relevance_is_linear_in_the_feature() -> None:
    backbone, pictures = Backbone("vetoed_shapes_resnet"), shapes(4)
    weights = [0.5, 0, -1, 0, 0, 2, 0, 0]
    whole = run(backbone, pictures, f"fc:{weights}", "layer3", Relevance())
    parts = [
        weight * run(backbone, pictures, f"fc:{kind}", "layer3", Relevance())
        for kind, weight in enumerate(weights)
    ]
    close(whole, torch.stack(parts).sum(0))
    rows, columns = backbone.layout(Layer("layer4")).grid
    places = [
        run(backbone, pictures, f"layer4:7@{row},{column}", "layer3", Relevance())
        for row in range(rows)
        for column in range(columns)
    ]
    mean = run(backbone, pictures, "layer4:7@mean", "layer3", Relevance())
    close(mean, torch.stack(places).mean(0))


def test_a_sum_before_its_activation_function_gets_what_the_function_gets() -> None:
    backbone, pictures = Backbone("vetoed_shapes_resnet"), shapes(8)
    bound_features = [f"layer4.0.act2{side}:40@peak" for side in ("", "/input")]
    after, before = (
        run(backbone, pictures, bound_feature, "layer3", Relevance("epsilon"))
        for bound_feature in bound_features
    )
    responds = after.flatten(1).any(1)
    assert responds.sum() > 2
    close(before[responds], after[responds])


def test_a_batch_is_as_one_by_one_and_holds_several_features() -> None:
    backbone, pictures = Backbone("vetoed_shapes_resnet"), shapes(3)
    bound_features = [BoundFeature(Feature("fc", kind), backbone) for kind in (0, 3, 5)]
    layer, method = Layer("layer3"), Relevance("epsilon_alpha2_beta1")
    _, batch, _ = attribute(backbone, pictures, bound_features, layer, method)
    for row, bound_feature in enumerate(bound_features):
        _, alone, _ = attribute(backbone, pictures[row : row + 1], [bound_feature], layer, method)
        close(batch[row : row + 1], alone)


@pytest.mark.parametrize(
    "method",
    [
        Relevance("epsilon"),
        Relevance("epsilon_plus"),
        Relevance("epsilon_gamma_box"),
        Relevance("epsilon_alpha2_beta1"),
        ModifiedGradient("beta_smooth"),
    ],
    ids=lambda method: method.composite,
)
def test_its_own_derivative_equals_finite_differences(method: Attribution) -> None:
    backbone = Backbone("vetoed_shapes_resnet").to(torch.float64)
    pictures = shapes(2).double()
    weighting = torch.randn(2, *backbone.layout(Layer("layer3")).shape, dtype=torch.float64)

    def weighted(pictures: Tensor, create_graph: bool) -> Tensor:
        found = run(backbone, pictures, "fc:3", "layer3", method, create_graph)
        return (found * weighting).sum()

    pictures.requires_grad_()
    (gradient,) = torch.autograd.grad(weighted(pictures, True), pictures)
    for _ in range(3):
        direction = torch.randn_like(pictures)
        with torch.no_grad():
            ahead, behind = (weighted(pictures + step * direction, False) for step in (1e-8, -1e-8))
        slope = (ahead - behind) / 2e-8
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-3, atol=1e-6)


def state(backbone: Backbone) -> tuple[dict[str, Tensor], list[object]]:
    """Return everything that a method may not change: weights, and what hangs on modules."""
    network = backbone.network
    hung = [
        (name, dict(vars(module)["_forward_hooks"]), dict(vars(module)["_forward_pre_hooks"]))
        for name, module in network.named_modules()
    ]
    flags = [
        (getattr(module, "inplace", None), "forward" in vars(module))
        for module in network.modules()
    ]
    return {key: value.clone() for key, value in network.state_dict().items()}, [*hung, *flags]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("method", [Relevance(), ModifiedGradient("guided_backprop")])
def test_the_backbone_is_left_as_it_was(method: Attribution, fails: bool) -> None:
    backbone, pictures = Backbone("vetoed_shapes_resnet"), shapes(2)

    def fail(*_: object) -> None:
        if fails and vars(backbone.network)["_forward_pre_hooks"]:  # where the rules begin
            raise RuntimeError("stop")

    other = backbone.network.layer3.register_forward_hook(fail)
    weights, hung = state(backbone)
    with pytest.raises(RuntimeError, match="stop") if fails else nullcontext():
        run(backbone, pictures, "fc:3", "layer2", method)
    after, hung_after = state(backbone)
    assert hung == hung_after
    assert weights.keys() == after.keys()
    assert all(torch.equal(after[key], value) for key, value in weights.items())
    assert not any(parameter.requires_grad for parameter in backbone.network.parameters())
    assert other.id in backbone.network.layer3._forward_hooks


@pytest.mark.parametrize(
    ("model", "layer", "feature", "what"),
    [
        ("test_vit", "blocks.2", "head:3", "modules of type LayerNorm"),
        ("test_efficientnet", "blocks.2", "classifier:3", "the function MulBackward outside of"),
        ("test_convnext", "stages.1", "head.fc:3", "modules of type LayerNorm2d"),
    ],
)
def test_what_has_no_rule_is_refused(model: str, layer: str, feature: str, what: str) -> None:
    backbone = Backbone(model, "random")
    pictures = torch.rand(1, 3, *backbone.preprocessing.size)
    with pytest.raises(InputError, match=f"zennit's rules do not cover {what}"):
        run(backbone, pictures, feature, layer, Relevance())


def test_features_that_mix_are_refused() -> None:
    backbone = Backbone("vetoed_shapes_resnet")
    features = ["layer4.0.act2/input:3@centre", "fc:3"]
    bound_features = [BoundFeature(Feature.parse(feature), backbone) for feature in features]
    with pytest.raises(InputError, match="one of the features lies on the way to another"):
        attribute(backbone, shapes(2), bound_features, Layer("layer3"), Relevance())


def test_an_unknown_composite_is_refused() -> None:
    with pytest.raises(InputError, match="composite 'zplus' is none of epsilon, epsilon_plus, "):
        Relevance("zplus")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="composite 'zplus' is none of none, beta_smooth, "):
        ModifiedGradient("zplus")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["zennit_inversions", "zennit_mti"])
def test_a_configuration_runs_and_replays(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    short = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    short += ["--trainer.max_epochs=1", "--model.steps_per_epoch=2", "--model.features=['fc:3']"]
    short += ["--data.size=1"] if name == "zennit_inversions" else []
    main(["fit", "--config", str(CONFIGS / f"{name}.yaml"), *short])
    folder = Path("tb_logs", name, "version_0")
    main(["fit", "--config", str(folder / "config.yaml"), "--name=replayed"])
    first, second = (
        (path / "results.csv").read_text() for path in (folder, Path("tb_logs/replayed/version_0"))
    )
    assert first == second
