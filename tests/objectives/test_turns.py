"""The image bank shared out among processes: as one process makes it, to the bit."""

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from mti_lightning.cli import main
from mti_lightning.log import LOG

ROOT = Path(__file__).parents[2]
ATLAS = """
name: NAME
trainer:
  accelerator: cpu
  max_epochs: 2
  enable_progress_bar: false
  callbacks:
    - {class_path: ModelCheckpoint, init_args: {save_top_k: -1, filename: "{epoch}"}}
model:
  class_path: AtlasInversion
  init_args:
    backbone: {name: vetoed_shapes_resnet}
    features: ["fc:3"]
    attribution_layer: layer4
    chart: {sweep: sweep.zarr, size: [3, 3], minimum: 4}
    steps_per_epoch: 2
    batch_size: 4
data:
  class_path: VetoedShapesPictures
  init_args: {size: 48, seed: 5, contents: tense}
"""


@pytest.fixture(autouse=True)
def one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """How many threads a process has shows in the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(LOG, "handlers", [logging.NullHandler()])
    yield
    torch.set_num_threads(threads)


def fit(name: str, *arguments: str) -> dict[str, bytes]:
    """Run the atlas, two processes in one of their own, and return its files by name."""
    config = Path(f"{name}.yaml")
    config.write_text(ATLAS.replace("NAME", name))
    made = Path("tb_logs") / name / "version_0"
    given = ["fit", "--config", str(config), *arguments]
    if "--trainer.devices=2" in given:
        command = [sys.executable, "-W", "ignore", "-m", "mti_lightning", *given]
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": paths}
        done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == str(made)
    else:
        main(given)
    kinds = ("pictures/*.png", "atlas/*.png", "results.csv", "atlas*.html", "atlas_*.csv")
    return {str(p.relative_to(made)): p.read_bytes() for kind in kinds for p in made.glob(kind)}


@pytest.mark.parametrize(
    ("given", "faces"),
    [
        ([], 3),
        pytest.param(
            ["--model.chart.apart=true", "--model.features=[fc:3, fc:0]", "--model.keep=48"],
            2,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["one map", "a map for each sign"],
)
def test_two_processes_give_the_atlas_of_one_and_one_continues_it(
    given: list[str], faces: int
) -> None:
    one = fit("one", *given)
    assert len([name for name in one if name.startswith("atlas/")]) == 2 * faces
    assert len([name for name in one if name.endswith(".html")]) == (1 if faces == 3 else 2)
    two = fit("two", *given, "--trainer.devices=2")
    assert one.keys() == two.keys()
    assert [name for name, made in one.items() if made != two[name]] == []
    (checkpoint,) = Path("tb_logs/two").rglob("epoch=0.ckpt")
    continued = fit("continued", *given, f"--ckpt_path={checkpoint}")
    assert [name for name, made in one.items() if made != continued[name]] == []
    saved = yaml.safe_load(Path("tb_logs/two/version_0/config.yaml").read_text())
    assert saved["trainer"]["strategy"] == "auto"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.batch_size=64"], r"2 devices for a bank of \d+ images, 64 at once; give fewer"),
        (["--trainer.strategy=ddp"], "DDPStrategy cannot share out an image bank among 2 devices"),
    ],
)
def test_what_two_processes_cannot_do(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("run.yaml").write_text(ATLAS)
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config=run.yaml", "--trainer.devices=2", *arguments])
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])
    assert not Path("tb_logs").exists()
