"""Several attribution layers in one sweep: one pass of the network, stores as of single ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from lightning import Trainer
from torch import Tensor

from mti_lightning import ActGrad, Backbone, IntGrad, Sweep, SweepStore, VetoedShapesPictures

WORLD = "vetoed_shapes_resnet"
FEATURES = ["layer4.0.act1/input:3@mean", "fc:0", "layer4.0.act1/input:5@2,2"]
LAYERS = ["layer3", "layer2.0.act2", "act1"]
QUIET: Any = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def sweep(path: Path, layers: list[str], method: Any = None, **limits: Any) -> Sweep:
    first, *further = layers
    made = Sweep(
        *(Backbone(WORLD), FEATURES, first, method or ActGrad()),
        store=str(path),
        keep=1,
        block=2,
        further_layers=further,
    )
    data = VetoedShapesPictures(6, seed=9, contents="random", batch_size=3)
    Trainer(**QUIET, **limits).predict(made, datamodule=data, return_predictions=False)
    return made


def beside(path: Path, layers: list[str]) -> list[Path]:
    further = [path.with_name(f"{path.stem}_{layer}.zarr") for layer in layers[1:]]
    return [path, *further]


def assert_same(path: Path, other: Path) -> None:
    own, wanted = (zarr.open_group(one, mode="r") for one in (path, other))
    names = {name for name, _ in wanted.arrays()}
    assert {name for name, _ in own.arrays()} == names
    for name in names - {"stamp"}:
        np.testing.assert_array_equal(own[name][:], wanted[name][:], err_msg=name)
    assert own.attrs["sweep"]["attribution_layer"] == wanted.attrs["sweep"]["attribution_layer"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A store of each layer that was swept alone."""
    folder = tmp_path_factory.mktemp("alone")
    for layer in LAYERS:
        sweep(folder / f"{layer}.zarr", [layer])
    return {layer: folder / f"{layer}.zarr" for layer in LAYERS}


def test_pictures_go_through_the_network_once(
    tmp_path: Path, alone: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[list[int]] = []
    compute, step = Backbone._compute, Sweep.predict_step

    def count(self: Backbone, pictures: Tensor) -> Tensor:
        if passes and self._works:
            passes[-1].append(len(pictures))
        return compute(self, pictures)

    def begin(self: Sweep, *batch: Any) -> Any:
        passes.append([])
        return step(self, *batch)

    monkeypatch.setattr(Backbone, "_compute", count)
    monkeypatch.setattr(Sweep, "predict_step", begin)
    made = sweep(tmp_path / "many.zarr", LAYERS)
    assert made.store_paths == beside(tmp_path / "many.zarr", LAYERS)
    ways = [part for one in (made, *made._others) for part in one.measurement.parts]
    whole = [part for part in ways if part.window is None]
    assert len(whole) >= 6  # two groups of features for each layer
    parts = len({part.window.box for part in ways if part.window})
    assert all(batch[:1] == [3] and len(batch) - batch.count(1) == 1 + parts for batch in passes)
    for layer, path in zip(LAYERS, made.store_paths, strict=True):
        assert_same(path, alone[layer])


def test_stores_are_gone_on_with_wherever_each_of_them_is(
    tmp_path: Path, alone: dict[str, Path]
) -> None:
    path = tmp_path / "many.zarr"
    sweep(path, LAYERS[:1])  # complete
    sweep(path, LAYERS[:2], limit_predict_batches=1)
    status = SweepStore(beside(path, LAYERS)[1]).status
    assert 0 < np.count_nonzero(status) < len(status)
    made = sweep(path, LAYERS)
    for layer, own in zip(LAYERS, made.store_paths, strict=True):
        assert_same(own, alone[layer])


def test_paths_of_several_steps_begin_at_their_own_layer(tmp_path: Path) -> None:
    made = sweep(tmp_path / "many.zarr", LAYERS[:2], IntGrad(2))
    for layer, path in zip(LAYERS, made.store_paths, strict=False):
        sweep(tmp_path / "one.zarr", [layer], IntGrad(2))
        assert_same(path, tmp_path / "one.zarr")
        (tmp_path / "one.zarr").rename(tmp_path / f"done {layer}")
