"""The command line: what it makes, what it refuses, and what it says then."""

import csv
import errno
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mti_efficientnet_lite import photographs
from PIL import Image

from mti_lightning import SweepStore
from mti_lightning.cli import main
from mti_lightning.log import LOG
from mti_lightning.sweep.writing import SweepWriter

CONFIGS = Path(__file__).parents[1] / "configs"
BASE = """\
name: small
trainer: {max_epochs: 1, accelerator: cpu, enable_progress_bar: false}
model:
  class_path: MaximallyTense
  init_args:
    backbone: {name: test_resnet, weights: random}
    features: ["fc:3"]
    attribution_layer: layer2
    steps_per_epoch: 2
"""
SHORT = [
    "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.accelerator=cpu",
]


def save_noise(path: Path, seed: int = 0) -> None:
    values = np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


@pytest.fixture(autouse=True)
def unheard(monkeypatch) -> None:
    """The log does not write to the terminal, nor to that of a test before."""
    monkeypatch.setattr(LOG, "handlers", [logging.NullHandler()])


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    """A working directory with a configuration, pictures, and files that are none."""
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(BASE)
    Path("pictures").mkdir()
    save_noise(Path("pictures/good.png"))
    Path("pictures/broken.png").write_text("no picture")
    Path("empty").mkdir()
    Path("note.png").write_text("no picture")
    Path("junk.pth").write_text("no weights")
    torch.save({"other": torch.zeros(1)}, "other.pth")
    return tmp_path


