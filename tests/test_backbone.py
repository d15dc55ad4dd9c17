"""The frozen network: taps against plain hooks, weights from everywhere, and what it refuses."""

import copy
import socket
import time
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from lightning import LightningModule
from safetensors.torch import save_file
from torch import Tensor, nn

from mti_lightning.backbone import network
from mti_lightning.backbone.network import ActivationLayout, Backbone, Layer
from mti_lightning.errors import InputError

# Small pictures where the family allows them; None is the model's own size.
FAMILIES: dict[str, tuple[int, int] | None] = {
    "resnet18": (96, 160),
    "resnet50": (64, 64),
    "convnext_tiny": (64, 96),
    "efficientnet_b0": (96, 64),
    "vit_tiny_patch16_224": (64, 96),
    "mobilenetv3_small_100": (96, 64),
    "regnety_002": (96, 64),
    "densenet121": (96, 64),
    "swin_tiny_patch4_window7_224": None,
}


def liven(network: nn.Module) -> None:
    """Draw the parameters that start as 0 or 1, so that no branch is switched off."""
    generator = torch.Generator().manual_seed(1)
    values = (*network.named_parameters(), *network.named_buffers())
    for name, value in values:
        if value.ndim == 1 and value.is_floating_point():
            scale = "weight" in name or "gamma" in name or "var" in name
            drawn = torch.rand(value.shape, generator=generator)
            value.data.copy_(drawn + 0.5 if scale else 0.2 * drawn - 0.1)


def plain(backbone: Backbone) -> nn.Module:
    """Return a copy of the network in which nothing works in place."""
    network = copy.deepcopy(backbone.network)
    for module in network.modules():
        if getattr(module, "inplace", False):
            module.inplace = False
    return network


def normalised(network: nn.Module, pictures: Tensor) -> Tensor:
    mean, std = (
        torch.tensor(network.pretrained_cfg[key]).view(3, 1, 1).to(pictures)
        for key in ("mean", "std")
    )
    return (pictures - mean) / std


def hooks(network: nn.Module) -> list[int]:
    return [
        hook
        for module in network.modules()
        for hook in (*module._forward_hooks, *module._forward_pre_hooks)
    ]


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


@pytest.mark.parametrize(
    ("name", "layer", "site"),
    [
        ("resnet18", "layer3", ActivationLayout((256, 6, 10), 1, (6, 10))),
        ("resnet18", "global_pool", ActivationLayout((512,), -1, None)),
        ("efficientnet_b0", "blocks.3.0.se.conv_reduce", ActivationLayout((10, 1, 1), 1, (1, 1))),
        ("efficientnet_b0", "blocks.3.0.bn2.act/input", ActivationLayout((240, 6, 4), 1, (6, 4))),
        ("convnext_tiny", "stages.1.blocks.0", ActivationLayout((192, 8, 12), 1, (8, 12))),
        (
            "convnext_tiny",
            "stages.1.blocks.0.mlp.act/input",
            ActivationLayout((8, 12, 768), -1, (8, 12)),
        ),
        ("vit_tiny_patch16_224", "blocks.3", ActivationLayout((25, 192), -1, (4, 6), 1)),
        ("vit_tiny_patch16_224", "patch_embed", ActivationLayout((24, 192), -1, (4, 6), 0)),
        ("vit_tiny_patch16_224", "head", ActivationLayout((1000,), -1, None)),
        (
            "swin_tiny_patch4_window7_224",
            "layers.2.blocks.0",
            ActivationLayout((14, 14, 384), -1, (14, 14)),
        ),
        (
            "swin_tiny_patch4_window7_224",
            "layers.2.blocks.0.mlp.act/input",
            ActivationLayout((196, 1536), -1, (14, 14)),
        ),
    ],
)
def test_how_activations_lie(name: str, layer: str, site: ActivationLayout) -> None:
    size = {"convnext_tiny": (64, 96)}.get(name, FAMILIES[name])
    backbone = Backbone(name, weights="random", input_size=size)
    assert backbone.layout(Layer.parse(layer)) == site
    channels = {1: site.shape[0], -1: site.shape[-1]}[site.channel_dim]
    assert site.channels == channels
    assert len(site.position_dims) == len(site.shape) - 1


def test_registers_lie_outside_the_grid() -> None:
    backbone = Backbone("test_vit3", weights="random")
    prefix = backbone.network.num_prefix_tokens
    site = backbone.layout(Layer("blocks.1"))
    assert site.prefix_tokens == prefix
    assert site.grid is not None
    assert site.shape[0] == prefix + site.grid[0] * site.grid[1]


def test_the_string_form_of_a_layer_reads_back() -> None:
    for text in ("layer3", "layer3.0.act2/input"):
        assert str(Layer.parse(text)) == text
    assert str(Layer.parse("layer3/output")) == "layer3"


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


