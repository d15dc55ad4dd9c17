"""Captum's methods against Captum on the raw timm model, and what they promise."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from captum.attr import InternalInfluence as CaptumInfluence
from captum.attr import (
    LayerConductance,
    LayerDeepLift,
    LayerGradientXActivation,
    LayerIntegratedGradients,
)
from mti_captum import (
    Conductance,
    DeepLift,
    GradientShap,
    GradientXActivation,
    IntegratedGradients,
    InternalInfluence,
)
from rank_tense import short
from torch import Tensor, nn

from mti_lightning import (
    ActGrad,
    Attribution,
    Backbone,
    BoundFeature,
    Feature,
    InputError,
    Layer,
    Pass,
    VetoedShapes,
    attribute,
)
from mti_lightning.cli import main
from mti_lightning.testing import check_attribution

CONFIGS = Path(__file__).parents[1] / "configs"
METHODS = [
    GradientXActivation(),
    IntegratedGradients(8, most=0),
    GradientShap(2),
    DeepLift(),
    Conductance(4),
    InternalInfluence(4),
]


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    scale = float(expected.detach().abs().max())
    assert scale > 0
    torch.testing.assert_close(actual, expected.detach(), rtol=0, atol=tolerance * scale)


def shapes(count: int, seed: int = 5) -> Tensor:
    world = VetoedShapes(count, seed=seed)
    return torch.stack([world[index]["picture"] for index in range(count)])


def run(
    backbone: Backbone, pictures: Tensor, feature: str, layer: str, method: Attribution
) -> tuple[Tensor, Tensor]:
    """Return attribution and responses."""
    bound_feature = BoundFeature(Feature.parse(feature), backbone)
    return attribute(
        backbone, pictures, [bound_feature] * len(pictures), Layer.parse(layer), method
    )[1:]


class Passing(Attribution):
    """Keeps the pass."""

    differentiable = False
    additive = False
    needs_baseline = True

    def attribute(self, forward: Pass, create_graph: bool) -> Tensor:
        self.forward = forward
        return forward.activations


def passing(backbone: Backbone, pictures: Tensor, feature: str, layer: str) -> Pass:
    method = Passing()
    run(backbone, pictures, feature, layer, method)
    return method.forward


@pytest.mark.parametrize(
    "method",
    [*METHODS, pytest.param(IntegratedGradients(), marks=pytest.mark.slow)],
    ids=lambda method: f"{type(method).__name__}-{method.arguments.get('steps')}",
)
def test_it_keeps_its_word(method: Attribution) -> None:
    check_attribution(method)


@pytest.mark.parametrize("layer", ["layer4", "layer3", "layer2.0.bn2"])
def test_gradient_times_activation_is_act_grad_and_captum_s_own(layer: str) -> None:
    # Captum runs the network as it is: unfolded, as to the last digits.
    backbone, pictures = Backbone("vetoed_shapes_resnet", fold=False), shapes(4)
    for kind in (0, 3):
        found, _ = run(backbone, pictures, f"fc:{kind}", layer, GradientXActivation())
        close(found, run(backbone, pictures, f"fc:{kind}", layer, ActGrad())[0], 1e-6)
        inputs = (pictures - backbone.mean) / backbone.std
        module = backbone.network.get_submodule(layer)
        own = LayerGradientXActivation(backbone.network, module).attribute(inputs, target=kind)
        close(found, own, 1e-6)


def _from_grey(backbone: Backbone, pictures: Tensor, layer: str) -> tuple[Pass, Tensor, Tensor]:
    """Return a pass whose baseline is a grey picture's, and the inputs that Captum takes."""
    forward = passing(backbone, pictures, "fc:3", layer)
    grey = torch.full_like(pictures, 0.5)
    baseline = backbone.run(grey, [Layer(layer)])[Layer(layer)].detach()
    inputs, before = ((shown - backbone.mean) / backbone.std for shown in (pictures, grey))
    return replace(forward, baseline=baseline), inputs, before


