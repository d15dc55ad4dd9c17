"""The layers that are listed: every name works when pasted, and none that matters is missing."""

import pytest
import torch

from mti_lightning import Backbone, Feature, InputError, Layer
from mti_lightning.attribution import check_path
from mti_lightning.feature import Probe
from mti_lightning.layers import layer_lines, usable_layers

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


def feeds(backbone: Backbone, feature: Probe, pasted: str) -> bool:
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
        Probe(Feature.parse(layer.feature.replace("CHANNEL", "0")), backbone)
        for layer in layers
        if layer.site.shape == outputs
    ]
    lines = layer_lines(layers)[1:]
    assert len(lines) == len(layers) == len(set(lines)) > 5
    for layer, line in zip(layers, lines, strict=True):
        pasted, feature = line.split()[0], line.split()[-1]
        assert feature.count(":CHANNEL") == 1
        probe = Probe(Feature.parse(feature.replace("CHANNEL", "0")), backbone)
        assert str(probe.layer) == str(layer.layer)
        assert f"{layer.site.channels} channels" in line
        tapped = backbone.run(pictures, [probe.layer])
        assert probe(tapped[probe.layer]).shape == (1,)
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
    assert listed["layer1"].site == backbone.site(Layer("layer1"))
    order = list(listed)
    assert order.index("layer1.0.conv1") < order.index("layer1") < order.index("layer2.0.conv1")


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