def test_random_weights_follow_the_seed_and_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (Backbone("test_resnet", "random", seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    picture = torch.rand(1, 3, *first.preprocessing.size)
    assert torch.equal(first(picture), again(picture))
    assert not torch.allclose(first(picture), other(picture))


@pytest.mark.parametrize("name", ["test_resnet", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("classes", [None, 10])
def test_weights_from_a_file(tmp_path: Path, name: str, suffix: str, classes: int | None) -> None:
    arguments = {"num_classes": classes} if classes else None
    trained = Backbone(name, "random", seed=3, arguments=arguments)
    file = str(tmp_path / f"weights{suffix}")
    state = {name: value.contiguous() for name, value in trained.network.state_dict().items()}
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    loaded = Backbone(name, file, arguments=arguments)
    picture = torch.rand(1, 3, *trained.preprocessing.size)
    assert loaded(picture).shape == (1, classes or 1000)
    assert torch.equal(loaded(picture), trained(picture))


def test_a_file_that_came_with_more_than_weights_loads_or_is_refused(tmp_path: Path) -> None:
    trained = Backbone("test_resnet", "random", seed=3)
    torch.save({"state_dict": trained.network.state_dict(), "epoch": 7}, tmp_path / "epoch.ckpt")
    loaded = Backbone("test_resnet", str(tmp_path / "epoch.ckpt"))
    picture = torch.rand(1, 3, *trained.preprocessing.size)
    assert torch.equal(loaded(picture), trained(picture))
    torch.save(trained.network, tmp_path / "model.pth")
    with pytest.raises(
        InputError, match=r"it holds more than weights; save .* state_dict\(\) alone"
    ):
        Backbone("test_resnet", str(tmp_path / "model.pth"))


class Evil:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return Path.mkdir, (Path("ran_on_loading"),)  # type: ignore[return-value]


def test_a_pickle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, "evil.pth")
    with pytest.raises(
        InputError, match=r"weights 'evil\.pth' do not fit test_resnet: it holds more"
    ):
        Backbone("test_resnet", "evil.pth")
    assert not Path("ran_on_loading").exists()


@pytest.mark.parametrize(
    ("state", "arguments", "told"),
    [
        ({"other": torch.zeros(1)}, None, 'Missing key(s) in state_dict: "conv1.0.weight"'),
        (None, {"num_classes": 10}, "size mismatch for fc.weight"),
        (b"no weights", None, "weights '{file}' do not fit test_resnet: "),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    tmp_path: Path, state: object, arguments: dict[str, int] | None, told: str
) -> None:
    file = tmp_path / "weights.pth"
    if isinstance(state, bytes):
        file.write_bytes(state)
    else:
        torch.save(state or timm.create_model("test_resnet").state_dict(), file)
    with pytest.raises(InputError) as error:
        Backbone("test_resnet", str(file), arguments=arguments)
    assert f"weights {str(file)!r} do not fit test_resnet: " in str(error.value)
    assert told.format(file=file) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"name": "resnt50"}, "timm has no model 'resnt50'; did you mean 'resnet50'"),
        (
            {"name": "resnt50.a1_in1k"},
            "timm has no model 'resnt50.a1_in1k'; did you mean 'resnet50'",
        ),
        ({"name": "zzzzzz"}, "timm has no model 'zzzzzz'"),
        (
            {"name": "resnet18.a9_in1k"},
            ("timm has no weights 'a9_in1k' for resnet18; there are a1_in1k, a2_in1k"),
        ),
        (
            {"name": "test_resnet", "weights": "no.pth"},
            (
                "weights 'no.pth' for test_resnet is no file; give the path of a .pth or "
                ".safetensors file, "
                "'pretrained' or 'random'"
            ),
        ),
        (
            {"name": "test_resnet", "arguments": {"colour": 1}},
            "test_resnet cannot be built with {'colour': 1}: ",
        ),
        (
            {"name": "test_resnet", "input_size": (0, 64)},
            "input_size [0, 64]: give a height and a width in pixels",
        ),
        (
            {"name": "regnety_002.untrained", "weights": "pretrained"},
            "timm has no weights 'untrained' for regnety_002; there are ",
        ),
        (
            {"name": "convnextv2_small", "weights": "pretrained"},
            (
                "timm has no pretrained weights for convnextv2_small; give a file: weights: "
                "/path/to/convnextv2_small.safetensors (or .pth), or weights: random"
            ),
        ),
    ],
)
def test_a_backbone_that_cannot_be_had_is_refused(arguments: dict[str, object], told: str) -> None:
    with pytest.raises(InputError) as error:
        Backbone(**{"weights": "random", **arguments})  # type: ignore[arg-type]
    assert told in str(error.value)


@pytest.fixture
def unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads come from a server that takes connections and never answers."""
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        yield


@pytest.mark.parametrize(
    ("name", "weights", "told"),
    [
        (
            "resnet50",
            "pretrained",
            (
                "the pretrained weights of resnet50 are not on this machine and 127.0.0.1 cannot "
                "be "
                "reached; give a file: weights: /path/to/resnet50.safetensors (or .pth), "
                "or weights: random"
            ),
        ),
        (
            "hf-hub:timm/resnet50.a1_in1k",
            "random",
            (
                "the files of hf-hub:timm/resnet50.a1_in1k are not on this machine and 127.0.0.1 "
                "cannot be reached; give the name of one of timm's own models"
            ),
        ),
    ],
)
def test_pretrained_weights_out_of_reach_are_refused_within_two_seconds(
    unreachable: None, name: str, weights: str, told: str
) -> None:
    start = time.monotonic()
    with pytest.raises(InputError) as error:
        Backbone(name, weights)
    assert time.monotonic() - start < 2
    assert told in str(error.value)


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
                "layer 'layers.0.blocks.0.attn.qkv' of swin_tiny_patch4_window7_224 gives [128, "
                "49, 288] for 2 "
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
