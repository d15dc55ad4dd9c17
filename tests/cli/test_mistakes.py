"""Every mistake costs a line or two, no time, no memory, and writes nothing."""

import logging
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning import Trainer
from PIL import Image

import mti_lightning as mti
from mti_lightning.atlas.map import Chart
from mti_lightning.cli import main
from mti_lightning.cli.parser import Parser
from mti_lightning.log import LOG
from tests.test_cli import BASE
from tests.tools.mistakes import of_numbers, paths

CONFIGS = Path(__file__).parents[2] / "configs"
QUIET = ("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false")
FIT = ("fit", "--config=base.yaml")
SOURCES = (*FIT, "--model=PositiveInversion", "--data=PictureFolder", "--data.path=pictures")
SWEEP = ("predict", f"--config={CONFIGS / 'demo_sweep.yaml'}", *QUIET, "--data.size=8")
REPORT = ("validate", f"--config={CONFIGS / 'demo_validate.yaml'}", *QUIET)
ATLAS = ("fit", f"--config={CONFIGS / 'demo_atlas.yaml'}", *QUIET)
LONG = "a" * 300
STORE = "tb_logs/demo_sweep/sweep.zarr"
OF_NETWORK = ("--model=test_resnet", "--weights=random")
ATLAS_OF_FOLDER = ("atlas", "pictures", *OF_NETWORK, "--feature=fc:3", "--accelerator=cpu")
CHEAP = ("--model.keep=0", "--model.calibrate=2", "--model.rivals=0")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with a sweep, and with what is none of what is asked for."""
    folder = tmp_path_factory.mktemp("mistakes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("base.yaml").write_text(BASE)
        Path("utf16.yaml").write_text(BASE, encoding="utf-16")
        anchors = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
        Path("bomb.yaml").write_text("\n".join(["a0: &a0 [x, x]", *anchors]))
        for name in ("pictures", "empty"):
            Path(name).mkdir()
        pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save("pictures/good.png")
        Path("note.png").write_text("no picture")
        Path("page.pth").write_text("<!DOCTYPE html><html>Not found</html>")
        Path("pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
        Path("nothing.pth").touch()
        os.mkfifo("pipe")
        with Path("large").open("wb") as file:
            file.truncate(10 * 2**30)
        main([*SWEEP, *CHEAP])
        yield folder


@pytest.fixture(autouse=True)
def unheard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LOG, "handlers", [logging.NullHandler()])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return what a mistake is answered with, in three lines at most; nothing is written."""
    before, start = _there(), time.process_time()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert _there() == before
    assert time.process_time() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most < 2e6  # KiB
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 3, lines
    assert lines[0].startswith("mti: error: ")
    return lines[0]


def _there() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*") if path.name != "log.txt")