def refusal(capsys, arguments: list[str]) -> str:
    """Return the single line that `main` ends with."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("mti: error: ")
    return lines[0].removeprefix("mti: error: ")


def feature(text: str) -> list[str]:
    return [f"--model.features=['{text}']"]


VIT = ["--model.backbone.name=test_vit", "--model.attribution_layer=blocks.1"]
REFUSED = {
    "unknown layer": (
        feature("layer3.0.akt1:0"),
        "'layer3.0.akt1' is not in test_resnet",
        "'layer3.0.act1'",
    ),
    "unknown attribution layer": (
        ["--model.attribution_layer=layr2"],
        "'layr2'",
        "did you mean 'layer2'",
    ),
    "no side of a layer": (["--model.attribution_layer=layer2/inp"], "layer2/input"),
    "channel out of range": (
        feature("layer3:9999"),
        "channel 9999 is out of range",
        "channels 0..191",
    ),
    "position outside the map": (feature("layer3:0@99,0"), "99,0 is outside the map", "rows 0.."),
    "position where there is none": (feature("fc:0@centre"), "layer 'fc' has no positions"),
    "token of a map": (feature("layer3:0@7"), "names a token", "give row,column"),
    "token that does not exist": ([*VIT, *feature("blocks.4:0@9999")], "has tokens 0.."),
    "unknown position": (feature("layer3:0@middle"), "'middle' is none of centre, peak, mean"),
    "no feature's form": (feature("layer3"), "'layer3' is not of the form LAYER[/input]:CHANNEL"),
    "unknown key of a feature": (
        ["--model.features=[{layer: layer3, chanel: 3}]"],
        "takes layer, channel or direction, and position; not chanel",
    ),
    "features of the wrong type": (["--model.features=3"], "model.features: expected list, got 3"),
    "no features": (["--model.features=[]"], "features: name at least one"),
    "layer that feeds nothing": (
        [*feature("layer3:0"), "--model.attribution_layer=layer4"],
        "'layer4' does not feed feature 'layer3:0'",
        "name an earlier layer",
    ),
    "unknown model": (
        ["--model.backbone.name=resnt50"],
        "no model 'resnt50'",
        "did you mean 'resnet50'",
    ),
    "missing weights": (
        ["--model.backbone.weights=no.pth"],
        "'no.pth'",
        "is no file",
        ".safetensors",
    ),
    "weights of another model": (
        ["--model.backbone.weights=other.pth"],
        "weights 'other.pth' do not fit test_resnet",
        "conv1.0.weight",
    ),
    "weights that are none": (
        ["--model.backbone.weights=junk.pth"],
        "'junk.pth' do not fit test_resnet",
    ),
    "argument of no model": (
        ["--model.backbone.arguments={colour: 1}"],
        "test_resnet cannot be built",
        "colour",
    ),
    "missing folder": (
        ["--data=PictureFolder", "--data.path=pictres"],
        "pictres does not exist; did you mean 'pictures'?",
    ),
    "empty folder": (["--data=PictureFolder", "--data.path=empty"], "folder empty is empty"),
    "a file that is no picture": (
        ["--data=PictureFile", "--data.path=note.png"],
        "note.png is not a picture",
    ),
    "no sources": (
        ["--model=PositiveInversion"],
        "PositiveInversion needs source pictures; give --data",
    ),
    "nothing to invert": (
        [
            *feature("fc:0"),
            *("--model=PositiveInversion", "--data=PictureFile", "--data.path=pictures/good.png"),
        ],
        "1 of 1 images cannot be made, as nothing excites (+) or inhibits (-) at layer layer2: ",
        "+ of fc:0 (tench) in good.png; try an earlier attribution layer, or coherent: false",
    ),
    "canvas too small": (
        ["--model.image=FourierPhase", "--model.image.canvas=[8,8]"],
        "canvas [8, 8]: give each side 32 pixels or more",
    ),
    "canvas of one side": (
        ["--model.image=FourierPhase", "--model.image.canvas=[64]"],
        "model.image.canvas: expected tuple with 2 elements or null, got [64]",
    ),
    "unknown option": (
        ["--model.steps_per_epochs=3"],
        "model.steps_per_epochs",
        "'steps_per_epoch'",
    ),
    "unknown nested option": (
        ["--model.backbone.nme=a"],
        "model.backbone.nme",
        "did you mean 'name'?",
    ),
    "abbreviated option": (
        ["--trainer.max_ep=3"],
        "trainer.max_ep: there is no such key",
        "'max_epochs'",
    ),
    "abbreviated nested option": (["--model.steps_per=3"], "model.steps_per: there is no such key"),
    "value of the wrong type": (
        ["--trainer.max_epochs=three"],
        "trainer.max_epochs: expected int or null, got three",
    ),
    "value that is no choice": (
        ["--model.pair=some"],
        "model.pair: expected one of 'all', 'matched'",
    ),
    "value out of range": (["--model.seeds=0"], "seeds 0: give 1 or more"),
    "unknown accelerator": (["--trainer.accelerator=abacus"], "trainer: ", "abacus", "cpu"),
    "value that torch refuses": (
        ["--model.optimizer=Adam", "--model.optimizer.lr=-1"],
        "optimizer: Invalid learning rate: -1",
    ),
    "optimizer value of the wrong type": (
        ["--model.optimizer=Adam", "--model.optimizer.lr=few"],
        "model.optimizer.lr: expected float, got few",
    ),
    "unfinished option": (["--config"], "expected one argument"),
    "several devices": (["--trainer.devices=2"], "2 devices for a bank of 1 images, 16 at once"),
    "missing checkpoint": (["--ckpt_path=no.ckpt"], "ckpt_path 'no.ckpt' is no file"),
    "picture as a checkpoint": (
        ["--ckpt_path=pictures/good.png"],
        "ckpt_path 'pictures/good.png' is no checkpoint; give one such as tb_logs/NAME/version_0",
    ),
    "text as a checkpoint": (["--ckpt_path=base.yaml"], "'base.yaml' is no checkpoint"),
    "weights as a checkpoint": (["--ckpt_path=other.pth"], "'other.pth' is no checkpoint of a run"),
    "batch size of no pictures": (
        ["--data=PictureFolder", "--data.path=pictures", "--data.batch_size=0"],
        "batch_size 0: give 1 or more",
    ),
    "fewer workers than none": (
        ["--data=PictureFolder", "--data.path=pictures", "--data.num_workers=-1"],
        "num_workers -1: give 0 or more",
    ),
    "negative seed": (["--seed_everything=-1"], "seed_everything: -1 is not in bounds"),
    "image parameters of half precision": (
        ["--trainer.precision=bf16-true"],
        "trainer.precision: bf16-true will not do",
        "give bf16-mixed",
    ),
    "part of the steps": (
        ["--trainer.limit_train_batches=1"],
        "trainer.limit_train_batches: 1 will not do: images take turns",
        "steps_per_epoch",
    ),
    "share of the steps": (["--trainer.limit_train_batches=0.5"], "limit_train_batches: 0.5 will"),
    "overfitting": (["--trainer.overfit_batches=2"], "limit_train_batches: 2 will not do"),
    "last step": (["--trainer.max_steps=3"], "max_steps: 3 will not do", "give max_epochs"),
    "no epoch": (["--trainer.max_epochs=0"], "max_epochs: 0 will not do: give 1 or more"),
    "gradients of several steps": (
        ["--trainer.accumulate_grad_batches=2"],
        "accumulate_grad_batches: 2 will not do",
        "more views",
    ),
    "clipped gradients": (
        ["--trainer.gradient_clip_val=1"],
        "gradient_clip_val: 1 will not do: an image's path would depend on its neighbours",
    ),
    "negative power": (
        [
            *("--model=PositiveInversion", "--model.power=-2"),
            *("--data=PictureFolder", "--data.path=pictures"),
        ],
        "power -2.0: give 0 or more",
    ),
    "negative price": (["--model.imbalance=[0,-1]"], "imbalance -1.0: give 0 or more"),
    "no view": (["--model.views=0"], "count 0: give 1 or more"),
    "every channel": (
        feature("fc:*"),
        "feature 'fc:*': only mti predict and mti validate take * for every channel",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line_before_any_work(desk, capsys, case):
    arguments, *told = REFUSED[case]
    line = refusal(capsys, ["fit", "--config", "base.yaml", *arguments])
    for part in told:
        assert part in line
    assert not Path("tb_logs").exists()


DATA = "data:\n  class_path: PictureFolder\n  init_args: {path: pictures}\n"
MISWRITTEN = {
    "key of the trainer": ("max_epochs", "max_epoch", 2, "trainer.max_epoch: ", "'max_epochs'"),
    "key at the top": ("trainer:", "trianer:", 2, "trianer", "did you mean 'trainer'?"),
    "key of the objective": (
        "steps_per_epoch",
        "steps_epoch",
        9,
        "model.steps_epoch: ",
        "'steps_per_epoch'",
    ),
    "key of the backbone": (
        "weights:",
        "weigths:",
        6,
        "model.backbone.weigths: ",
        "did you mean 'weights'",
    ),
    "init_args": ("init_args", "init_arg", 3, "model: give class_path and init_args"),
    "missing key": (
        "    attribution_layer: layer2\n",
        "",
        3,
        "model: attribution_layer is missing",
    ),
    "value of the trainer": (
        "max_epochs: 1",
        "max_epochs: few",
        2,
        "trainer.max_epochs: expected int or null, got few",
    ),
    "value of the objective": (
        "steps_per_epoch: 2",
        "steps_per_epoch: two",
        9,
        "model.steps_per_epoch: expected int, got two",
    ),
    "objective": (
        "MaximallyTense",
        "MaximalyTense",
        3,
        "no class 'MaximalyTense'; did you mean 'MaximallyTense'?",
    ),
    "image class": (
        BASE,
        BASE + "    image: Fourier\n",
        10,
        "model.image: ",
        "did you mean 'FourierPhase'?",
    ),
    "image key": (
        BASE,
        BASE + "    image:\n      class_path: Pixels\n      init_args: {canvs: [64, 64]}\n",
        12,
        "model.image.canvs: ",
        "did you mean 'canvas'?",
    ),
    "optimizer key": (
        BASE,
        BASE + "    optimizer:\n      class_path: torch.optim.Adam\n      init_args: {rate: 1}\n",
        12,
        "model.optimizer.rate: ",
        "there are lr, betas",
    ),
    "data class": (
        BASE,
        BASE + DATA.replace("PictureFolder", "PicFolder"),
        10,
        "did you mean 'PictureFolder'",
    ),
    "data key": (
        BASE,
        BASE + DATA.replace("{path:", "{pth:"),
        12,
        "data.pth: ",
        "did you mean 'path'?",
    ),
    "data without a class": (
        BASE,
        BASE + "data: {path: pictures}\n",
        10,
        "data: give class_path and init_args",
    ),
    "class_path": (
        "class_path",
        "class_pth",
        3,
        "model: give class_path and init_args; known are AbsoluteValue, AtlasInversion, Exclusive",
    ),
    "trainer that is a number": (
        "trainer: {max_epochs: 1, accelerator: cpu, enable_progress_bar: false}",
        "trainer: 3",
        2,
        "trainer: give its keys, such as max_epochs; not 3",
    ),
    "trainer that is a word": (
        "trainer: {max_epochs: 1, accelerator: cpu, enable_progress_bar: false}",
        "trainer: quick",
        2,
        "trainer: give its keys; 'quick' alone is no value for it",
    ),
    "name that is a number": ("name: small", "name: 3", 1, "name: expected str, got 3"),
    "backbone that is a name": (
        "{name: test_resnet, weights: random}",
        "test_resnet",
        6,
        "model.backbone: give {name: test_resnet}; 'test_resnet' alone",
    ),
    "no tension measure": (
        BASE,
        BASE + "    tension: l3\n",
        10,
        "model.tension: ",
        "expected one of 'geometric', 'minimum', 'harmonic', 'l2'",
    ),
    "number out of range": ("epoch: 2", "epoch: 0", 9, "steps_per_epoch 0: give 1 or more"),
    "number of the trainer": ("epochs: 1", "epochs: 0", 2, "trainer.max_epochs: 0 will not do"),
    "number in a class": (
        BASE,
        BASE + "    image:\n      class_path: FourierPhase\n      init_args: {contrast: 0}\n",
        12,
        "contrast 0.0: leaves nothing to see",
    ),
    "numbers in a list": (
        BASE,
        BASE + "    image:\n      class_path: Pixels\n      init_args:\n        canvas: [8, 8]\n",
        13,
        "canvas [8, 8]: give each side",
    ),
    "number of a list": (
        BASE,
        BASE + "    imbalance:\n    - 0.1\n    - -2\n",
        12,
        "imbalance -2.0: give 0 or more",
    ),
    "layer": ("layer2", "layr2", 8, "layer 'layr2' is not in test_resnet"),
    "layer of a feature": ("fc:3", "fcc/input:3", 7, "layer 'fcc' is not in test_resnet"),
    "channel": ("fc:3", "fc:3000", 7, "channel 3000 is out of range"),
    "channel of a structured feature": (
        '"fc:3"',
        "{layer: fc, channel: '*'}",
        7,
        "feature 'fc:*': only mti predict and mti validate take *",
    ),
    "model": ("test_resnet", "tst_resnet", 6, "timm has no model 'tst_resnet'"),
    "folder": (
        BASE,
        BASE + DATA.replace("{path: pictures", "{path: nix"),
        12,
        "nix does not exist",
    ),
    "syntax": ("features: [", "features: [[", 8, "expected"),
}


@pytest.mark.parametrize("case", MISWRITTEN)
def test_a_mistake_in_a_configuration_is_reported_with_its_place(desk, capsys, case):
    right, wrong, number, *told = MISWRITTEN[case]
    assert right in BASE
    Path("wrong.yaml").write_text(BASE.replace(right, wrong))
    line = refusal(capsys, ["fit", "--config", "wrong.yaml"])
    assert line.startswith(f"wrong.yaml, line {number}: ")
    for part in told:
        assert part in line
    assert not Path("tb_logs").exists()


def test_of_several_configurations_the_one_with_the_mistake_is_named(desk, capsys):
    Path("more.yaml").write_text("trainer: {min_epoch: 1}\n")
    line = refusal(capsys, ["fit", "--config=base.yaml", "--config=more.yaml"])
    assert line.startswith("more.yaml, line 1: trainer.min_epoch: ")


@pytest.mark.parametrize("path", ["objectives.MaximallyTense", "objectives.base.MaximallyTense"])
def test_a_path_that_a_class_had_is_refused_with_the_one_that_it_has(desk, capsys, path):
    Path("old.yaml").write_text(BASE.replace("MaximallyTense", f"mti_lightning.{path}"))
    told = f"class_path 'mti_lightning.{path}' will not do: it is mti_lightning.MaximallyTense now"
    assert refusal(capsys, ["fit", "--config=old.yaml"]) == f"old.yaml, line 4: {told}"
    given = f"--model.class_path=mti_lightning.{path}"
    assert refusal(capsys, ["fit", "--config=base.yaml", given]) == told


def test_a_mistake_on_the_command_line_is_not_blamed_on_the_file(desk, capsys):
    line = refusal(capsys, ["fit", "--config", "base.yaml", "--trainer.max_epochs", "few"])
    assert line == "trainer.max_epochs: expected int or null, got few"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model.steps_per_epoch=0"],
        ["--model.attribution_layer=layr2"],
        ["--model.features=['fc:3000']"],
        ["--trainer.max_epochs=0"],
    ],
)
def test_a_value_on_the_command_line_is_not_blamed_on_the_file(desk, capsys, arguments):
    assert "base.yaml" not in refusal(capsys, ["fit", "--config", "base.yaml", *arguments])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give a command: mti fit --config FILE"),
        (["--config", "base.yaml"], "give a command: mti fit --config FILE"),
        (["fti"], "no command 'fti'; did you mean 'fit'?"),
        (["test"], "no command 'test'; give mti fit"),
        (["fit"], "model is missing"),
        (
            ["fit", "--config", "bsae.yaml"],
            "config 'bsae.yaml' does not exist; did you mean 'base.yaml'",
        ),
        (["fit", "--config=pictures"], "config 'pictures' is a folder; give a file"),
        (["fit", "--config", "note.png"], "config 'note.png' holds no keys"),
        (["sheet"], "runs is missing"),
        (["sheet", "empty"], "empty holds no results.csv"),
        (["sheet", "missing"], "missing holds no results.csv"),
        (["sheet", "empty", "--uot", "a.png"], "uot: there is no such key; did you mean 'out'?"),
        (
            ["sheet", "empty", "--out", "note.png"],
            "note.png exists; give --out another name, or --overwrite",
        ),
    ],
)
def test_wrong_commands_and_files(desk, capsys, arguments, told):
    assert told in refusal(capsys, arguments)


def test_pretrained_weights_out_of_reach_are_reported_at_once(desk, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://weights.invalid")
    arguments = [
        "--model.backbone.name=eva_giant_patch14_336",
        "--model.backbone.weights=pretrained",
    ]
    start = time.monotonic()
    line = refusal(capsys, ["fit", "--config", "base.yaml", *arguments])
    assert time.monotonic() - start < 2
    assert "the pretrained weights of eva_giant_patch14_336 are not on this machine" in line
    assert "give a file: weights: /path/to/eva_giant_patch14_336.safetensors" in line


# `pytest.warns` emits the others anew, at a place that no exemption in pyproject.toml names.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The number of training batches")
def test_what_is_no_picture_is_skipped_in_a_folder_and_counted(desk):
    arguments = [
        "--data=PictureFolder",
        "--data.path=pictures",
        "--model=PositiveInversion",
        "--model.coherent=false",
    ]
    with pytest.warns(
        UserWarning, match=r"skipped 1 of 2 pictures: pictures/broken\.png is not a picture"
    ):
        main(["fit", "--config", "base.yaml", *arguments])
    assert [row["source"] for row in table("tb_logs/small/version_0/results.csv")] == ["good.png"]


# --- runs ---


def test_a_short_run_is_logged_without_a_warning(desk):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        main(["fit", "--config", "base.yaml", "--trainer.log_every_n_steps=8"])
    assert not [one for one in told if "logging interval" in str(one.message)]


@pytest.mark.parametrize(
    ("short", "long"),
    [("tension: l2", {"measure": "l2"}), ("views: 3", {"count": 3})],
)
def test_short_forms(desk, short, long):
    key = short.partition(":")[0]
    Path("short.yaml").write_text(f"{BASE}    {short}\n")
    Path("long.yaml").write_text(f"{BASE}    {key}: {long}\n")
    for name in ("short", "long"):
        main(["fit", f"--config={name}.yaml", f"--name={name}"])
    short_results, long_results = (
        results(Path("tb_logs") / name / "version_0") for name in ("short", "long")
    )
    for name in (n for n in long_results if n != "config.yaml"):
        assert short_results[name] == long_results[name]


def table(path: str | Path) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def results(folder: Path) -> dict[str, bytes]:
    """Return what a run leaves for people: all but the event files and the checkpoint."""
    return {
        name: data
        for name, data in contents(folder).items()
        if name.endswith((".png", ".csv")) or name == "config.yaml"
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """The folder of a run made three times: twice by a command, then from its configuration."""
    folder = tmp_path_factory.mktemp("runs")
    arguments = [
        *SHORT,
        "--model.features=['fc:0', 'fc:1']",
        "--model.steps_per_epoch=2",
        "--data.size=2",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for _ in range(2):
            main(["fit", "--config", str(CONFIGS / "demo_inversions.yaml"), *arguments])
        main(["fit", "--config", "tb_logs/demo_inversions/version_0/config.yaml"])
    return folder / "tb_logs" / "demo_inversions"


@pytest.mark.parametrize("other", ["version_1", "version_2"])
def test_the_same_command_and_the_saved_configuration_make_identical_files(runs, other):
    first, second = results(runs / "version_0"), results(runs / other)
    assert {name.partition("/")[0] for name in first} >= {
        "pictures",
        "sources",
        "results.csv",
        "config.yaml",
    }
    assert len([name for name in first if name.startswith("pictures/")]) == 4
    assert first == second


def test_a_run_records_public_paths(runs):
    (checkpoint,) = (runs / "version_0" / "checkpoints").glob("*.ckpt")
    for path in (checkpoint, runs / "version_0" / "config.yaml"):
        recorded = re.findall(rb"mti_lightning\.[\w.]*[a-z]", path.read_bytes())
        assert recorded
        assert all(name.count(b".") == 1 for name in recorded)


def test_existing_results_are_not_touched(runs, capsys, monkeypatch):
    monkeypatch.chdir(runs.parents[1])
    logger = {"save_dir": "tb_logs", "name": "demo_inversions", "version": 0}
    arguments = [f"--trainer.logger.{key}={value}" for key, value in logger.items()]
    before = contents(runs)
    config = "tb_logs/demo_inversions/version_1/config.yaml"
    line = refusal(
        capsys, ["fit", "--config", config, "--trainer.logger=TensorBoardLogger", *arguments]
    )
    assert "version_0 holds the results of another run, which would be overwritten" in line
    assert "--trainer.logger.version" in line
    assert contents(runs) == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--model.seed=5"], ("image 0 ", "_seed0 of stream ", "_seed5 of stream ")),
        (["--model.features=['fc:1', 'fc:0']"], ("image 0 ", "_fc-0_", "_fc-1_")),
        (["--data.seed=1"], ("image 0 tense-test-0-0_", "tense-test-1-0_")),
        (["--model.batch_size=2"], ("batch_size 16, not 2",)),
        (["--model.steps_per_epoch=3"], ("steps_per_epoch 2, not 3",)),
        (["--model.image=Pixels"], ("image FourierPhase(contrast=1.25", ", not Pixels()")),
        (
            ["--model.image=FourierPhase", "--model.image.contrast=2"],
            ("not FourierPhase(contrast",),
        ),
        (["--model.attribution_layer=layer3"], ("attribution_layer layer4, not layer3",)),
        (["--model.accentuate=true"], ("accentuate False, not True",)),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_another_bank_does_not_go_on_with_a_checkpoint(runs, desk, capsys, arguments, told):
    (checkpoint,) = (runs / "version_0" / "checkpoints").glob("*.ckpt")
    config = str(runs / "version_0" / "config.yaml")
    line = refusal(capsys, ["fit", "--config", config, f"--ckpt_path={checkpoint}", *arguments])
    assert line.startswith("the checkpoint was written with ")
    assert line.endswith("leave ckpt_path out to begin anew")
    for part in told:
        assert part in line
    assert not Path("tb_logs").exists()


def test_a_checkpoint_goes_on_for_more_epochs_and_the_log_says_so(runs, desk, caplog):
    (checkpoint,) = (runs / "version_0" / "checkpoints").glob("*.ckpt")
    config = str(runs / "version_0" / "config.yaml")
    main(["fit", "--config", config, f"--ckpt_path={checkpoint}", "--trainer.max_epochs=2"])
    assert "of a run of 1 epochs, which goes on to 2" in caplog.text
    (after,) = Path("tb_logs/demo_inversions/version_0/checkpoints").glob("*.ckpt")
    assert torch.load(after, weights_only=True)["global_step"] == 4


def test_a_run_without_logger_and_checkpoints_leaves_pictures_alone(desk):
    main(
        [
            "fit",
            "--config",
            "base.yaml",
            "--trainer.logger=false",
            "--trainer.enable_checkpointing=false",
        ]
    )
    left = {path.name for path in Path("tb_logs/small/version_0").iterdir()}
    assert left == {"config.yaml", "pictures", "results.csv"}
    assert not Path("config.yaml").exists()


def test_a_run_ends_with_where_its_results_are(desk, capsys):
    main(["fit", "--config", "base.yaml", "--name", "mine"])
    assert capsys.readouterr().out.splitlines()[-1] == "tb_logs/mine/version_0"


def test_sheet_shows_the_latest_version_and_keeps_what_exists(runs, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    main(["sheet", str(runs), "--out", "deeper/sheet.png"])
    assert capsys.readouterr().out.strip() == "deeper/sheet.png"
    made = Path("deeper/sheet.png").read_bytes()
    main(["sheet", str(runs / "version_2"), "--out", "other.png"])
    assert Path("other.png").read_bytes() == made
    main(["sheet", str(runs), "--rows", "1", "--out", "row.png"])
    with Image.open("other.png") as all_rows, Image.open("row.png") as one_row:
        assert one_row.height < all_rows.height
    assert "exists" in refusal(capsys, ["sheet", str(runs), "--rows", "1", "--out", "other.png"])
    assert Path("other.png").read_bytes() == made
    main(["sheet", str(runs), "--rows", "1", "--out", "other.png", "--overwrite"])
    assert Path("other.png").read_bytes() == Path("row.png").read_bytes()


# Run by other commands, on top of another file, or by tests of their own.
OTHERS = ("sweep", "validate", "vit", "atlas", "superposition")
RUNNABLE = [
    path
    for path in sorted(CONFIGS.glob("*.yaml"))
    if not path.stem.removeprefix("demo_").startswith(OTHERS)
]
TRAINING = [path for path in RUNNABLE if path.stem.endswith("_vetoed_shapes")]
FOR_USERS = [path for path in RUNNABLE if not path.stem.startswith("demo") and path not in TRAINING]


@pytest.mark.parametrize(
    ("path", "overlay"),
    [
        *[pytest.param(path, [], id=path.stem) for path in RUNNABLE],
        *[pytest.param(path, ["vit.yaml"], id=f"{path.stem}-vit") for path in FOR_USERS],
    ],
)
def test_every_configuration_runs(desk, path, overlay):
    arguments = list(SHORT)
    if path in TRAINING:
        arguments += ["--trainer.val_check_interval=2", "--trainer.limit_train_batches=2"]
        arguments += [
            "--trainer.limit_val_batches=1",
            "--data.batch_size=32",
            "--data.num_workers=0",
        ]
    else:
        arguments += ["--model.steps_per_epoch=1"]
    if path in FOR_USERS:
        arguments += ["--model.backbone.weights=random"]
        arguments += (
            ["--model.backbone.name=vit_tiny_patch16_224", "--model.backbone.input_size=[64,64]"]
            if overlay
            # At their start, timm's random residual branches give nothing.
            else [
                f"--model.backbone.{part}"
                for part in ("input_size=[64,64]", "arguments={zero_init_last: false}")
            ]
        )
        if path.stem != "mti":
            Path("pictures/broken.png").unlink()
            arguments += ["--model.coherent=false"]  # nothing is coherent in an untrained network
    if path.stem.startswith("demo_photographs"):
        arguments += ["--model.backbone.input_size=[128,128]"]
        photographs.write(Path("tb_logs/photographs"))
    try:
        main(["fit", *[f"--config={CONFIGS / name}" for name in (path.name, *overlay)], *arguments])
    finally:
        torch.use_deterministic_algorithms(False)  # the training turns it on
    folder = Path("tb_logs") / path.stem / "version_0"
    assert yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["max_epochs"] == 1
    if path in TRAINING:
        assert (folder / "weights.safetensors").stat().st_size > 1_000_000
    else:
        rows = table(folder / "results.csv")
        assert rows
        assert all(float(row["tension"]) >= 0 and (folder / row["file"]).is_file() for row in rows)


def test_the_atlas_of_the_embedded_world(desk):
    arguments = ["--data.size=60", "--model.keep=60", "--model.chart.size=[2,2]"]
    arguments += [*SHORT, "--model.steps_per_epoch=1"]
    main(["fit", f"--config={CONFIGS / 'demo_atlas.yaml'}", *arguments])
    folder = Path("tb_logs/demo_atlas/version_0")
    assert (folder / "atlas" / "positive_epoch000.png").is_file()
    assert '"interference":{"values":' in (folder / "atlas.html").read_text()
    assert Path("tb_logs/demo_atlas/sweep.zarr").is_dir()
    main(["fit", f"--config={folder / 'config.yaml'}"])  # the saved configuration replays
    again = Path("tb_logs/demo_atlas/version_1/atlas/positive_epoch000.png")
    assert again.read_bytes() == (folder / "atlas" / "positive_epoch000.png").read_bytes()


EVIL = "<img src=x onerror=alert(1)>.png"


@pytest.mark.parametrize(
    ("model", "features", "layer"),
    [("test_vit", ["head:3"], "blocks.3"), ("test_resnet", ["fc:3", "fc:4"], "layer2")],
)
def test_the_atlas_of_your_own_pictures_in_two_commands(desk, model, features, layer):
    for index in range(24):
        path = Path("classes") / ("cat" if index % 2 else "dog") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_noise(path, index)
    hostile = [EVIL, "tab\tline\nbreak.png", os.fsdecode(b"bad\xff.png")]
    for index, name in enumerate(hostile):
        save_noise(Path("classes/cat", name), 100 + index)
    backbone = [f"--model.backbone.name={model}", "--model.backbone.weights=random"]
    own = [*backbone, f"--model.attribution_layer={layer}", *SHORT[1:]]
    main(
        [
            *("predict", f"--config={CONFIGS / 'sweep.yaml'}", "--name=atlas", *own),
            *("--data=ImageFolder", "--data.path=classes", "--data.num_workers=0"),
            "--model.keep=100",
            f"--model.features={json.dumps(features)}",
            f"--model.keep_features={json.dumps(features[:1])}",
        ]
    )
    main(
        [
            *("fit", f"--config={CONFIGS / 'atlas.yaml'}", *own, SHORT[0]),
            *feature(features[0]),
            *("--model.chart.size=[2,2]", "--model.chart.minimum=2"),
            # Nothing is coherent in an untrained network.
            *("--model.coherent=false", "--model.steps_per_epoch=1"),
        ]
    )
    folder = Path("tb_logs/atlas/version_1")
    assert {path.name for path in (folder / "atlas").iterdir()} == {
        f"{face}_epoch000.png" for face in ("positive", "negative", "both")
    }
    page = (folder / "atlas.html").read_text()
    data = json.loads(re.findall(r'id="data">(.*?)</script', page, re.DOTALL)[0])
    assert data["pictures"] == len(data["keys"]) == 27
    assert {f"cat/{EVIL}", r"cat/tab\tline\nbreak.png", r"cat/bad\udcff.png"} <= set(data["keys"])
    assert data["kinds"]["label"]["texts"] == ["cat", "dog"]
    assert EVIL not in page
    assert data["cells"]
    for cell in data["cells"]:
        assert cell["faces"]
        assert all(str(place) in data["thumbnails"] for place in cell["exemplars"])
    (metadata,) = folder.glob("**/metadata.tsv")
    assert len(metadata.read_text().splitlines()) == 1 + 27


# --- sweeps ---

QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
SMALL_SWEEP = ["predict", f"--config={CONFIGS / 'demo_sweep.yaml'}", *QUIET, "--data.size=40"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("swept")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(SMALL_SWEEP)
    return folder


def test_a_sweep_is_ranked_and_its_top_pictures_are_inverted(swept, capsys, monkeypatch):
    monkeypatch.chdir(swept)
    main(SMALL_SWEEP)  # once more: everything is there already
    store = "tb_logs/demo_sweep/sweep.zarr"
    assert capsys.readouterr().out.strip().endswith(store)
    main(["rank", store, "--feature", "fc:3", "--count", "5", "--sheet", "rank.png"])
    rows = table(Path("rank.csv"))
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4", "5"]
    tension = [float(row["tension"]) for row in rows]
    assert tension == sorted(tension, reverse=True)
    with Image.open("rank.png") as sheet:
        assert sheet.width > 900
    main(["rank", store, "--out", "features.csv"])
    assert {row["feature"] for row in table(Path("features.csv"))} == {f"fc:{k}" for k in range(8)}
    main(["rank", store, "--by=-response", "--count=3", "--out=features.csv", "--overwrite"])
    lowest = [float(row["response_1st"]) for row in table(Path("features.csv"))]
    assert len(lowest) == 3
    assert lowest == sorted(lowest)
    main(
        [
            *["fit", f"--config={CONFIGS / 'demo_inversions.yaml'}", *SHORT],
            *["--data=SweepPictures", f"--data.sweep={store}"],
            *["--data.feature=fc:3", "--data.count=2"],
            *["--model.features=[fc:3]", "--model.steps_per_epoch=1"],
        ]
    )
    sources = table(Path("tb_logs/demo_inversions/version_0/sources.csv"))
    assert [row["source"] for row in sources] == [row["key"] for row in rows[:2]]
    assert float(sources[0]["tension"]) == pytest.approx(tension[0], rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["--model.features=[fc:3]", "--model.attribution_layer=layer3"],
            r"are top by tension for fc:3 at layer4 of vetoed_\w+, and used for fc:3 at layer3 of",
        ),
        (["--model.features=[fc:1, fc:3]"], r"for fc:3 at layer4 of \w+, and used for fc:1 at"),
    ],
)
def test_pictures_that_were_chosen_for_something_else(swept, desk, arguments, told):
    chosen = [
        *(f"--data.sweep={swept}/tb_logs/demo_sweep/sweep.zarr", "--data.feature=fc:3"),
        *("--data=SweepPictures", "--data.count=2", "--model.steps_per_epoch=1"),
    ]
    config = f"--config={CONFIGS / 'demo_inversions.yaml'}"
    with pytest.warns(UserWarning, match=told):
        main(["fit", config, *SHORT, chosen[2], *chosen, *arguments])


def test_a_report_measures_in_full_precision(desk, capsys):
    config = CONFIGS / "demo_validate.yaml"
    line = refusal(
        capsys, ["validate", f"--config={config}", *QUIET, "--trainer.precision=bf16-mixed"]
    )
    assert line == ("trainer.precision: bf16-mixed will not do to measure; leave it at 32-true")
    assert not Path("tb_logs").exists()


def test_every_sweep_configuration_runs(desk):
    Path("pictures/broken.png").unlink(missing_ok=True)
    arguments = ["--model.backbone.weights=random", "--model.backbone.name=resnet50"]
    arguments += ["--model.backbone.input_size=[64,64]"]
    main(
        [
            "predict",
            f"--config={CONFIGS / 'sweep.yaml'}",
            *QUIET,
            *arguments,
            "--data.num_workers=0",
        ]
    )
    main(["rank", "tb_logs/sweep/sweep.zarr"])
    assert len(table(Path("rank.csv"))) == 512


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["fit", *SMALL_SWEEP[1:]], "Sweep is run by mti predict"),
        (["predict", "--config=base.yaml"], "MaximallyTense is run by mti fit"),
        ([*SMALL_SWEEP, "--model.calibrate=9"], "was made with calibrate 256, not 9; give another"),
        ([*SMALL_SWEEP, "--data.size=41"], "was made with data.init_args.size 40, not 41"),
        (["rank", "nowhere.zarr"], "nowhere.zarr holds no sweep; give the folder of one"),
        (["rank", "SWEEP", "--feature", "fc:9"], "there is no feature 'fc:9' of"),
        (["rank", "SWEEP", "--by", "tensoin"], "there is no measure 'tensoin'"),
        (["rank", "SWEEP", "--sheet", "x.png"], "name a feature of"),
        (["rank", "note.png"], "note.png holds no sweep; give the folder of one"),
        (["rank", "SWEEP", "--out=empty", "--overwrite"], "empty is a folder; give the name of a"),
        (["rank", "SWEEP", "--out=note.png/a.csv"], "note.png/a.csv cannot be written: "),
        ([*SMALL_SWEEP, "--model.store=pictures"], "pictures exists and is no sweep; give --model"),
        (
            [*SMALL_SWEEP, "--model.overwrite=true", "--model.store=pictures"],
            "pictures exists and is no sweep; give --model.store another place",
        ),
        ([*SMALL_SWEEP, "--model.store=note.png"], "note.png exists and is no sweep"),
        (
            [*SMALL_SWEEP, "--model.store=note.png/s"],
            "note.png/s cannot be made: note.png: File ",
        ),
        (
            ["rank", "SWEEP", "--feature=fc:3", "--sheet=r.xyz"],
            "r.xyz: Pillow writes no such format; give r.png, or .jpg",
        ),
    ],
)
def test_what_a_sweep_refuses(swept, desk, capsys, arguments, told):
    path = str(swept / "tb_logs" / "demo_sweep" / "sweep.zarr")
    if arguments[: len(SMALL_SWEEP)] == SMALL_SWEEP and "--model.store" not in arguments[-1]:
        arguments = [*arguments, f"--model.store={path}"]
    line = refusal(capsys, [path if part == "SWEEP" else part for part in arguments])
    assert told in line
    assert Path("pictures/good.png").exists()
    assert not Path("tb_logs").exists()


def test_the_store_holds_the_whole_configuration(swept):
    folder = swept / "tb_logs" / "demo_sweep"
    config = SweepStore(folder / "sweep.zarr").config
    assert config == (folder / "version_0" / "config.yaml").read_text()


def test_a_sweep_that_recorded_where_classes_used_to_be_goes_on(swept, desk):
    store = Path(shutil.copytree(swept / "tb_logs/demo_sweep/sweep.zarr", "old.zarr"))
    made = SweepStore(store).provenance
    assert made["data"]["class_path"] == "mti_lightning.VetoedShapesPictures"
    assert made["attribution"]["class_path"] == "mti_lightning.IntGrad"
    for name, module in (("data", "data.pictures"), ("attribution", "attribution")):
        made[name]["class_path"] = made[name]["class_path"].replace(".", f".{module}.")
    SweepWriter(store).tell(sweep=made)
    main(["rank", str(store), "--feature=fc:3", "--sheet=rank.png"])  # opens the pictures anew
    assert Path("rank.png").is_file()
    main([*SMALL_SWEEP, f"--model.store={store}"])
    moved = SweepStore(store).provenance["data"]["class_path"]
    assert moved == "mti_lightning.VetoedShapesPictures"


def test_a_sweep_that_a_full_disk_stopped_at_its_end_is_completed(desk, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(SweepWriter, "_keep", full)
        assert "is full; every block before is safe" in refusal(capsys, SMALL_SWEEP)
    main(SMALL_SWEEP)
    store = SweepStore("tb_logs/demo_sweep/sweep.zarr")
    assert store.complete
    assert len(store.kept(0)[0])


def test_an_unfinished_sweep_is_ranked_and_said_to_be_one(desk, capsys, caplog):
    batch = ["--data.batch_size=8", "--trainer.limit_predict_batches=1"]
    store = "tb_logs/demo_sweep/sweep.zarr"
    line = refusal(capsys, [*SMALL_SWEEP, "--model.block=8", *batch, "--data.batch_size=4"])
    assert "has no picture with a finite tension yet" in line
    assert "has no picture with a finite balance yet" in refusal(
        capsys, ["rank", store, "--feature=fc:0", "--by=balance"]
    )
    main([*SMALL_SWEEP, "--model.block=8", *batch])
    main(["rank", store, "--feature=fc:0"])
    assert f"{store} is not finished (8 of 40 pictures)" in caplog.text
    assert len(table(Path("rank.csv"))) == 8


def test_pictures_are_found_from_another_folder_and_missed_if_moved(desk, capsys, monkeypatch):
    Path("pictures/broken.png").unlink()
    arguments = [*SMALL_SWEEP[:-1], "--data=PictureFolder", "--data.path=pictures"]
    main(arguments)
    rank = ["rank", str(desk / "tb_logs/demo_sweep/sweep.zarr"), "--feature=fc:0", "--overwrite"]
    monkeypatch.chdir("empty")
    main([*rank, "--sheet=rank.png"])
    assert Path("rank.png").is_file()
    monkeypatch.chdir(desk)
    Path("pictures").rename("moved")
    line = refusal(capsys, [*rank, "--sheet=rank.png"])
    assert "run its mti predict again with --data.path where they are now" in line
    main([*arguments, "--data.path=moved"])
    main([*rank, "--sheet=rank.png"])


def test_a_sweep_in_half_precision(desk):
    main([*SMALL_SWEEP, "--data.size=8", "--trainer.precision=bf16-mixed"])
    assert SweepStore("tb_logs/demo_sweep/sweep.zarr").complete


def test_pictures_of_another_network_have_no_place_on_a_map(swept, desk, capsys):
    store = swept / "tb_logs" / "demo_sweep" / "sweep.zarr"
    atlas = ["--trainer.callbacks+=AtlasLog", f"--trainer.callbacks.chart.sweep={store}"]
    line = refusal(capsys, ["fit", "--config=base.yaml", *atlas])
    assert "sweep.zarr was made with weights " in line
    assert "give the same, or another chart.sweep" in line
    assert not Path("tb_logs").exists()


# --- help ---


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--help"], ["mti fit --config FILE", "mti sheet RUN", "fit"]),
        (["fit", "--help"], ["--trainer.max_epochs", "--name", "--data"]),
        (
            ["fit", "--model.help", "MaximallyTense"],
            ["--model.imbalance", "price of a difference", "--model.features"],
        ),
        (["sheet", "--help"], ["--out", "Folders of finished runs"]),
    ],
)
def test_help_explains(capsys, arguments, told):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert all(part in shown for part in told)


def test_print_config_can_be_read_back(desk, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", "base.yaml", "--print_config"])
    assert stopped.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["init_args"]["features"] == ["fc:3"]
    assert config["model"]["class_path"].endswith("MaximallyTense")
    assert not Path("tb_logs").exists()


@pytest.mark.parametrize(
    "command",
    [[sys.executable, "-m", "mti_lightning"], [str(Path(sys.executable).with_name("mti"))]],
    ids=["module", "script"],
)
def test_the_process_ends_with_one_line_and_2(desk, command):
    done = subprocess.run(
        [*command, "fit", "--config", "base.yaml", "--trainer.max_epoch", "3"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(
        "mti: error: trainer.max_epoch: there is no such key; did you mean "
    )
    assert done.stdout == ""
