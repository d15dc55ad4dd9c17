"""Channels scaled or set to other values: what comes behind them is computed from that."""

import pytest
import torch
from torch import Tensor

from mti_lightning import (
    ActGrad,
    Backbone,
    BoundFeature,
    Feature,
    InputError,
    IntGrad,
    Layer,
    Sweep,
    VetoedShapes,
    attribute,
)
from tests.backbone.networks import hooks

WORLD = "vetoed_shapes_resnet"
UNIT = 4  # of layer4, active in the pictures


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone(WORLD)


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    world = VetoedShapes(3, seed=5)
    return torch.stack([world[index]["picture"] for index in range(3)])


@pytest.mark.parametrize("side", ["layer3", "layer4.0.conv1/input", "global_pool", "fc/input"])
@torch.no_grad()
def test_what_comes_behind_is_computed_from_scaled_channels(
    backbone: Backbone, pictures: Tensor, side: str
) -> None:
    layer, last = Layer.parse(side), Layer("fc")
    own = backbone.run(pictures, [layer, last])
    by_hand = own[layer].clone()
    pair = by_hand.transpose(0, 1).flatten(1).abs().sum(1).topk(2).indices.tolist()
    by_hand[:, pair] *= by_hand.new_tensor([0, 1.5]).view(-1, *[1] * (by_hand.ndim - 2))
    wanted = backbone.run(pictures, [last], insert={layer: by_hand})[last]
    assert not torch.allclose(wanted, own[last])
    with backbone.scaled(side, pair, [0, 1.5]):
        found = backbone.run(pictures, [layer, last])
        inserted = backbone.run(pictures, [last], insert={layer: own[layer]})
        behind = backbone.run_behind(layer, own[layer], [last], pictures)
        whole = backbone(pictures)
    torch.testing.assert_close(found[layer], own[layer])  # read as the network computes it
    for outcome in (found[last], inserted[last], behind[last], whole):
        torch.testing.assert_close(outcome, wanted)
    torch.testing.assert_close(backbone(pictures), own[last])


@torch.no_grad()
def test_tokens_and_maps_with_channels_last() -> None:
    for name, at, size in (
        ("vit_tiny_patch16_224", "blocks.0", 32),
        ("test_convnext", "stages.1", 64),
    ):
        network = Backbone(name, "random", input_size=(size, size), arguments={"num_classes": 5})
        layer, pictures = Layer(at), torch.rand(2, 3, size, size)
        layout = network.layout(layer)
        given = network.run(pictures, [layer])[layer].clone()
        given.select(layout.channel_dim, 3).zero_()
        wanted = network(pictures)
        with network.scaled(layer, [3]):
            silenced = network(pictures)
        assert not torch.allclose(silenced, wanted, atol=1e-6)
        last = next(one for one in (Layer("head"), Layer("head.fc")) if _is_there(network, one))
        own = network.run(pictures, [last], insert={layer: given})[last]
        torch.testing.assert_close(silenced, own)


def _is_there(network: Backbone, layer: Layer) -> bool:
    return layer.module in dict(network.network.named_modules()) and (
        layer.module != "head" or not [*network.network.get_submodule("head").children()]
    )


@torch.no_grad()
def test_channels_are_set_to_a_mean_and_to_other_pictures(
    backbone: Backbone, pictures: Tensor
) -> None:
    layer, last = Layer("layer4"), Layer("fc")
    own = backbone.run(pictures, [layer])[layer]
    others = own.roll(1, 0)
    for values, by_hand in ((torch.tensor([0.5, 2.0]), None), (others, others[:, [1, 4]])):
        given = own.clone()
        given[:, [1, 4]] = values.view(2, 1, 1) if by_hand is None else by_hand
        with backbone.replaced(layer, [1, 4], values):
            found = backbone.run(pictures, [last])[last]
            one = backbone.run(pictures[:1], [last])[last]  # fewer than the other pictures
        torch.testing.assert_close(
            found, backbone.run(pictures, [last], insert={layer: given})[last]
        )
        torch.testing.assert_close(one, found[:1])


def test_changes_nest_and_end_with_their_context(backbone: Backbone, pictures: Tensor) -> None:
    layer, own, digest = Layer("layer4"), backbone(pictures), backbone.digest()
    with backbone.scaled(layer, [UNIT], 0.5), backbone.scaled("layer3", [1]):
        with backbone.scaled(layer, [UNIT], 0.5):
            twice = backbone(pictures)
        once = backbone(pictures)
        with backbone.replaced(layer, [0], 1.0):
            pass
        torch.testing.assert_close(backbone(pictures), once)
        assert backbone.digest() != digest  # what a sweep knows its network by
    with backbone.scaled("layer3", [1]), backbone.scaled(layer, [UNIT], 0.25):
        torch.testing.assert_close(backbone(pictures), twice)
    with pytest.raises(ZeroDivisionError), backbone.scaled(layer, [0]):
        raise ZeroDivisionError
    with pytest.raises(InputError), backbone.scaled(layer, [0]):
        backbone.run(pictures, [Layer("nowhere")])
    assert hooks(backbone.network) == []
    assert backbone.digest() == digest
    assert torch.equal(backbone(pictures), own)


def test_attributions_of_what_is_silenced_are_zero_and_the_rest_adds_up(
    backbone: Backbone, pictures: Tensor
) -> None:
    layer, feature = Layer("layer3"), BoundFeature(Feature.parse("fc:3"), backbone)
    own = backbone.run(pictures, [layer])[layer]
    one, two, half = own.sum((0, 2, 3)).topk(3).indices.tolist()
    with backbone.scaled(layer, [one, two]), backbone.scaled(layer, [half], 0.5):
        _, found, response = attribute(backbone, pictures, [feature] * 3, layer, IntGrad(12))
        nothing = torch.zeros(3, *backbone.layout(layer).shape)
        silent = feature(
            backbone.run_behind(layer, nothing, [feature.layer], pictures)[feature.layer]
        )
    assert not found[:, [one, two]].any()
    assert found[:, half].any()
    torch.testing.assert_close(found.flatten(1).sum(1), response - silent, rtol=0.1, atol=0.1)


def test_a_sweep_measures_the_changed_network_and_says_so(
    backbone: Backbone, pictures: Tensor
) -> None:
    sweep = Sweep(backbone, ["fc:3"], "layer4", ActGrad())
    sweep.prepare()
    own, weights = sweep.measure(pictures)["inhibition"], sweep.provenance(None)["weights"]
    with backbone.scaled("layer4", range(192)):
        assert (own > 0).all()
        assert not sweep.measure(pictures)["inhibition"].any()
        assert sweep.provenance(None)["weights"] != weights


@pytest.mark.parametrize(
    ("channels", "values", "told"),
    [
        ([192], 0.0, "has 0..191"),
        ([3, 3], 0.0, "name each once"),
        ([3], [1.0, 2.0], r"give one or \[1\]"),
        ([3], torch.zeros(2, 3), "activations of other pictures"),
    ],
)
def test_what_does_not_fit_is_refused(
    backbone: Backbone, channels: list[int], values: object, told: str
) -> None:
    with pytest.raises(InputError, match=told), backbone.replaced("layer4", channels, values):
        pass
