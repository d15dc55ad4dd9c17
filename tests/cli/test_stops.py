"""What signals, second terminals and full disks leave: whole files, a line, a way to go on."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mti_lightning import Backbone, MaximallyTense, SweepStore, VetoedShapesPictures
from mti_lightning.atlas.sweeping import ensure_sweep
from mti_lightning.cli import main
from mti_lightning.cli.hooks import _next_version
from mti_lightning.cli.runs import _how_to_go_on
from mti_lightning.loggers import FolderOnly
from mti_lightning.signals import Stopped
from mti_lightning.tables import read_table
from tests.test_locks import end, holder

CONFIGS = Path(__file__).parents[2] / "configs"
QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
FIT = """\
name: small
trainer: {max_epochs: 2, accelerator: cpu, enable_progress_bar: false}
model:
  class_path: MaximallyTense
  init_args:
    backbone: {name: test_resnet, weights: random}
    features: ["fc:3", "fc:4"]
    attribution_layer: layer2
    batch_size: 1
    steps_per_epoch: STEPS
"""
# Runs the command line, and does something to it at the n-th call of a function.
TOOL = """
import os, signal, sys
from mti_lightning.cli import main
import importlib
place, name, calls, do, *args = sys.argv[1:]
module, _, owner = place.partition(":")
holder = importlib.import_module(module)
for part in filter(None, owner.split(".")):
    holder = getattr(holder, part)
of, left = getattr(holder, name), int(calls)
def called(*args, **options):
    global left
    left -= 1
    if left == 0:
        exec(do)
    return of(*args, **options)
