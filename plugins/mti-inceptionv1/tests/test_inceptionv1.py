"""InceptionV1 against plain functions, and against the modules of faccent and torch-lucent."""

import os
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import timm
import torch
from mti_inceptionv1 import InceptionV1
from mti_inceptionv1.inceptionv1 import MIXED
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from mti_lightning import ActGrad, Backbone, BoundFeature, Feature, InputError, Layer, attribute
from mti_lightning.backbone.layers import usable_layers
from mti_lightning.cli import main
from mti_lightning.features.bound import FeatureGroup, activation_warning
from mti_lightning.features.receptive_field import TOLERANCE, find_window
from mti_lightning.features.window import Window
from mti_lightning.registry import layers_of_interest
from mti_lightning.testing import check_backbone

CONFIGS = Path(__file__).parents[1] / "configs"
NODES = (
    "conv2d0_pre_relu",
    "maxpool0",
    "localresponsenorm0",
    "conv2d2",
    "maxpool1",
    "mixed3a_3x3_bottleneck",
    "mixed3a_pool_reduce",
    "mixed3a",
    "mixed3b_pre_relu",
    "mixed4a",
    "mixed4e_pre_relu",
    "mixed5b",
    "softmax2_pre_activation",
)


def close(actual: Tensor, expected: Tensor) -> None:
    scale = float(expected.abs().max())
    assert scale > 0
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE * scale)


def backbone(size: tuple[int, int] | None = None, weights: str = "random") -> Backbone:
    return Backbone("inceptionv1_tf", weights, input_size=size)


# --- the reference: TensorFlow's definitions, spelt out ---


def same(values: Tensor, size: int, stride: int, fill: float) -> Tensor:
    """Pad as TensorFlow's SAME: as much as ⌈length / stride⌉ outputs need, the odd one behind."""
    padding = []
    for length in reversed(values.shape[2:]):
        whole = max((-(-length // stride) - 1) * stride + size - length, 0)
        padding += [whole // 2, whole - whole // 2]
    return functional.pad(values, padding, value=fill)


def pool(values: Tensor, stride: int) -> Tensor:
    padded = same(values, 3, stride, -torch.inf)
    return padded.unfold(2, 3, stride).unfold(3, 3, stride).amax((-2, -1))


def normalised(values: Tensor) -> Tensor:
    """Divide by the root of 1 + 1e-4 · the mean square of the nine channels around each."""
    squares = functional.pad(values.square(), (0, 0, 0, 0, 4, 4)).unfold(1, 9, 1).sum(-1) / 9
    return values / (1 + 1e-4 * squares).sqrt()


def reference(weights: dict[str, Tensor], pictures: Tensor) -> dict[str, Tensor]:
    nodes: dict[str, Tensor] = {}

    def keep(name: str, values: Tensor) -> Tensor:
        nodes[name] = values
        return values

    def conv(name: str, values: Tensor, stride: int = 1) -> Tensor:
        weight = weights[f"{name}_pre_relu_conv.weight"]
        padded = same(values, weight.shape[-1], stride, 0.0)
        found = functional.conv2d(padded, weight, weights[f"{name}_pre_relu_conv.bias"], stride)
        return keep(name, keep(f"{name}_pre_relu", found).clamp(min=0))

    values = keep("maxpool0", pool(conv("conv2d0", pictures, 2), 2))
    values = conv("conv2d1", keep("localresponsenorm0", normalised(values)))
    values = keep("maxpool1", pool(normalised(conv("conv2d2", values)), 2))
    for name in MIXED:
        if name in ("mixed4a", "mixed5a"):
            values = pool(values, 2)
        conv(f"{name}_1x1", values)
        conv(f"{name}_3x3", conv(f"{name}_3x3_bottleneck", values))
        conv(f"{name}_5x5", conv(f"{name}_5x5_bottleneck", values))
        conv(f"{name}_pool_reduce", pool(values, 1))
        for end in ("_pre_relu", ""):
            ends = ("1x1", "3x3", "5x5", "pool_reduce")
            keep(name + end, torch.cat([nodes[f"{name}_{branch}{end}"] for branch in ends], 1))
        values = nodes[name]
    key = "softmax2_pre_activation_matmul"
    logits = functional.linear(
        values.mean((2, 3)), weights[f"{key}.weight"], weights[f"{key}.bias"]
    )
    keep("softmax2_pre_activation", logits)
    return nodes


@pytest.mark.parametrize("size", [(224, 224), (97, 130)])
def test_nodes_equal_a_reference_of_plain_functions(size: tuple[int, int]) -> None:
    network = backbone(size)
    pictures = torch.rand(2, 3, *size)
    found = network.run(pictures, [Layer(name) for name in NODES])
    expected = reference(network.network.state_dict(), pictures * 255 - 117)
    for name in NODES:
        close(found[Layer(name)], expected[name])


def _named(network: nn.Module, names: list[str], pictures: Tensor) -> dict[str, Tensor]:
    """Return what modules put out."""
    found: dict[str, Tensor] = {}
    for name in names:
        network.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: found.update({name: output.clone()})
        )
    network(pictures)
    return found


def imported(name: str) -> ModuleType:
    """Import what `make` installs; without it the test is skipped, but not where CI is set."""
    module: ModuleType = import_module(name) if os.environ.get("CI") else pytest.importorskip(name)
    return module


@pytest.mark.parametrize(
    ("module", "class_name", "joined"),
    [
        ("faccent.modelzoo.inceptionv1", "InceptionV1_decomposed", True),
        ("faccent.modelzoo.inceptionv1", "InceptionV1", False),
        ("lucent.modelzoo.inceptionv1", "InceptionV1", False),
    ],
)
def test_nodes_equal_those_of_other_packages(
    module: str, class_name: str, joined: bool, tmp_path: Path
) -> None:
    other = getattr(imported(module), class_name)(redirected_ReLU=False).eval()
    torch.save(other.state_dict(), tmp_path / "inception5h.pth")
    ours = backbone(weights=str(tmp_path / "inception5h.pth"))
    names = ["conv2d0", "maxpool0", "maxpool1", "mixed3a_5x5", "mixed3a", "mixed3b", "mixed4c"]
    names += ["mixed5b", "softmax2_pre_activation_matmul"]
    names += ["mixed3a_pre_relu", "mixed3b_pre_relu", "mixed5a_pre_relu"] * joined
    pictures = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        expected = _named(other, names, pictures * 255 - 117)
    found = ours.run(pictures, [Layer(name) for name in names])
    for name in names:
        close(found[Layer(name)], expected[name])


# --- as a backbone ---


def test_pictures_are_brought_to_the_network_s_range() -> None:
    network = backbone()
    shown: list[Tensor] = []
    network.network.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0]))
    pictures = torch.rand(1, 3, 224, 224)
    pictures[0, :, 0, 0], pictures[0, :, 0, 1] = 0, 1
    assert network(pictures).shape == (1, 1008)
    torch.testing.assert_close(shown[0], pictures * 255 - 117, rtol=0, atol=1e-4)
    assert network.preprocessing.size == (224, 224)
    assert network.preprocessing.crop_pct == 1


