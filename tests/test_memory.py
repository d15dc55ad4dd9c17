"""Peak memory follows the batch, neither the data set nor the bank."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SWEEP = """
from lightning import Trainer
from mti_lightning import Backbone, Sweep, VetoedShapesPictures
sweep = Sweep(Backbone("vetoed_shapes_resnet"), ["fc:*"], "layer4", store="sweep.zarr", keep=16)
Trainer(accelerator="cpu", logger=False, enable_progress_bar=False).predict(
    sweep, datamodule=VetoedShapesPictures({count}), return_predictions=False
)
"""
KEPT = """
from lightning import Trainer
from mti_lightning import Backbone, Sweep, SweepStore, VetoedShapesPictures
from mti_lightning.atlas.selection import pool_store, select_pictures
sweep = Sweep(Backbone("vetoed_shapes_resnet"), ["fc:0"], "layer2", store="s.zarr", keep={count})
Trainer(accelerator="cpu", logger=False, enable_progress_bar=False).predict(
    sweep, datamodule=VetoedShapesPictures({count}), return_predictions=False
)
store = SweepStore("s.zarr")
rows, pictures = select_pictures(store, 0)
assert len(pool_store(store, rows)) == {count}
"""
UNITS = """
from lightning import Trainer
from mti_lightning import Backbone, Sweep, VetoedShapesPictures
options = {{"store": "units.zarr", "rivals": 0, "units": True, "block": 64}}
sweep = Sweep(Backbone("vetoed_shapes_resnet"), ["fc:3"], "layer4", **options)
Trainer(accelerator="cpu", logger=False, enable_progress_bar=False).predict(
    sweep, datamodule=VetoedShapesPictures({count}), return_predictions=False
)
"""
INHIBITORS = """
from mti_lightning import SweepStore
from mti_lightning.inhibitors.study import find_inhibitors
found = find_inhibitors(SweepStore("units.zarr"), most=128, examples=4)
assert found.ranking.pictures == {count} - 128
"""
ATLAS = """
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from mti_lightning import AtlasInversion, AtlasLog, Backbone, Chart, VetoedShapesPictures
backbone, chart = Backbone("vetoed_shapes_resnet"), Chart("s.zarr", size=(5, 5))
atlas = AtlasInversion(
    backbone, ["fc:3"], "layer3", chart=chart, keep={count}, rivals=0, steps_per_epoch=1
)
Trainer(
    max_epochs=1, accelerator="cpu", logger=TensorBoardLogger(""), callbacks=[AtlasLog()],
    enable_progress_bar=False,
).fit(atlas, VetoedShapesPictures({count}))
"""
BANK = """
from mti_lightning import Backbone, SignedInversion, VetoedShapesPictures, render
objective = SignedInversion(
    Backbone("vetoed_shapes_resnet"), ["fc:0"], "layer3", batch_size={batch}, steps_per_epoch=2
)
render(
    objective, VetoedShapesPictures({count}), epochs=1, accelerator="cpu",
    enable_progress_bar=False,
)
"""
# Not getrusage's: a new process starts with that of the one that started it.
PEAK = """
from pathlib import Path
print("peak", Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


def peak(script: str, folder: Path) -> int:
    """Return a script's peak memory, KiB."""
    run = [sys.executable, "-W", "ignore", "-c", script + PEAK]
    output = subprocess.run(run, cwd=folder, capture_output=True, text=True, check=True).stdout
    return int(output.split("peak")[-1])


def test_a_sweep_of_ten_times_the_pictures(tmp_path: Path) -> None:
    few, many = (tmp_path / name for name in ("few", "many"))
    few.mkdir()
    many.mkdir()
    assert peak(SWEEP.format(count=10_000), many) <= 1.1 * peak(SWEEP.format(count=1000), few)


def test_maps_of_eight_times_the_pictures(tmp_path: Path) -> None:
    few, many = (tmp_path / name for name in ("few", "many"))
    few.mkdir()
    many.mkdir()
    # 370 MB of maps; those of two shards are held at once.
    assert peak(KEPT.format(count=2400), many) <= 1.1 * peak(KEPT.format(count=300), few)
    assert sum(file.is_file() for file in (many / "s.zarr").rglob("*")) < 100


def test_inhibitors_on_eight_times_the_pictures(tmp_path: Path) -> None:
    found = []
    for count in (2_000, 16_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        peak(UNITS.format(count=count), folder)
        found.append(peak(INHIBITORS.format(count=count), folder))
    assert found[1] <= 1.1 * found[0]


def test_an_atlas_of_eight_times_the_pictures(tmp_path: Path) -> None:
    few, many = (tmp_path / name for name in ("few", "many"))
    few.mkdir()
    many.mkdir()
    # Its icons are as many; UMAP, and what is known of each picture, takes the rest.
    assert peak(ATLAS.format(count=3200), many) <= 1.1 * peak(ATLAS.format(count=400), few)


def test_a_bank_of_eight_times_the_images(tmp_path: Path) -> None:
    small = peak(BANK.format(count=8, batch=16), tmp_path)
    assert peak(BANK.format(count=64, batch=16), tmp_path) <= 1.1 * small
    assert peak(BANK.format(count=64, batch=128), tmp_path) > 1.1 * small