setattr(holder, name, called)
sys.argv[1:] = args
main()
"""
STEP = ("mti_lightning.objectives.base:Objective", "training_step")
MEASURE = ("mti_lightning.sweep.module:Sweep", "predict_step")
CHECK = ("mti_lightning.validity.module:Validity", "validation_step")


def send(received: signal.Signals) -> str:
    return f"os.kill(os.getpid(), {int(received)})"


def run_with(
    place: tuple[str, str], calls: int, do: str, *args: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line; at the n-th call of a function something happens."""
    return subprocess.run(
        [sys.executable, "-c", TOOL, *place, str(calls), do, *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def lines_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return what a command said, but for progress on its way."""
    return last_words(done.stderr)


def last_words(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("mti: ")]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("fit.yaml").write_text(FIT.replace("STEPS", "3"))
    return tmp_path


def results(folder: Path) -> dict[str, bytes]:
    found = [path for path in folder.rglob("*") if path.suffix in (".png", ".csv")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def assert_no_partial_file(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.suffix == ".ckpt":
            torch.load(path, weights_only=True)
        if path.suffix == ".png":
            Image.open(path).load()
        assert ".part" not in path.name


@pytest.mark.parametrize(
    ("received", "code", "step"),
    [
        (signal.SIGTERM, 143, 5),
        # What a report is stopped by below.
        pytest.param(signal.SIGINT, 130, 8, marks=pytest.mark.slow),
    ],
)
def test_a_signal_stops_a_fit_after_its_step_and_the_line_it_ends_with_goes_on(
    desk: Path, received: signal.Signals, code: int, step: int
) -> None:
    fit = ["fit", "--config", "fit.yaml"]
    done = run_with(STEP, step, send(received), *fit)
    assert done.returncode == code, done.stderr
    (line,) = lines_of(done)
    kept = "tb_logs/small/version_0/checkpoints/unfinished.ckpt"
    assert line.startswith(f"mti: stopped by {received.name}: {kept} is kept; go on with: mti fit ")
    assert torch.load(kept, weights_only=True)["global_step"] == step
    assert_no_partial_file(desk)
    main(shlex.split(line.partition("go on with: mti ")[2]))
    main([*fit, "--name=whole"])
    whole = results(Path("tb_logs/whole/version_0"))
    assert results(Path("tb_logs/small/version_1")) == whole
    assert not [*Path("tb_logs/whole").rglob("unfinished.ckpt")]


SWEEP = ["predict", f"--config={CONFIGS / 'demo_sweep.yaml'}", *QUIET, "--data.size=24"]
BLOCKS = ["--model.block=8", "--data.batch_size=4"]


def test_a_signal_stops_a_sweep_and_the_same_command_goes_on(desk: Path) -> None:
    done = run_with(MEASURE, 4, send(signal.SIGTERM), *SWEEP, *BLOCKS)
    assert done.returncode == 143, done.stderr
    (line,) = lines_of(done)
    told = "mti: stopped by SIGTERM: every finished block is kept; the same command goes on: mti "
    assert line.startswith(told)
    assert SweepStore("tb_logs/demo_sweep/sweep.zarr").status.tolist() == [1] * 8 + [0] * 16
    main(shlex.split(line.removeprefix(told)))
    main([*SWEEP, *BLOCKS, "--name=whole"])
    one, other = (SweepStore(f"tb_logs/{name}/sweep.zarr") for name in ("demo_sweep", "whole"))
    np.testing.assert_array_equal(one.values("tension"), other.values("tension"))
    np.testing.assert_array_equal(one.maps(range(9)), other.maps(range(9)))


def test_a_signal_stops_a_report_and_leaves_none(desk: Path) -> None:
    config = f"--config={CONFIGS / 'demo_validate.yaml'}"
    done = run_with(CHECK, 1, send(signal.SIGINT), "validate", config, *QUIET)
    assert done.returncode == 130, done.stderr
    (line,) = lines_of(done)
    assert line.startswith("mti: stopped by SIGINT: nothing new is kept; the same command begins ")
    assert not [*Path("tb_logs").rglob("validity.*")]


def test_a_signal_in_the_sweep_of_an_atlas_is_said_to_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr("mti_lightning.atlas.sweeping._run", stop)
    module = MaximallyTense(Backbone("test_resnet", "random"), ["fc:3"], "layer4")
    with pytest.raises(Stopped) as stopped:
        ensure_sweep(module, VetoedShapesPictures(8), tmp_path / "s.zarr")
    assert stopped.value.__notes__ == ["every finished block of its sweep is kept"]
    told = _how_to_go_on("fit", ["--config", "a.yaml"], stopped.value)
    assert told == "the same command goes on: mti fit --config a.yaml"


def test_who_comes_second_is_told_so_in_a_line(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*SWEEP, "--data.size=8"])
    main(["fit", "--config=fit.yaml", "--trainer.max_epochs=1"])
    store, version = Path("tb_logs/demo_sweep/sweep.zarr"), Path("tb_logs/small/version_7")
    own = [f"--trainer.logger.{k}={v}" for k, v in (("save_dir", "tb_logs"), ("name", "small"))]
    own = ["--trainer.logger=TensorBoardLogger", *own, "--trainer.logger.version=7"]
    version.mkdir()
    for place, command in (
        (store, [*SWEEP, "--data.size=8"]),
        (store, [*SWEEP, "--model.overwrite=true"]),
        (version, ["fit", "--config=fit.yaml", *own]),
        (Path("rank.csv"), ["rank", str(store)]),
        (Path("sheet.png"), ["sheet", "tb_logs/small"]),
    ):
        process = holder(place)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(command)
        end(process)
        assert stopped.value.code == 2
        (line,) = last_words(capsys.readouterr().err)
        assert f"{place.name} is being written by process {process.pid} on " in line
    assert SweepStore(store).size == 8
    assert not [*version.iterdir()]


def test_a_version_is_one_runs(desk: Path) -> None:
    (desk / "tb_logs/x/version_3").mkdir(parents=True)
    with ThreadPoolExecutor(8) as pool:
        made = [*pool.map(lambda _: _next_version(partial(FolderOnly, "tb_logs", "x")), range(8))]
    assert sorted(logger.version for logger in made) == [*range(4, 12)]


@pytest.mark.parametrize("name", ["/", "../../x", "a/../../x", "", ".", "x" * 300])
def test_a_run_stays_in_its_folder(
    desk: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--config=fit.yaml", f"--name={name}"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mti: error: name ")
    assert len(line) < 200
    assert [path.name for path in desk.iterdir()] == ["fit.yaml"]


def test_without_a_logger_pictures_are_kept(desk: Path) -> None:
    for none in ("false", "[]"):
        main(["fit", "--config=fit.yaml", f"--trainer.logger={none}", "--trainer.max_epochs=1"])
    kept = {path.name for path in Path("tb_logs/small/version_1").iterdir()}
    assert kept == {"config.yaml", "checkpoints", "pictures", "results.csv"}


def test_a_long_name_of_a_picture_costs_nothing(desk: Path) -> None:
    Path("pictures").mkdir()
    values = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(values).save(f"pictures/{'画' * 78}.png")
    arguments = ["--data=PictureFolder", "--data.path=pictures", "--model=PositiveInversion"]
    arguments += ["--trainer.max_epochs=1", "--model.coherent=false"]
    main(["fit", "--config=fit.yaml", *arguments])
    assert len(results(Path("tb_logs/small/version_0"))) == 2 + 1 + 2


def test_a_file_that_cannot_be_written_costs_none_of_the_others(
    desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    entries: list[str] = []
    build = MaximallyTense.build_bank

    def put_in_the_way(self: MaximallyTense, data: object) -> None:
        build(self, data)
        entries[:] = [entry.id for entry in self.entries]
        Path("tb_logs/small/version_0/pictures", f"{entries[0]}.png").mkdir(parents=True)

    monkeypatch.setattr(MaximallyTense, "build_bank", put_in_the_way)
    Path("tb_logs/small").mkdir(parents=True)
    own = [f"--trainer.logger.{k}={v}" for k, v in (("save_dir", "tb_logs"), ("name", "small"))]
    own += ["--trainer.logger.version=0", "--trainer.max_epochs=1"]
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config=fit.yaml", "--trainer.logger=TensorBoardLogger", *own])
    assert stopped.value.code == 2
    (line,) = last_words(capsys.readouterr().err)
    assert f"{entries[0]}.png cannot be written: Is a directory (1 of 3 files are missing)" in line
    rows = read_table(Path("tb_logs/small/version_0/results.csv"))
    assert [row["file"] for row in rows] == ["", f"pictures/{entries[1]}.png"]
    assert Path("tb_logs/small/version_0", rows[1]["file"]).is_file()


@pytest.fixture
def small_disk(desk: Path) -> Iterator[Path]:
    disk = desk / "tb_logs"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk can be mounted by root only")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    "command",
    ["fit", "sheet"]
    + [
        pytest.param(command, marks=pytest.mark.slow)
        for command in ("validate", "rank", "gone", "in the way")
    ],
)
def test_what_cannot_be_written_costs_a_line(
    desk: Path, request: pytest.FixtureRequest, command: str
) -> None:
    fit = ["fit", "--config=fit.yaml"]
    do, args, told = "pass", fit, "the disk is full; make room"
    if command in ("fit", "validate"):
        (request.getfixturevalue("small_disk") / "filler").write_bytes(bytes(40_000))
        if command == "validate":
            config = f"--config={CONFIGS / 'demo_validate.yaml'}"
            args = ["validate", config, *QUIET, "--model.rendered=0", "--model.pictures=16"]
    elif command == "sheet":
        main(fit)
        Path("tb_logs").rename("runs")
        (request.getfixturevalue("small_disk") / "filler").write_bytes(bytes(60_000))
        args = ["sheet", "runs/small", "--out=tb_logs/sheet.png"]
    elif command == "rank":
        main(SWEEP)
        args = ["rank", "tb_logs/demo_sweep/sweep.zarr", "--out=/dev/full", "--overwrite"]
    elif command == "gone":
        do, told = "import shutil; shutil.rmtree('tb_logs')", "No such file or directory"
    else:
        Path("tb_logs").write_text("a note")
        told = "cannot be written: Not a directory"
    done = run_with(STEP, 5, do, *args)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()[-1:]
    assert line.startswith("mti: error: ")
    assert told in line
    assert "Traceback" not in done.stderr