@pytest.mark.filterwarnings("ignore:.* the attribution is off the response")  # of few steps
def test_integrated_gradients_are_captum_s_own() -> None:
    backbone = Backbone("vetoed_shapes_resnet")
    forward, inputs, grey = _from_grey(backbone, shapes(4), "layer3")
    own = LayerIntegratedGradients(backbone.network, backbone.network.layer3)
    expected = own.attribute(inputs, grey, target=3, n_steps=20)
    found = IntegratedGradients(20, most=0).attribute(forward, False)
    close(found, expected, 1e-5)


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks")
@pytest.mark.parametrize("layer", ["layer3", "layer2", "bn1"])
def test_deep_lift_is_captum_s_own(layer: str) -> None:
    backbone = Backbone("vetoed_shapes_resnet")
    forward, inputs, grey = _from_grey(backbone, shapes(4), layer)
    network = copy.deepcopy(backbone.network)
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # else it overwrites what Captum keeps of the layer before
    own = LayerDeepLift(network, network.get_submodule(layer))
    expected = own.attribute(inputs.requires_grad_(), grey, target=3)
    close(DeepLift().attribute(forward, False), expected, 1e-5)


def test_deep_lift_adds_up_over_pools_whose_windows_overlap() -> None:
    backbone = Backbone("resnet18", "random", input_size=(64, 64))
    forward = passing(backbone, torch.rand(2, 3, 64, 64), "fc:5", "conv1")
    grey = backbone.run(torch.full((2, 3, 64, 64), 0.5), [Layer("conv1")])[Layer("conv1")].detach()
    found = DeepLift().attribute(replace(forward, baseline=grey), False)
    close(found.flatten(1).sum(1), forward.responses - forward.head(grey), 1e-4)


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks")
@pytest.mark.parametrize("layer", ["layer3", "layer2.0.act1"])
def test_conductance_and_influence_are_captum_s_own(layer: str) -> None:
    backbone, pictures = Backbone("vetoed_shapes_resnet"), shapes(3)
    module = backbone.network.get_submodule(layer)
    grey = torch.full_like(pictures, 0.25)
    inputs, before = ((shown - backbone.mean) / backbone.std for shown in (pictures, grey))
    # Captum takes the gradient at each step's start; there and back, that is both its ends.
    own = LayerConductance(backbone.network, module)
    given = {"target": 3, "n_steps": 8, "method": "riemann_trapezoid"}
    there = own.attribute(inputs, before, **given)
    back = own.attribute(before, inputs, **given)
    found, _ = run(backbone, pictures, "fc:3", layer, Conductance(8, 0.25))
    close(found, (there - back) / 2, 1e-5)
    influence = CaptumInfluence(backbone.network, module)
    expected = influence.attribute(inputs, before, target=3, n_steps=8)
    found, _ = run(backbone, pictures, "fc:3", layer, InternalInfluence(8, 0.25))
    of_both = [backbone.run(shown, [Layer(layer)])[Layer(layer)] for shown in (pictures, grey)]
    close(found, (of_both[0] - of_both[1]) * expected, 1e-5)


def add_up(method: Attribution, forward: Pass) -> Tensor:
    """Say of which pictures the attribution adds up to 1% of |r|."""
    with torch.no_grad():
        before = forward.head(forward.baseline.expand_as(forward.activations))
    responses = forward.responses.detach()
    found = method.attribute(forward, False).flatten(1).sum(1)
    within: Tensor = (found - (responses - before)).abs() <= 0.01 * responses.abs()
    return within


def of_all_classes(pictures: Tensor, turn: int) -> Pass:
    """Return a pass from layer3 on, in which each class has every eighth picture."""
    backbone, method = Backbone("vetoed_shapes_resnet"), Passing()
    kinds = [(row + turn) % 8 for row in range(len(pictures))]
    bound_features = [BoundFeature(Feature("fc", kind), backbone) for kind in range(8)]
    attribute(backbone, pictures, [bound_features[kind] for kind in kinds], Layer("layer3"), method)
    network = backbone.network
    return short(method.forward, [network.layer4, network.global_pool, network.fc], kinds)