LISTED: dict[str, tuple[tuple[str, ...], str]] = {
    "null for a number": ((*FIT, "--model.batch_size=null"), "model.batch_size: null will not do"),
    "null deeper": (
        (*FIT, "--model.image=FourierPhase", "--model.image.magnitude=null"),
        "model.image.magnitude: ",
    ),
    "views": ((*FIT, "--model.views=1000000000"), "would take 572,205 GiB of memory"),
    "devices -1": ((*FIT, "--trainer.devices=-1"), "trainer: `devices`"),
    "devices abc": ((*FIT, "--trainer.devices=abc"), "trainer: `devices`"),
    "devices nan": ((*FIT, "--trainer.devices=nan"), "trainer: `devices`"),
    "devices 10**12": ((*FIT, f"--trainer.devices={10**12}"), "not enough memory for so many"),
    "no accumulation": ((*FIT, "--trainer.accumulate_grad_batches=0"), "accumulate_grad_batches"),
    "empty checkpoint": ((*FIT, "--ckpt_path="), "ckpt_path '' is no file; leave it out"),
    "photograph as a configuration": (
        ("fit", "--config=pictures/good.png"),
        "config 'pictures/good.png' is no text in UTF-8",
    ),
    "UTF-16": (("fit", "--config=utf16.yaml"), "config 'utf16.yaml' is no text in UTF-8"),
    "anchors": ((*FIT, "--config=bomb.yaml"), "config 'bomb.yaml' stands for more than 100000"),
    "pipe as a configuration": (("fit", "--config=pipe"), "config 'pipe' cannot be read: it is no"),
    "pipe as a part of one": ((*FIT, "--model=pipe"), "config 'pipe' cannot be read: it is no reg"),
    "anchors in a part": ((*FIT, "--model=bomb.yaml"), "config 'bomb.yaml' stands for more than"),
    "large configuration": (
        ("fit", "--config=large"),
        "config 'large' cannot be read: it has 10,240 MiB, and 1 are read at most",
    ),
    "pipe as labels": (
        (*FIT, "--model.backbone.labels=pipe"),
        "labels 'pipe' cannot be read: it is no regular file",
    ),
    "large labels": ((*FIT, "--model.backbone.labels=large"), "10,240 MiB, and 128 are read at"),
    "pipe as a picture": (
        ("explain", "pipe", "--model=test_resnet", "--weights=random", "--out=new/x.png"),
        "pipe cannot be read: it is no regular file",
    ),
    "pipe as shards": (
        (*FIT, "--data=PictureShards", "--data.path=pipe"),
        "pipe cannot be read: it is no regular file",
    ),
    "views of an atlas": ((*ATLAS, f"--model.views={10**12}"), "GiB of memory, and the machine"),
    "composites": (
        (*SWEEP[:-1], "--data=CompositePictures", "--data.path=pictures", f"--data.size={10**12}"),
        "1000000",
    ),
    "empty store": ((*SWEEP, "--model.store="), "store '': give the name of a folder"),
    "store in /proc": ((*SWEEP, "--model.store=/proc/x.zarr"), "/proc/x.zarr cannot be written"),
    "no batches": ((*REPORT, "--trainer.limit_val_batches=0"), "limit_val_batches: 0 will not do"),
    "no pictures": ((*SWEEP, "--trainer.limit_predict_batches=0"), "limit_predict_batches: 0"),
    "seed of UMAP": ((*ATLAS, "--model.chart.seed=99999999999999"), "give 0 to 4294967295"),
    "canvas of nothing": (
        (*FIT, "--model.image=FourierPhase", "--model.image.canvas=[0,0]"),
        "canvas [0, 0]: give each side 32 pixels or more",
    ),
    "canvas of gigabytes": (
        (*FIT, "--model.image=FourierPhase", "--model.image.canvas=[300000,300000]"),
        "canvas [300000, 300000]: 1 images, 1 at once with 1 views of each, would take 10,729 GiB",
    ),
    "contrast": (
        (*FIT, "--model.image=FourierPhase", "--model.image.contrast=.inf"),
        "contrast inf: ",
    ),
    "rate that is no number": (
        (*FIT, "--model.optimizer=Adam", "--model.optimizer.lr=nan"),
        "model.optimizer.lr: expected float, got nan",
    ),
    "rate without end": (
        (*FIT, "--model.optimizer=Adam", "--model.optimizer.lr=.inf"),
        "learning rate inf: give 0 or more",
    ),
    "name": ((*FIT, f"--name={LONG}"), "too long; give 200 bytes at most"),
    "tpu": ((*FIT, "--trainer.accelerator=tpu"), "trainer: "),
    "size": ((*SWEEP, f"--data.size={10**12}"), "1000000 at most"),
    "workers": ((*SWEEP, "--data.num_workers=1000000"), "num_workers 1000000: give 0 to 512"),
    "seeds": ((*FIT, f"--model.seeds={10**12}"), "give 1 to 10000"),
    "null for a folder": (
        (*FIT, "--data=PictureFolder", "--data.path", "null"),
        "data.path: null is no value; a file of that name is ./null",
    ),
    "user who is not there": (
        (*FIT, "--data=PictureFolder", "--data.path=~nobody-here/x"),
        "~nobody-here/x does not exist",
    ),
    "page as weights": (("layers", "test_resnet", "--weights=page.pth"), "is a web page"),
    "pointer as weights": (
        ("layers", "test_resnet", "--weights=pointer.safetensors"),
        "is a pointer of Git LFS",
    ),
    "empty weights": (("layers", "test_resnet", "--weights=nothing.pth"), "the file is empty"),
    "text as weights": (("layers", "test_resnet", "--weights=note.png"), "neither of safetensors"),
    "no rows": (("sheet", "empty", "--rows=0"), "rows 0: give 1 or more"),
    "caption": (("sheet", "empty", "--caption", "-x"), "empty holds no results.csv"),
    "classes without end": (
        ("explain", "pictures/good.png", *OF_NETWORK, f"--classes={10**12}"),
        "classes 1000000000000: give 1 to 50",
    ),
    "steps of an atlas": ((*ATLAS_OF_FOLDER, "--steps=0"), "steps 0: give 1 or more"),
    "an atlas elsewhere": ((*ATLAS_OF_FOLDER, "--name=../x"), "give the name of a folder under"),
    "TensorBoard where a file is": (
        ("inhibitors", STORE, "--tensorboard=note.png"),
        "note.png/events cannot be written",
    ),
    "long table": (("rank", STORE, f"--out={LONG}"), "File name too long"),
}


