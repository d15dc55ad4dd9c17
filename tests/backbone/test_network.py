"""Taps equal plain hooks, and the network stays as it was."""

import copy

import pytest
import torch
from lightning import LightningModule
from torch import Tensor, nn

from mti_lightning.backbone import Backbone, Layer, network
from mti_lightning.errors import InputError
from tests.backbone.networks import FAMILIES, hooks, liven, normalised, plain


@pytest.fixture(scope="module")
def resnet() -> Backbone:
    backbone = Backbone("resnet18", weights="random", input_size=(64, 64))
    liven(backbone.network)
    return backbone


@pytest.mark.parametrize("name", FAMILIES)
def test_both_sides_of_every_activation_equal_plain_hooks(name: str) -> None:
    backbone = Backbone(name, weights="random", input_size=FAMILIES[name])
    liven(backbone.network)
    network = plain(backbone)
    pictures = torch.rand(2, 3, *backbone.preprocessing.size)
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for path, module in network.named_modules():
        if "activation" in type(module).__module__:
            module.register_forward_hook(
                lambda _, inputs, output, path=path: calls.setdefault(path, []).append(
                    (inputs[0].clone(), output.clone())
                )
            )
    network(normalised(network, pictures))
    once = {path: call[0] for path, call in calls.items() if len(call) == 1}
    assert len(once) >= 9
    tapped = backbone.run(
        pictures, [Layer(path, side) for path in once for side in ("input", "output")]
    )
    for path, (before, after) in once.items():
        torch.testing.assert_close(
            tapped[Layer(path, "input")], before, rtol=1e-5, atol=1e-5 * float(before.abs().max())
        )
        torch.testing.assert_close(
            tapped[Layer(path)], after, rtol=1e-5, atol=1e-5 * float(after.abs().max())
        )
    assert hooks(backbone.network) == []


def test_the_forward_pass_stops_at_the_last_layer(resnet: Backbone) -> None:
    ran: list[str] = []
    theirs = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in resnet.network.named_modules()
        if name in ("layer2.1", "layer3.0.conv1", "layer3.0.conv2", "layer4.0")
    ]
    pictures = torch.rand(1, 3, 64, 64)
    try:
        for layers in (["layer2", "layer3.0.bn1"], ["layer3.0.bn1", "layer2"]):
            ran.clear()
            resnet.run(pictures, [Layer(layer) for layer in layers])
            assert ran == ["layer2.1", "layer3.0.conv1"]
        ran.clear()
        resnet.run(pictures, [Layer("layer3.0.conv2", "input")])
        assert ran == ["layer2.1", "layer3.0.conv1"]
    finally:
        for handle in theirs:
            handle.remove()


@pytest.mark.parametrize("cut", ["layer3", "layer3.0.act1/input"])
def test_no_gradient_is_tracked_before_the_cut(resnet: Backbone, cut: str) -> None:
    tracked: dict[str, bool] = {}
    theirs = [
        resnet.network.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, name=name: tracked.update({name: output.requires_grad})
        )
        for name in ("conv1", "layer2", "layer4.0")
    ]
    layer = Layer.parse(cut)
    try:
        tapped = resnet.run(
            torch.rand(1, 3, 64, 64, requires_grad=True), [layer, Layer("layer4")], cut=layer
        )
    finally:
        for handle in theirs:
            handle.remove()
    assert tracked == {"conv1": False, "layer2": False, "layer4.0": True}
    assert tapped[layer].is_leaf
    (gradient,) = torch.autograd.grad(tapped[Layer("layer4")].sum(), tapped[layer])
    assert gradient.abs().sum() > 0


def test_what_is_inserted_is_what_the_rest_is_computed_from(resnet: Backbone) -> None:
    pictures, others = torch.rand(2, 2, 3, 64, 64)
    middle, last = Layer("layer2.0.act1", "input"), Layer("layer4")
    there = resnet.run(others, [middle, last])
    result = resnet.run(pictures, [last], insert={middle: there[middle].clone()})
    # The block's shortcut still comes from `pictures`, so the insertion is not all there is.
    assert not torch.allclose(result[last], there[last])
    whole = Layer("layer2")
    there = resnet.run(others, [whole, last])
    kept = there[whole].clone()
    result = resnet.run(pictures, [last], insert={whole: there[whole]})
    torch.testing.assert_close(result[last], there[last])
    assert torch.equal(there[whole], kept)  # no operation in place has reached it


