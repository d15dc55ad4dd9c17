"""The image bank shared out among processes: as one process makes it, to the bit."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

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


def mti(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `mti` with one thread: how many a process has shows in the last bit."""
    command = [sys.executable, "-W", "ignore", "-m", "mti_lightning", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    return subprocess.run(
        command, check=False, cwd=folder, env=environment, capture_output=True, text=True
    )


def fit(folder: Path, name: str, *arguments: str) -> dict[str, bytes]:
    """Run the atlas, and return its files by name."""
    config = folder / f"{name}.yaml"
    config.write_text(ATLAS.replace("NAME", name))
    done = mti(folder, "fit", "--config", str(config), *arguments)
    assert done.returncode == 0, done.stderr
    made = folder / "tb_logs" / name / "version_0"
    assert done.stdout.splitlines()[-1] == str(made.relative_to(folder))
    kinds = ("pictures/*.png", "atlas/*.png", "results.csv", "atlas.html")
    return {str(p.relative_to(made)): p.read_bytes() for kind in kinds for p in made.glob(kind)}


def test_two_processes_give_the_atlas_of_one_and_one_continues_it(tmp_path: Path) -> None:
    one = fit(tmp_path, "one")
    assert len([name for name in one if name.startswith("atlas/")]) == 2 * 3
    two = fit(tmp_path, "two", "--trainer.devices=2")
    assert one.keys() == two.keys()
    assert [name for name, made in one.items() if made != two[name]] == []
    (checkpoint,) = (tmp_path / "tb_logs/two").rglob("epoch=0.ckpt")
    continued = fit(tmp_path, "continued", f"--ckpt_path={checkpoint}")
    assert [name for name, made in one.items() if made != continued[name]] == []
    saved = yaml.safe_load((tmp_path / "tb_logs/two/version_0/config.yaml").read_text())
    assert saved["trainer"]["strategy"] == "auto"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.batch_size=64"], r"2 devices for a bank of \d+ images, 64 at once; give fewer"),
        (["--trainer.strategy=ddp"], "DDPStrategy cannot share out an image bank among 2 devices"),
    ],
)
def test_what_two_processes_cannot_do(arguments: list[str], message: str, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(ATLAS)
    done = mti(tmp_path, "fit", "--config", str(config), "--trainer.devices=2", *arguments)
    assert done.returncode == 2
    assert re.search(message, done.stderr.splitlines()[-1])
    assert not (tmp_path / "tb_logs").exists()
