"""The layers that are listed: every name works when pasted, and none that matters is missing."""

from functools import cache

import pytest
import torch
from timm.models import register_model
from torch import Tensor, nn
from torch.nn import functional

from mti_lightning import Backbone, Feature, InputError, Layer
from mti_lightning.attribution.checks import check_path
from mti_lightning.backbone.layers import layer_lines, usable_layers
from mti_lightning.features.bound import BoundFeature, activation_warning

FAMILIES = {  # of each a small one
    "test_byobnet": None,
    "test_convnext": None,
    "test_efficientnet": None,
    "test_mambaout": None,
    "test_nfnet": None,
    "test_resnet": None,
    "test_vit": None,
    "cait_xxs24_224": (64, 64),
    "densenet121": (64, 64),
    "dla34": (64, 64),
    "ghostnet_050": (64, 64),
    "levit_128s": None,
    "mixer_s32_224": None,
    "mobilenetv3_small_050": (64, 64),
    "mobilevit_xxs": (64, 64),
    "poolformer_s12": (64, 64),
    "pvt_v2_b0": (64, 64),
    "regnetx_002": (64, 64),
    "swin_tiny_patch4_window7_224": (112, 112),
    "xcit_nano_12_p16_224": (64, 64),
}


def feeds(backbone: Backbone, feature: BoundFeature, pasted: str) -> bool:
    try:
        check_path(backbone, feature, Layer.parse(pasted))
    except InputError as error:
        if "does not feed" not in str(error):
            raise
        return False
    return True