@pytest.mark.parametrize("method", [IntegratedGradients(), DeepLift()], ids=["ig", "deeplift"])
def test_attributions_add_up_to_what_changes_from_the_baseline(method: Attribution) -> None:
    assert add_up(
        method, passing(Backbone("vetoed_shapes_resnet"), shapes(8), "fc:3", "layer4")
    ).all()
    if isinstance(method, IntegratedGradients):
        assert add_up(method, of_all_classes(shapes(64), 0)).all()
    else:
        assert add_up(
            method, passing(Backbone("vetoed_shapes_resnet"), shapes(8), "fc:3", "layer3")
        ).all()


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(8))
def test_integrated_gradients_add_up_for_every_class_and_picture(turn: int) -> None:
    assert add_up(IntegratedGradients(), of_all_classes(shapes(64, seed=107), turn)).all()


def test_conductance_adds_up_to_what_changes_from_grey_where_nothing_goes_round() -> None:
    backbone, pictures = Backbone("vetoed_shapes_resnet"), shapes(4)
    found, responses = run(backbone, pictures, "fc:3", "layer3", Conductance())
    change = responses - backbone(torch.full_like(pictures, 0.5))[:, 3]
    assert ((found.flatten(1).sum(1) - change).abs() <= 0.05 * responses.abs()).all()


def test_a_way_is_divided_where_it_is_rough_and_no_other_picture_has_a_say() -> None:
    forward, coarse, fine = (
        of_all_classes(shapes(8), 0),
        IntegratedGradients(32, most=0),
        IntegratedGradients(32),
    )
    told = r"in \d of 8 pictures the attribution is off the response by up to \d+%; give a higher"
    with pytest.warns(UserWarning, match=told):
        first = coarse.attribute(forward, False)
    with pytest.warns(UserWarning, match=told):
        enough = add_up(coarse, forward)
    assert 0 < enough.sum() < 8
    assert add_up(fine, forward).all()
    second = fine.attribute(forward, False)
    assert [torch.equal(*rows) for rows in zip(first, second, strict=True)] == enough.tolist()


def test_gradient_shap_comes_near_integrated_gradients() -> None:
    backbone, pictures = Backbone("vetoed_shapes_resnet"), shapes(2)
    expected, _ = run(backbone, pictures, "fc:3", "layer3", IntegratedGradients(20))
    errors = []
    for samples in (2, 64):
        found, _ = run(backbone, pictures, "fc:3", "layer3", GradientShap(samples))
        errors.append(float((found - expected).norm() / expected.norm()))
    assert errors[1] < 0.1 < errors[0]


def test_gradient_shap_has_a_seed_of_its_own() -> None:
    backbone, pictures = Backbone("vetoed_shapes_resnet"), shapes(2)
    first, _ = run(backbone, pictures, "fc:3", "layer3", GradientShap(2))
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    second, _ = run(backbone, pictures, "fc:3", "layer3", GradientShap(2))
    assert torch.equal(first, second)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    other, _ = run(backbone, pictures, "fc:3", "layer3", GradientShap(2, seed=1))
    assert not torch.equal(first, other)


@pytest.mark.filterwarnings("ignore:.* the attribution is off the response")  # of few steps
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_a_batch_is_as_one_by_one_and_holds_several_features(method: Attribution) -> None:
    backbone, pictures = Backbone("vetoed_shapes_resnet"), shapes(3)
    bound_features = [BoundFeature(Feature("fc", kind), backbone) for kind in (0, 3, 5)]
    layer = Layer("layer2.0.act1", "input")
    hooks = [len(vars(module)["_forward_hooks"]) for module in backbone.network.modules()]
    _, batch, _ = attribute(backbone, pictures, bound_features, layer, method)
    for row, bound_feature in enumerate(bound_features):
        _, alone, _ = attribute(backbone, pictures[row : row + 1], [bound_feature], layer, method)
        assert torch.equal(batch[row : row + 1], alone)
    assert hooks == [len(vars(module)["_forward_hooks"]) for module in backbone.network.modules()]
    assert not any(vars(module)["_forward_pre_hooks"] for module in backbone.network.modules())