def test_every_node_is_on_the_way_from_the_picture_to_the_output() -> None:
    network = backbone((64, 64))
    layers = [Layer(name) for name, _ in network.network.named_modules() if name]
    pictures = torch.rand(1, 3, 64, 64, requires_grad=True)
    nodes = network.run(pictures, layers)
    logits = nodes[Layer("softmax2_pre_activation")].sum()
    gradients = torch.autograd.grad(logits, list(nodes.values()), allow_unused=True)
    assert len(nodes) == 3 * 57 + 9 * 3 + 2 * 2 + 2 + 3
    assert all(gradient is not None for gradient in gradients)
    assert torch.equal(nodes[Layer("mixed4c")], nodes[Layer("mixed4c_pre_relu")].clamp(min=0))


def test_layers_are_listed_with_their_sides() -> None:
    network = backbone((64, 64))
    listed = {str(layer.layer): layer.activation for layer in usable_layers(network)}
    names = [name for name, _ in network.network.named_modules() if name]
    assert listed.keys() >= set(names)  # as the README promises
    for name in ("conv2d0", "mixed3a_5x5", "mixed3a", "mixed3b", "mixed5b"):
        assert (listed[f"{name}_pre_relu"], listed[name]) == ("before", "after")
    assert {listed[name] for name in ("maxpool0", "mixed3a_pool", "avgpool0")} == {""}
    assert activation_warning(Feature("mixed3b_pre_relu", 379), network) is None
    assert activation_warning(Feature("mixed3b", 379), network) == (
        "feature 'mixed3b:379' is read after its activation function; before it is mixed3b_pre_relu"
    )
    of_interest = layers_of_interest("inceptionv1_tf")
    assert {"mixed3a", "mixed3b_pre_relu"} < set(of_interest) < set(listed)


def test_it_is_fit_to_be_a_backbone() -> None:
    check_backbone("inceptionv1_tf")


def test_a_layer_that_is_passed_a_list_is_refused_as_an_input() -> None:
    with pytest.raises(InputError, match=r"input of layer 'mixed3b' .* is a list, not a tensor"):
        backbone((64, 64)).layout(Layer("mixed3b", "input"))


def test_weights_come_from_a_file(tmp_path: Path) -> None:
    network = InceptionV1()
    weights = network.state_dict()
    torch.save(weights, tmp_path / "inception5h.pth")
    save_file(weights, tmp_path / "inception5h.safetensors")
    for suffix in ("pth", "safetensors"):
        loaded = backbone(weights=str(tmp_path / f"inception5h.{suffix}")).network.state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in weights.items())


