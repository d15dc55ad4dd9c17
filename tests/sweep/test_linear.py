"""Heads that are linear: found by trying, and their sweeps equal to those by backward passes."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mti_lightning import Backbone, Sweep, Tension
from mti_lightning.attribution.methods import ActGrad, IntGrad
from mti_lightning.sweep.linear import find_linear_head


def heads() -> dict[str, Callable[[Tensor], Tensor]]:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4).eval()
    norm.running_mean.uniform_(), norm.running_var.uniform_(1, 2)
    straight = nn.Sequential(conv, norm, nn.AvgPool2d(2), nn.Flatten())
    bent = {
        "relu": nn.ReLU(),
        "relu6": nn.ReLU6(),
        "a bend far out": nn.Hardtanh(-20, 20),
        "maximum": nn.MaxPool2d(2),
        "softmax": nn.Softmax(1),
    }
    found = {name: nn.Sequential(conv, norm, one, nn.Flatten()) for name, one in bent.items()}
    return {"straight": straight, **found}


@pytest.mark.parametrize("name", list(heads()))
def test_only_what_is_linear_is_taken_for_it(name: str) -> None:
    head = heads()[name].requires_grad_(False)
    activations = 3 * torch.rand(2, 6, 5, 5, generator=torch.manual_seed(1))
    found = find_linear_head(head, activations, 1, 3)
    assert (found is not None) == (name == "straight")
    if found is not None:
        points = torch.randn(5, 6, 5, 5, generator=torch.manual_seed(2))
        torch.testing.assert_close(found.respond(points), head(points), rtol=1e-5, atol=1e-5)
        for alone, together in zip(
            points.split(1), found.signed_map(points).unbind(1), strict=True
        ):
            assert torch.equal(found.signed_map(alone)[:, 0], together)  # whatever the batch


CASES = [
    ("test_resnet", "layer2.0.act1", "layer2.0.conv2:*@2,3", True),  # 3x3, within a window
    ("test_resnet", "layer2.0.act1", "layer2.0.conv2:*@mean", True),
    ("test_resnet", "layer2.0.act1", "layer2.0.conv2:*@peak", False),
    ("test_resnet", "layer2.0.act1", "layer3.0.conv1:*@centre", False),  # a ReLU between
    ("test_resnet", "layer2.0.act1", "layer2.0.act2/input:*@centre", False),  # a way round
    ("vetoed_shapes_resnet", "layer4", "fc:*", True),
    ("vetoed_shapes_resnet", "global_pool", "fc:*", True),  # no positions
    ("convnext_atto", "stages.1.blocks.0.mlp.act", "stages.1.blocks.0.mlp.fc2:*@centre", True),
    ("convnext_atto", "stages.1.blocks.0.mlp.act", "stages.1.blocks.0.mlp.fc2:*@mean", True),
    ("convnext_atto", "stages.1.blocks.0.conv_dw", "stages.1.blocks.0.mlp.fc1:*@centre", False),
    ("test_vit", "blocks.1.mlp.act", "blocks.1.mlp.fc2:*@0", True),  # tokens
    ("test_vit", "blocks.1.mlp.act", "blocks.1.mlp.fc2:*@mean", True),
    ("test_vit", "blocks.1.norm1", "blocks.1.attn.qkv:*@3", True),
    ("test_vit", "blocks.0", "blocks.1.norm1:*@0", False),
    ("test_vit", "blocks.1.norm1", "blocks.1.attn:*@0", False),
]


@pytest.mark.parametrize(("name", "layer", "features", "is_linear"), CASES)
@pytest.mark.filterwarnings("ignore:feature .* is read after its activation function")
def test_a_sweep_over_a_linear_head_equals_one_by_backward_passes(
    name: str, layer: str, features: str, is_linear: bool
) -> None:
    weights = "pretrained" if name.startswith("vetoed") else "random"
    backbone = Backbone(name, weights)
    channels = features.partition(":")[0]
    asked = [f"{channels}:{place}{features.partition('*')[2]}" for place in range(8)]
    method = IntGrad(2) if "resnet" in name and "@mean" in features else ActGrad()
    further = ({"units": True}, {"tension": Tension("l2")}) if layer == "layer4" else ()
    for options in ({}, *further):
        module = Sweep(backbone, asked, layer, method, rivals=0, **options)
        mean = torch.linspace(0, 1, module.layout.channels)
        module.prepare(mean)
        assert module.measurement is not None
        parts = module.measurement.parts
        assert [part.linear is not None for part in parts] == [is_linear]
        if not is_linear:
            return
        plain = replace(module.measurement, parts=[replace(p, linear=None) for p in parts])
        size = backbone.preprocessing.size
        pictures = torch.rand(2, 3, *size, generator=torch.manual_seed(3))
        numbers, maps = module.measurement.measure(pictures, keep=(1, 5))
        wanted, wanted_maps = plain.measure(pictures, keep=(1, 5))
        assert numbers.keys() == wanted.keys()
        for column, values in wanted.items():
            if column != "interference":
                assert_close(numbers[column], values)
        for place, values in wanted_maps.items():
            assert_close(maps[place], values)


def assert_close(found: Tensor, wanted: Tensor) -> None:
    """Equal to 1e-5 of the largest, as numbers that nearly cancel are no nearer."""
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


def test_only_positions_that_count_are_kept() -> None:
    backbone = Backbone("test_vit", "random")
    for at in ("@3", "@mean"):
        asked = [f"blocks.1.mlp.fc2:*{at}"]
        module = Sweep(backbone, asked, "blocks.1.mlp.act", ActGrad(), rivals=0)
        module.prepare()
        assert module.measurement is not None
        linear = module.measurement.parts[0].linear
        assert linear is not None
        assert linear.gradient.shape == (len(module.features), 1, module.layout.channels)
        assert len(linear.support) == (1 if at == "@3" else module.layout.shape[0])