@pytest.mark.parametrize(
    ("name", "layer", "feature"),
    [
        ("test_convnext", "stages.1", "head.fc:3"),
        pytest.param("test_vit", "blocks.2", "head:3", marks=pytest.mark.slow),
    ],
)
def test_deep_lift_refuses_what_does_not_add_up(name: str, layer: str, feature: str) -> None:
    backbone = Backbone(name, "random")
    for module in backbone.network.modules():  # random weights hardly leave the linear range
        if isinstance(module, nn.Linear):
            module.weight.data.mul_(10)
    pictures = torch.rand(2, 3, *backbone.preprocessing.size)
    with pytest.raises(InputError, match="the attribution is off the response by 1"):
        run(backbone, pictures, feature, layer, DeepLift())
    with pytest.warns(UserWarning, match="give a higher most, or another baseline"):
        run(backbone, pictures, feature, layer, IntegratedGradients(4, most=0))
    # Where it is close to the baseline a layer norm bends sharply; there the way is divided most.
    run(backbone, pictures[:1], feature, layer, IntegratedGradients(4))


def test_deep_lift_refuses_whatever_else_is_in_the_batch() -> None:
    backbone = Backbone("vetoed_shapes_resnet")
    forward = passing(backbone, shapes(4), "fc:3", "layer3")

    def bent(values: Tensor) -> Tensor:
        """Bend the head for the first picture alone, by what is too little for all of them."""
        responses = forward.head(values)
        return torch.cat([responses[:1] + 0.1 * responses[:1] ** 2, responses[1:]])

    assert add_up(DeepLift(), forward).all()
    with pytest.raises(InputError, match="DeepLift: the attribution is off the response by 0"):
        DeepLift().attribute(replace(forward, head=bent), False)


@pytest.mark.parametrize(
    "make", [IntegratedGradients, GradientShap, Conductance, InternalInfluence]
)
def test_no_passes_are_refused(make: type[Attribution]) -> None:
    with pytest.raises(InputError, match="0: give 1 or more"):
        make(0)  # type: ignore[call-arg]


@pytest.mark.parametrize("make", [Conductance, InternalInfluence])
def test_a_grey_that_is_none_is_refused(make: type[Attribution]) -> None:
    with pytest.raises(InputError, match=r"grey 128: give a brightness from 0, black, to 1"):
        make(grey=128)  # type: ignore[call-arg]


@pytest.mark.filterwarnings("ignore:.* the attribution is off the response")  # of few steps
@pytest.mark.parametrize(
    "method",
    ["IntegratedGradients", "DeepLift", "GradientShap", "Conductance", "InternalInfluence"],
)
def test_the_configuration_runs_and_replays(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    short = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--data.size=1"]
    short += ["--trainer.max_epochs=1", "--model.steps_per_epoch=2", "--model.features=['fc:3']"]
    short += [f"--model.attribution={method}"]
    short += {
        "IntegratedGradients": ["--model.attribution.steps=8", "--model.attribution.most=0"],
        "Conductance": ["--model.attribution.steps=4"],
        "InternalInfluence": ["--model.attribution.steps=4"],
        "GradientShap": ["--model.attribution.samples=2"],
    }.get(method, [])
    main(["fit", "--config", str(CONFIGS / "captum_inversions.yaml"), *short])
    folder = Path("tb_logs/captum_inversions/version_0")
    main(["fit", "--config", str(folder / "config.yaml"), "--name=replayed"])
    first, second = (
        (path / "results.csv").read_text() for path in (folder, Path("tb_logs/replayed/version_0"))
    )
    assert first == second