def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path) -> None:
    path = str(tmp_path / "resnet.pth")
    torch.save(timm.create_model("test_resnet").state_dict(), path)
    with pytest.raises(InputError) as error:
        backbone(weights=path)
    assert str(error.value) == (
        f"weights {path!r} do not fit inceptionv1_tf: 114 of the 114 arrays that inception5h.pth "
        "holds are missing, conv2d0_pre_relu_conv.weight is the first; give that file, which "
        "torch-lucent and faccent download"
    )
    with pytest.raises(InputError, match="no pretrained weights for inceptionv1_tf; give a file"):
        backbone(weights="pretrained")
    weights = {**InceptionV1().state_dict(), "fc.weight": torch.zeros(1)}
    torch.save(weights, path)
    with pytest.raises(InputError, match=r"Unexpected key\(s\) in state_dict: \"fc.weight\""):
        backbone(weights=path)


def test_other_numbers_of_outputs(tmp_path: Path) -> None:
    torch.save(InceptionV1().state_dict(), tmp_path / "weights.pth")
    for classes, outputs in ((7, 7), (0, 1024)):
        network = timm.create_model("inceptionv1_tf", num_classes=classes)
        assert network(torch.rand(1, 3, 64, 64)).shape == (1, outputs)
    network = Backbone(
        "inceptionv1_tf", str(tmp_path / "weights.pth"), arguments={"num_classes": 1008}
    )
    assert network.network.get_classifier().out_features == 1008


# --- windows ---


def test_the_paper_s_feature_depends_on_96_pixels() -> None:
    network = backbone()
    bound_feature = BoundFeature(Feature.parse("mixed3b_pre_relu:379@centre"), network)
    layer = Layer("mixed3a")
    window = find_window(network, layer, FeatureGroup([bound_feature]))
    assert isinstance(window, Window)
    assert window.box == (72, 72, 96, 96)
    assert window.map_box == (9, 9, 12, 12)
    pictures = torch.rand(3, 3, 224, 224)
    elsewhere = torch.rand(3, 3, 224, 224)
    elsewhere[..., 72:168, 72:168] = pictures[..., 72:168, 72:168]
    _, whole, response = attribute(network, pictures, [bound_feature] * 3, layer, ActGrad())
    _, _, same = attribute(network, elsewhere, [bound_feature] * 3, layer, ActGrad())
    assert torch.equal(response, same)
    moved = bound_feature.moved(window.group.position)
    _, part, cropped = attribute(network, window.crop(pictures), [moved] * 3, layer, ActGrad())
    # Other sizes take other kernels, which sum in another order.
    close(cropped, response)
    close(part, whole[..., 9:21, 9:21])
    assert part.count_nonzero() == whole.count_nonzero()


# --- configurations ---


def _save_noise(path: Path, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


SHORT = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
SHORT += ["--model.backbone.weights=random"]


@pytest.mark.parametrize(
    ("name", "arguments", "pictures"),
    [
        ("inceptionv1_mti", ["--model.seeds=1"], 1),
        ("inceptionv1_inversions", [], 4),
    ],
)
def test_a_configuration_makes_pictures(
    name: str, arguments: list[str], pictures: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    for seed in range(2):
        _save_noise(Path(f"pictures/{seed}.png"), seed)
    short = [*SHORT, "--trainer.max_epochs=1", "--model.steps_per_epoch=2", *arguments]
    main(["fit", "--config", str(CONFIGS / f"{name}.yaml"), *short])
    folder = Path("tb_logs", name, "version_0")
    assert len(list((folder / "pictures").glob("*.png"))) == pictures
    main(["fit", "--config", str(folder / "config.yaml"), "--name=replayed"])
    first, second = (
        (path / "results.csv").read_text() for path in (folder, Path("tb_logs/replayed/version_0"))
    )
    assert first == second


def test_the_sweep_s_configuration_and_its_atlas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind in ("cat", "dog"):
        Path("imagenet/train", kind).mkdir(parents=True)
        for seed in range(8):
            _save_noise(Path("imagenet/train", kind, f"{seed}.png"), seed + 8 * (kind == "dog"))
    small = [*SHORT, "--model.backbone.input_size=[96,96]"]  # all that the unit sees
    config = ["--config", str(CONFIGS / "inceptionv1_sweep.yaml"), "--data.num_workers=0"]
    main(["predict", *config, *small])
    sweep = "tb_logs/inceptionv1_sweep/sweep.zarr"
    main(["rank", sweep, "--feature", "mixed3b_pre_relu:379@centre"])
    assert len(Path("rank.csv").read_text().splitlines()) == 1 + 16
    short = [*small, "--trainer.max_epochs=1", "--model.steps_per_epoch=2"]
    short += ["--model.chart.size=[1,2]", "--model.chart.minimum=3", "--model.chart.neighbours=5"]
    main(["fit", "--config", str(CONFIGS / "inceptionv1_atlas.yaml"), *short])
    folder = Path("tb_logs/inceptionv1_atlas/version_0")
    assert (folder / "atlas.html").is_file()
    rows = (folder / "results.csv").read_text().splitlines()
    assert len(rows) == 1 + len(list((folder / "pictures").glob("*.png")))
    assert {row.split(",")[0].split("_")[-2] for row in rows[1:]} >= {"positive", "negative"}