def check_every_name(name: str, size: tuple[int, int] | None = None) -> None:
    backbone = Backbone(name, "random", input_size=size)
    layers = usable_layers(backbone)
    pictures = torch.rand(1, 3, *backbone.preprocessing.size)
    outputs = backbone(pictures).shape[1:]
    # LeViT has two heads; its output is their mean, and no layer's.
    ends = [
        BoundFeature(Feature.parse(layer.feature.replace("CHANNEL", "0")), backbone)
        for layer in layers
        if layer.layout.shape == outputs
    ]
    lines = layer_lines(layers)[1:]
    assert len(lines) == len(layers) == len(set(lines)) > 5
    for layer, line in zip(layers, lines, strict=True):
        pasted, feature = line.split()[0], line.split()[-1]
        assert feature.count(":CHANNEL") == 1
        bound_feature = BoundFeature(Feature.parse(feature.replace("CHANNEL", "0")), backbone)
        assert str(bound_feature.layer) == str(layer.layer)
        assert f"{layer.layout.channels} channels" in line
        tapped = backbone.run(pictures, [bound_feature.layer])
        assert bound_feature(tapped[bound_feature.layer]).shape == (1,)
        if layer.attributable:
            assert any(feeds(backbone, end, pasted) for end in ends)
        else:
            assert pasted == "-"


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit3"])
def test_every_name_works_when_pasted(name: str) -> None:
    check_every_name(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_name_works_when_pasted_in_every_family(name: str) -> None:
    check_every_name(name, FAMILIES[name])


def test_sides_of_a_residual_network() -> None:
    backbone = Backbone("test_resnet", "random")
    listed = {str(layer.layer): layer for layer in usable_layers(backbone)}
    before = ["layer1.0.bn1", "layer1.0.act1/input", "layer1.0.act2/input"]
    after = ["layer1.0.act1", "layer1.0.act2", "layer1.0", "layer1"]
    assert {listed[name].activation for name in before} == {"before"}
    assert {listed[name].activation for name in after} == {"after"}
    # What bn2 gives gets a shortcut added before the activation function.
    assert listed["layer1.0.bn2"].activation == listed["layer1.0.conv1"].activation == ""
    assert listed["layer1.0.act2/input"].feature == "layer1.0.act2/input:CHANNEL@centre"
    assert listed["global_pool"].feature == "global_pool:CHANNEL"
    assert [name for name, layer in listed.items() if not layer.attributable] == ["fc"]
    assert "layer1.0.drop_path" not in listed
    assert listed["layer1"].layout == backbone.layout(Layer("layer1"))
    order = list(listed)
    assert order.index("layer1.0.conv1") < order.index("layer1") < order.index("layer2.0.conv1")


class Swish(nn.Module):
    """An activation function of a network's own, working in place."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(torch.sigmoid(x))


class Scale(nn.Module):
    """Each value by itself, but straight."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x + 1


class Squash(nn.Module):
    """Bent, but no value by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=1, keepdim=True)


class Join(nn.Module):
    """The branches as one."""

    def forward(self, branches: list[Tensor]) -> Tensor:
        return torch.cat(branches, 1)


class Odd(nn.Module):
    """A network with all of them, branches that join and part again, and a gate."""

    def __init__(self, num_classes: int = 5, **_: object) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.stem, self.swish = nn.Conv2d(3, 8, 3, 2, 1), Swish()
        self.left, self.right = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 12, 1)
        self.joined, self.rejoined = Join(), Join()
        self.left_act, self.right_act = nn.ReLU(inplace=True), nn.ReLU()
        self.scale, self.squash, self.prelu = Scale(), Squash(), nn.PReLU(16)
        self.gated, self.gate = nn.Conv2d(16, 16, 1), nn.GELU()
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.swish(self.stem(x))
        x = self.joined([self.left(x), self.right(x)])
        left, right = x.split([4, 12], 1)
        x = self.rejoined([self.left_act(left), self.right_act(right)])
        x = self.prelu(self.squash(self.scale(x)))
        left, right = self.gated(x).chunk(2, 1)
        return self.fc(functional.relu(self.gate(left) * right).mean((2, 3)))


default_cfgs = {"tests_layers_odd": {"input_size": (3, 32, 32)}}  # where timm looks for them


@cache
def odd() -> Backbone:
    def tests_layers_odd(pretrained: bool = False, **_: object) -> nn.Module:
        return Odd()

    register_model(tests_layers_odd)
    return Backbone("tests_layers_odd", "random")


def test_sides_of_a_network_of_its_own() -> None:
    sides = {str(layer.layer): layer.activation for layer in usable_layers(odd())}
    assert sides == {
        **dict.fromkeys(["stem", "swish/input", "left", "right", "joined"], "before"),
        **dict.fromkeys(["left_act/input", "right_act/input", "squash"], "before"),
        **dict.fromkeys(["prelu/input", "gate/input"], "before"),
        **dict.fromkeys(["swish", "left_act", "right_act", "rejoined", "prelu", "gate"], "after"),
        **dict.fromkeys(["scale", "gated", "fc"], ""),
    }


@pytest.mark.parametrize(
    ("after", "before"),
    [
        ("swish", "swish/input"),
        ("rejoined", "joined"),
        ("scale/input", "joined"),
        ("left_act", "left_act/input"),
        ("prelu", "prelu/input"),
    ],
)
def test_a_value_after_its_activation_function_is_warned_of(after: str, before: str) -> None:
    told = f"feature '{after}:3' is read after its activation function; before it is {before}"
    assert activation_warning(Feature(after, 3), odd()) == told
    assert activation_warning(Feature(before, 3), odd()) is None


def test_values_between_activation_functions_are_not_warned_of() -> None:
    for layer in ("scale", "gated", "fc", "gate/input"):
        assert activation_warning(Feature(layer, 3), odd()) is None
    resnet = Backbone("test_resnet", "random")
    for layer in ("layer2", "layer2.0", "layer2.0.act2", "layer3/input"):
        told = activation_warning(Feature(layer, 3), resnet)
        assert told == (
            f"feature '{layer}:3' is read after its activation function; "
            "before it is layer2.0.act2/input"
        )
    for layer in ("layer2.0.act2/input", "layer2.0.bn1", "layer2.0.bn2", "maxpool", "fc"):
        assert activation_warning(Feature(layer, 3), resnet) is None
    assert not any(vars(module)["_forward_hooks"] for module in resnet.network.modules())


def test_a_line_of_the_table() -> None:
    lines = layer_lines(usable_layers(Backbone("test_vit", "random")))
    cells = {tuple(line.split()) for line in lines}
    assert tuple(lines[0].split()) == ("attribution_layer", "shape", "activation", "features")
    name = "blocks.0.mlp.act/input"
    shape = ("101", "tokens", "x", "192", "channels")
    assert (name, *shape, "before", f"{name}:CHANNEL@centre") in cells
    assert ("-", "1000", "channels", "head:CHANNEL") in cells


def test_nothing_is_left_behind() -> None:
    backbone = Backbone("test_resnet", "random")
    before = {key: value.clone() for key, value in backbone.network.state_dict().items()}
    state = torch.get_rng_state()
    usable_layers(backbone)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in backbone.network.state_dict().items())
    modules = [vars(module) for module in backbone.network.modules()]
    assert not any(own["_forward_hooks"] or own["_forward_pre_hooks"] for own in modules)


def test_pictures_that_the_network_cannot_take() -> None:
    backbone = Backbone("test_resnet", "random", input_size=(1, 1))
    backbone.network.fc.in_features = 5
    backbone.network.fc.weight.data = backbone.network.fc.weight.data[:, :5]
    with pytest.raises(InputError, match="test_resnet cannot take pictures of 1x1 pixels: "):
        usable_layers(backbone)
