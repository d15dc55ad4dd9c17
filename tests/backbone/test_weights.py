"""Weights from files, random or pretrained; what cannot be had is refused at once."""

import socket
import time
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file

from mti_lightning.backbone import Backbone
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
