"""Weights from files, random or pretrained; what cannot be had is refused at once."""

import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from mti_lightning.backbone import Backbone, Layer
from mti_lightning.backbone.layers import usable_layers
from mti_lightning.errors import InputError


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


def save_trained(file: Path, wrap: Callable[[dict[str, Tensor]], object] = dict) -> Backbone:
    trained = Backbone("test_resnet", "random", seed=3)
    torch.save(wrap(trained.network.state_dict()), file)
    return trained


def assert_same_backbone(loaded: Backbone, trained: Backbone) -> None:
    theirs = trained.network.state_dict()
    ours = loaded.network.state_dict()
    assert {*ours} <= {*theirs}
    for name, value in ours.items():
        assert name.startswith("fc.") or torch.equal(value, theirs[name]), name


def prefixed(prefix: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {f"{prefix}{name}": value for name, value in state.items()}


@pytest.mark.parametrize(
    "prefix",
    ["module.", "model.", "net.", "backbone.", "_orig_mod.", "module._orig_mod.", "ema.module."],
)
def test_known_prefixes_are_taken_off_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, prefix: str
) -> None:
    caplog.set_level(logging.INFO, "mti_lightning")
    file = tmp_path / "weights.pth"
    trained = save_trained(file, prefixed(prefix))
    assert_same_backbone(loaded := Backbone("test_resnet", str(file)), trained)
    picture = torch.rand(1, 3, *trained.preprocessing.size)
    assert torch.equal(loaded(picture), trained(picture))
    assert f"taken off their names: {prefix}" in caplog.text


@pytest.mark.parametrize(
    "key", ["state_dict", "model_state_dict", "net", "model", "state_dict_ema", "model_ema"]
)
@pytest.mark.parametrize("arguments", [None, {"num_classes": 0}, {"pretrained_strict": False}])
def test_known_wrappers_are_taken_off_and_the_log_says_so(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    key: str,
    arguments: dict[str, object] | None,
) -> None:
    caplog.set_level(logging.INFO, "mti_lightning")
    file = tmp_path / "weights.pth"
    trained = save_trained(file, lambda state: {key: prefixed("model.")(state), "epoch": 3})
    assert_same_backbone(Backbone("test_resnet", str(file), arguments=arguments), trained)
    assert f"those in {key}" in caplog.text