@pytest.mark.parametrize("case", LISTED)
def test_a_mistake_costs_a_line(desk: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    arguments, told = LISTED[case]
    assert told in refused(capsys, *arguments)


EXPLAIN = ("explain", "pictures/good.png", "--model=test_resnet", "--weights=random")
COMMANDS: dict[str, tuple[str, ...]] = {
    "rank": ("rank", STORE),
    "sheet": ("sheet", "empty"),
    "explain": EXPLAIN,
    "layers": ("layers", "test_resnet"),
    "inhibitors": ("inhibitors", STORE),
    "signs": ("signs", "test_resnet", "--weights=random"),
    "atlas": ATLAS_OF_FOLDER,
}
PLACES: dict[str, tuple[tuple[str, ...], str]] = {
    "rank": (("rank",), ""),
    "rank --out": (("rank", STORE), "--out="),
    "rank --sheet": (("rank", STORE, "--feature=fc:3"), "--sheet="),
    "inhibitors": (("inhibitors",), ""),
    "inhibitors --out": (("inhibitors", STORE), "--out="),
    "inhibitors --figure": (("inhibitors", STORE), "--figure="),
    "inhibitors --pictures": (("inhibitors", STORE), "--pictures="),
    "inhibitors --tensorboard": (("inhibitors", STORE), "--tensorboard="),
    "signs": (("signs",), ""),
    "signs --out": (COMMANDS["signs"], "--out="),
    "signs --figure": (COMMANDS["signs"], "--figure="),
    "signs --weights": (("signs", "test_resnet"), "--weights="),
    "atlas": (("atlas", *ATLAS_OF_FOLDER[2:]), ""),
    "atlas --weights": ((*ATLAS_OF_FOLDER[:3], ATLAS_OF_FOLDER[4]), "--weights="),
    "atlas --labels": (ATLAS_OF_FOLDER, "--labels="),
    "atlas --layer": (ATLAS_OF_FOLDER, "--layer="),
    "atlas --accelerator": (ATLAS_OF_FOLDER, "--accelerator="),
    "explain --labels": (EXPLAIN, "--labels="),
    "explain --layer": (EXPLAIN, "--layer="),
    "explain --accelerator": ((*EXPLAIN, "--steps=1"), "--accelerator="),
    "sheet": (("sheet",), ""),
    "sheet --out": (("sheet", "empty"), "--out="),
    "explain": (("explain", *EXPLAIN[2:]), ""),
    "explain --out": (EXPLAIN, "--out="),
    "explain --weights": (EXPLAIN[:3], "--weights="),
    "layers": (("layers",), ""),
    "layers --weights": (("layers", "test_resnet"), "--weights="),
    "configs": (("configs",), ""),
    "plugins": (("plugins",), ""),
    "plugins check": (("plugins", "check"), ""),
    "fit --config": (("fit",), "--config="),
    "predict --config": (("predict",), "--config="),
    "validate --config": (("validate",), "--config="),
}
WRITTEN = ("rank --out", "rank --sheet", "sheet --out", "explain --out", "signs --out")


@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_such_file_costs_a_line(
    desk: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    command, option = PLACES[place]
    for kind, path in paths().items():
        if place in WRITTEN and kind in ("not there", "not UTF-8"):
            continue  # it is made
        line = refused(capsys, *command, f"{option}{path}")
        assert "\udcff" not in line


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_no_number_costs_a_line(
    desk: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    known: list[Any] = []
    parse = Parser.parse_args
    monkeypatch.setattr(
        Parser, "parse_args", lambda self, *args: known.append(self) or parse(self, *args)
    )
    refused(capsys, *COMMANDS[command], "--nix")
    refused(capsys, *COMMANDS[command], "--ou=x")
    refused(capsys, command)
    for action in known[0]._actions:
        if action.type is int or "int" in str(getattr(action, "_typehint", "")):
            option = action.option_strings[0]
            for number in (".nan", ".inf", "few", "1.5", "[1]"):
                refused(capsys, *COMMANDS[command], f"{option}={number}")


OPTIONS: dict[str, tuple[tuple[str, ...], str, type]] = {
    "image bank": (FIT, "model", mti.MaximallyTense),
    "views": ((*FIT, "--model.views=mti_lightning.Views"), "model.views", mti.Views),
    "phases": ((*FIT, "--model.image=FourierPhase"), "model.image", mti.FourierPhase),
    "inversion": (SOURCES, "model", mti.PositiveInversion),
    "pictures": (SOURCES, "data", mti.PictureFolder),
    "atlas": (ATLAS, "model", mti.AtlasInversion),
    "chart": (ATLAS, "model.chart", Chart),
    "sweep": (SWEEP, "model", mti.Sweep),
    "shapes": (SWEEP[:-1], "data", mti.VetoedShapesPictures),
    "report": (REPORT, "model", mti.Validity),
    "trainer": (FIT, "trainer", Trainer),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", OPTIONS)
def test_a_number_that_no_one_means_costs_a_line(
    desk: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    command, key, given = OPTIONS[kind]
    options = [*of_numbers(f"{key}.", given)]
    assert len(options) >= 5
    for option in options:
        refused(capsys, *command, option)


CLASSES = ("model", "data", "model.image", "model.attribution", "model.optimizer", "model.views")
CLASSES += ("trainer.logger", "trainer.callbacks", "trainer.strategy", "trainer.profiler")


@pytest.mark.slow
@pytest.mark.parametrize("key", CLASSES)
def test_what_is_no_such_class_costs_a_line(
    desk: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    for name in ("Nix", "os.system", "mti_lightning.Nix", "torch.nn.Linear", "[]x"):
        refused(capsys, *FIT, f"--{key}={name}")


# --- what is no mistake ---


@pytest.mark.filterwarnings("ignore:You are trying to .self.log")  # bare as they are
@pytest.mark.parametrize(
    "arguments",
    [
        (*FIT, "--trainer.barebones=true", "--name=bare"),
        (*SWEEP, *CHEAP, "--model.block=1000000000", "--name=block"),
        ("rank", STORE, "--by", "-response", "--out=low.csv"),
        ("rank", STORE, "--out=~/rank.csv"),
    ],
    ids=["barebones", "block", "by", "home"],
)
def test_what_is_meant_so_works(
    tmp_path: Path, desk: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    main(arguments)
    written = {"--name=bare": "tb_logs/bare/version_0/results.csv", "--out=low.csv": "low.csv"}
    assert Path(written.get(arguments[-1], STORE)).exists()
    assert (tmp_path / "rank.csv").exists() == (arguments[-1] == "--out=~/rank.csv")
    assert not Path("~").exists()


def test_a_rehearsal_leaves_nothing(desk: Path) -> None:
    before = _there()
    main([*FIT, "--trainer.fast_dev_run=true"])
    assert _there() == before


@pytest.mark.parametrize("name", ["a@b", "a#b", "null", "1e3", "a b", "[x]", "~z"])
def test_a_file_of_any_name_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save(f"{name}.npy", np.ones((2, 8), np.float32))
    parsed = mti.Feature.parse(f"layer4:{name}.npy#1@centre")
    assert (parsed.direction, parsed.position) == (f"{name}.npy#1", "centre")
    assert mti.Feature.parse(f"layer4:{name}.npy").direction == f"{name}.npy"