@pytest.mark.parametrize("fails", [False, True])
def test_no_hook_is_left_and_those_of_others_stay(resnet: Backbone, fails: bool) -> None:
    calls: list[str] = []

    def count(*_: object) -> None:
        calls.append("theirs")

    def fail(*_: object) -> None:
        raise RuntimeError("stop here")

    theirs = [
        resnet.network.layer1.register_forward_hook(count),
        resnet.network.layer2.register_forward_pre_hook(fail if fails else count),
    ]
    pictures = torch.rand(1, 3, 64, 64)
    try:
        for _ in range(2):
            if fails:
                with pytest.raises(RuntimeError, match="stop here"):
                    resnet.run(pictures, [Layer("layer1.0"), Layer("layer3")])
            else:
                resnet.run(pictures, [Layer("layer1.0"), Layer("layer3")])
            assert sorted(hooks(resnet.network)) == sorted(handle.id for handle in theirs)
        assert len(calls) == (2 if fails else 4)
    finally:
        for handle in theirs:
            handle.remove()
    with pytest.raises(InputError):
        resnet.run(pictures, [Layer("layer1"), Layer("layr2")])
    with pytest.raises(InputError):
        resnet.layout(Layer("layr2"))
    assert hooks(resnet.network) == []


class Holder(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone("resnet18", weights="random", input_size=(64, 64))
        self.own = nn.Parameter(torch.randn(3))


def test_the_network_stays_frozen_and_out_of_checkpoints_and_optimizers() -> None:
    holder = Holder()
    network = holder.backbone.network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    holder.train()
    holder.backbone.train()
    holder.requires_grad_(True)
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    optimizer = torch.optim.SGD(holder.parameters(), lr=1.0)
    assert [parameter for group in optimizer.param_groups for parameter in group["params"]] == [
        holder.own
    ]
    tapped = holder.backbone.run(torch.rand(2, 3, 64, 64), [Layer("layer4")])
    (holder.own.sum() * tapped[Layer("layer4")].sum()).backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert list(holder.state_dict()) == ["own"]
    other = Holder()
    other.load_state_dict(holder.state_dict(), strict=True)
    assert torch.equal(other.own, holder.own)
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({}, strict=True)


def test_the_network_follows_to_other_dtypes() -> None:
    holder = Holder()
    pictures = torch.rand(2, 3, 64, 64)
    single = holder.backbone(pictures)
    holder.to(torch.float64)
    double = holder.backbone(pictures.double())
    assert double.dtype == torch.float64
    assert {parameter.dtype for parameter in holder.backbone.network.parameters()} == {double.dtype}
    torch.testing.assert_close(double.float(), single, rtol=1e-4, atol=1e-5)


def test_the_backbone_normalises_by_itself(resnet: Backbone) -> None:
    pictures = torch.rand(2, 3, 64, 64)
    expected = resnet.network(normalised(resnet.network, pictures))
    torch.testing.assert_close(resnet(pictures), expected)
    embedded = Backbone("vetoed_shapes_resnet")
    assert embedded.preprocessing.size == (96, 96)
    assert embedded.preprocessing.crop_pct == 1.0
    assert embedded.mean.flatten().tolist() == [0.5] * 3
    assert embedded.std.flatten().tolist() == [0.25] * 3


@pytest.mark.parametrize(
    ("name", "layer", "told"),
    [
        (
            "resnet18",
            "layer2.0.relu",
            (
                "layer 'layer2.0.relu' is not in resnet18; did you mean 'layer2.0' or "
                "'layer2.0.aa' or "
                "'layer2.0.bn2'? layer2.0 holds conv1, bn1, drop_block, act1, aa, conv2, bn2, "
                "act2, downsample"
            ),
        ),
        ("resnet18", "layer2.0.akt1", "did you mean 'layer2.0.act1' or"),
        ("resnet18", "layr2", "layer 'layr2' is not in resnet18; did you mean 'layer2' or"),
        (
            "resnet18",
            "zzz",
            (
                "layer 'zzz' is not in resnet18; its top holds conv1, bn1, act1, maxpool, "
                "layer1, layer2, layer3, layer4, global_pool, fc"
            ),
        ),
        ("resnet18", "", "layer '' is not in resnet18; its top holds conv1"),
        (
            "resnet18",
            "conv1/outputs",
            (
                "layer 'conv1/outputs': 'outputs' is no side of a module; "
                "write conv1/input or conv1/output"
            ),
        ),
        (
            "densenet121",
            "features.denseblock1.denselayer1/input",
            (
                "the input of layer 'features.denseblock1.denselayer1' of densenet121 is a "
                "list, not a tensor"
            ),
        ),
        (
            "swin_tiny_patch4_window7_224",
            "layers.0.blocks.0.attn.qkv",
            (
                "layer 'layers.0.blocks.0.attn.qkv' of swin_tiny_patch4_window7_224 gives [320, "
                "49, 288] for 5 "
                "pictures: not [N, C], [N, T, C], [N, C, H, W] or [N, H, W, C]; name a layer "
                "outside the windows"
            ),
        ),
        (
            "dla46_c",
            "level2.tree1.relu",
            (
                "layer 'level2.tree1.relu' of dla46_c runs 3 times in a forward "
                "pass; only a layer that runs exactly once can be tapped"
            ),
        ),
        (
            "vit_tiny_patch16_224",
            "blocks.0.attn.attn_drop",
            (
                "layer 'blocks.0.attn.attn_drop' of vit_tiny_patch16_224 runs 0 times in a "
                "forward pass; only "
                "a layer that runs exactly once can be tapped"
            ),
        ),
    ],
)
def test_a_layer_that_cannot_be_tapped_is_refused(name: str, layer: str, told: str) -> None:
    backbone = Backbone(name, weights="random", input_size=FAMILIES.get(name))
    with pytest.raises(InputError) as error:
        backbone.layout(Layer.parse(layer))
    assert told in str(error.value)
    assert hooks(backbone.network) == []


def test_a_layer_that_does_not_run_is_refused_by_a_run() -> None:
    backbone = Backbone("test_vit", weights="random")
    with pytest.raises(InputError, match=r"'blocks\.0\.attn\.attn_drop' of test_vit takes no part"):
        backbone.run(torch.rand(1, 3, 160, 160), [Layer("blocks.0.attn.attn_drop")])


def test_pictures_too_small_for_the_network_are_refused_with_their_size() -> None:
    backbone = Backbone("densenet121", weights="random", input_size=(8, 8))
    with pytest.raises(InputError, match="densenet121 cannot take pictures of 8x8 pixels: "):
        backbone.layout(Layer("features"))


def test_weights_are_hashed_once_until_they_change(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, hashes = Backbone("test_resnet", "random"), []
    sha256 = network.hashlib.sha256
    monkeypatch.setattr(network.hashlib, "sha256", lambda *a: hashes.append(1) or sha256(*a))
    first = backbone.digest()
    assert backbone.digest() == first
    assert len(hashes) == 1
    assert copy.deepcopy(backbone).digest() == first
    with torch.no_grad():
        weight = next(backbone.network.parameters())
        weight[0] += 1
    changed = backbone.digest()
    assert changed != first
    with torch.no_grad():
        weight[0] -= 1
    backbone.half().float()  # rounded
    assert backbone.digest() not in (first, changed)
    backbone.network.load_state_dict(Backbone("test_resnet", "random").network.state_dict())
    assert backbone.digest() == first


@pytest.mark.parametrize(
    "arguments",
    [
        {"pretrained_cfg_overlay": {"mean": [0.4, 0.4, 0.4]}},
        {"pretrained_cfg_overlay": {"std": [0.4, 0.4, 0.4]}},
        {"act_layer": "gelu"},
        {"global_pool": "max"},
    ],
)
def test_what_computes_otherwise_by_the_same_weights_is_another(arguments):
    own = Backbone("test_resnet", "random").digest()
    assert Backbone("test_resnet", "random", arguments=arguments).digest() != own
    same = {"pretrained_cfg_overlay": {"crop_pct": 0.9}}  # how pictures are read is told elsewhere
    assert Backbone("test_resnet", "random", arguments=same).digest() == own