def test_a_wrapper_without_tensors_is_none(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    trained = save_trained(file, lambda state: {"ema": {"decay": 0.99}, "model": state})
    assert_same_backbone(Backbone("test_resnet", str(file)), trained)


def test_a_file_that_holds_itself_is_refused(tmp_path: Path) -> None:
    held: dict[str, object] = {"bias": torch.ones(1)}
    held["model"] = held
    torch.save(held, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="holds no tensors by the names"):
        Backbone("test_resnet", str(tmp_path / "weights.pth"))


def test_what_lies_beside_the_weights_in_a_checkpoint_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mti_lightning")
    file = tmp_path / "epoch.ckpt"

    def wrap(state: dict[str, Tensor]) -> object:
        beside = {"criterion.weight": torch.ones(3), "n_averaged": torch.tensor(1)}
        return {"state_dict": {**prefixed("model.")(state), **beside}, "global_step": 7}

    trained = save_trained(file, wrap)
    assert_same_backbone(Backbone("test_resnet", str(file)), trained)
    assert "left out beside them: criterion.weight, n_averaged" in caplog.text


LENIENT = [
    None,
    {"num_classes": 0},
    {"num_classes": 7},
    {"features_only": True},
    {"pretrained_strict": False},
]


@pytest.mark.parametrize("arguments", LENIENT)
@pytest.mark.parametrize(
    "wrap",
    [
        prefixed("unknown."),
        lambda state: {"unknown": state},
        lambda state: {k: v for k, v in state.items() if "layer2.0.bn1" not in k},
        lambda _: timm.create_model("test_vit").state_dict(),
    ],
)
def test_weights_that_lack_a_tensor_of_the_backbone_are_refused_whatever_the_arguments(
    tmp_path: Path,
    wrap: Callable[[dict[str, Tensor]], object],
    arguments: dict[str, object] | None,
) -> None:
    save_trained(file := tmp_path / "weights.pth", wrap)
    with pytest.raises(InputError, match="do not fit test_resnet"):
        Backbone("test_resnet", str(file), arguments=arguments)


@pytest.mark.parametrize("arguments", [{"num_classes": 0}, {"features_only": True}])
def test_a_network_without_a_classifier_takes_the_rest_of_the_file(
    tmp_path: Path, arguments: dict[str, object]
) -> None:
    trained = save_trained(file := tmp_path / "weights.pth")
    loaded = Backbone("test_resnet", str(file), arguments=arguments)
    assert_same_backbone(loaded, trained)
    assert loaded.absent == ()


def test_a_classifier_may_be_missing_where_nothing_reads_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def wrap(state: dict[str, Tensor]) -> object:
        return {k: v for k, v in state.items() if not k.startswith("fc.")}

    trained = save_trained(file := tmp_path / "weights.pth", wrap)
    loaded = Backbone("test_resnet", str(file))
    assert_same_backbone(loaded, trained)
    assert "have no classifier that fits (fc.bias, fc.weight)" in caplog.text
    assert loaded.layout(Layer("global_pool")).shape
    with pytest.raises(InputError, match=r"layer 'fc' .* depends on fc\.bias, fc\.weight"):
        loaded.layout(Layer("fc"))
    assert "fc" not in {str(one.layer) for one in usable_layers(loaded)}


def test_pretrained_weights_of_another_number_of_classes_have_no_classifier(
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = Backbone("vetoed_shapes_resnet")
    other = Backbone("vetoed_shapes_resnet", arguments={"num_classes": 5})
    assert_same_backbone(other, whole)
    assert "have no classifier that fits (fc.bias, fc.weight)" in caplog.text
    with pytest.raises(InputError, match=r"depends on fc\.bias, fc\.weight"):
        other.layout(Layer("fc"))


@pytest.mark.parametrize(("theirs", "ours"), [(10, None), (1000, 10), (10, 5)])
def test_a_wrong_number_of_classes_is_called_num_classes(
    tmp_path: Path, theirs: int, ours: int | None
) -> None:
    file = str(tmp_path / "weights.pth")
    torch.save(timm.create_model("test_resnet", num_classes=theirs).state_dict(), file)
    told = rf"of {theirs} classes, not {ours or 1000}: give arguments: {{num_classes: {theirs}}}"
    with pytest.raises(InputError, match=told):
        Backbone("test_resnet", file, arguments={"num_classes": ours} if ours else None)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    def wrap(state: dict[str, Tensor]) -> object:
        state["layer2.0.conv1.weight"][0, 0, 0, 0] = value
        return state

    save_trained(file := tmp_path / "weights.pth", wrap)
    with pytest.raises(InputError, match=r'no numbers .* in "layer2\.0\.conv1\.weight"'):
        Backbone("test_resnet", str(file))


def test_the_users_own_normalisation_is_kept_beside_a_file(tmp_path: Path) -> None:
    save_trained(file := tmp_path / "weights.pth")
    own = {"mean": [0, 0, 0], "std": [1, 1, 2], "crop_pct": 0.5, "interpolation": "bilinear"}
    for weights in (str(file), "random"):
        loaded = Backbone("test_resnet", weights, arguments={"pretrained_cfg_overlay": dict(own)})
        assert loaded.mean.flatten().tolist() == [0, 0, 0]
        assert loaded.std.flatten().tolist() == [1, 1, 2]
        assert loaded.mean.dtype == loaded.std.dtype == torch.float32
        assert loaded.preprocessing.crop_pct == 0.5
        assert loaded.preprocessing.interpolation == "bilinear"
        assert loaded.noise(1).std() > 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"in_chans": 1}, "in_chans 1 will not do: pictures have 3 channels"),
        ({"pretrained_cfg_overlay": {"mean": [0.5]}}, "give three numbers"),
        ({"pretrained_cfg_overlay": {"mean": ["a", "b", "c"]}}, "give three numbers"),
        ({"pretrained_cfg_overlay": {"std": [1, 0, 1]}}, "give three numbers above 0"),
    ],
)
def test_what_cannot_normalise_pictures_is_refused(arguments: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Backbone("test_resnet", "random", arguments=arguments)


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


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "~/w.bin"])
def test_what_a_file_holds_counts_and_not_what_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    trained = save_trained(Path("plain.pth"))
    held = {name: value.contiguous() for name, value in trained.network.state_dict().items()}
    for save in (save_file, torch.save):
        save(held, name.removeprefix("~/"))
        assert_same_backbone(Backbone("test_resnet", name), trained)


def test_names_that_timm_once_gave_are_known() -> None:
    with pytest.warns(UserWarning, match="deprecated model name"):
        Backbone("vit_tiny_patch16_224_in21k", "random")
    with pytest.raises(InputError, match=r"calls it vit_tiny_patch16_224\.augreg_in21k now"):
        Backbone("vit_tiny_patch16_224_in21k")


def test_networks_of_volumes_are_laid_out() -> None:
    volume = torch.nn.Conv3d(1, 4, (3, 3, 1))
    backbone = Backbone("test_resnet", "random")
    backbone.network.register_module("volume", volume)
    backbone.float()
    assert volume.weight.shape == (4, 1, 3, 3, 1)
    weight = backbone.network.get_submodule("conv1").get_submodule("0").weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
