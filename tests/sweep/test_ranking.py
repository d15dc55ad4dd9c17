"""Ranking: the tables, sheets and scatters of a sweep."""

import csv
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import zarr
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mti_lightning import Backbone, InputError, PictureFolder, Sweep, SweepStore
from mti_lightning.sweep.measures import MEASURES
from mti_lightning.sweep.ranking import layer_table, log, make_ranking, scatter, table
from mti_lightning.sweep.writing import SweepWriter
from mti_lightning.vetoed_shapes.shapes import KINDS
from tests.sweep.test_module import predict, sweep, world
from tests.sweep.test_store import MADE


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SweepStore:
    path = tmp_path_factory.mktemp("ranked") / "sweep.zarr"
    predict(sweep(path), world(40))
    return SweepStore(path)


@pytest.mark.parametrize("measure", [*MEASURES, "-response", "-balance"])
def test_a_table_is_sorted_by_its_measure(store: SweepStore, measure: str) -> None:
    rows = table(store, 2, measure, 7)
    name, low = measure.removeprefix("-"), measure.startswith("-")
    values = store.values(name, 2)
    wanted = np.sort(values) if low else np.sort(values)[::-1]
    assert [row["rank"] for row in rows] == list(range(1, 8))
    np.testing.assert_allclose([float(row[name]) for row in rows], wanted[:7], rtol=1e-5)
    assert [row["key"] for row in rows] == [store.keys[row["index"]] for row in rows]


@pytest.mark.parametrize("at_once", [1, 2**22])
@pytest.mark.parametrize("measure", ["tension", "response", "-response", "harmonic"])
def test_features_are_ranked_by_how_high_a_measure_gets(
    store: SweepStore, measure: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mti_lightning.sweep.store._AT_ONCE", at_once)  # block by block, and all
    rows = layer_table(store, measure)
    name, low = measure.removeprefix("-"), measure.startswith("-")
    values = store.values(name)
    high = np.quantile(values, 0.01 if low else 0.99, axis=0)
    order = np.argsort(high if low else -high)
    assert [row["feature"] for row in rows] == [f"fc:{k}" for k in order]
    assert [row["class"] for row in rows] == [KINDS[k] for k in order]
    shown = [float(row[f"{name}_{'1st' if low else '99th'}"]) for row in rows]
    np.testing.assert_allclose(shown, high[order], rtol=1e-5)
    means = [float(row[f"{name}_mean"]) for row in rows]
    np.testing.assert_allclose(means, values.mean(0)[order], rtol=1e-4)
    best = (values.argmin(0) if low else values.argmax(0))[order]
    assert [row["lowest" if low else "highest"] for row in rows] == store.keys_of(best)


def test_features_are_ranked_in_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mti_lightning.sweep.store._AT_ONCE", 2**15)
    rows, wide = 40_000, 64
    made = {**MADE, "features": [f"fc:{k}" for k in range(wide)]}
    store = SweepWriter.begin(tmp_path / "s.zarr", made, ["x"] * rows, np.ones(4), 250)
    values = np.random.default_rng(0).random((rows, wide), np.float32)
    zarr.open_group(store.path)["tension"][:] = values
    tracemalloc.start()
    high = [float(row["tension_99th"]) for row in layer_table(store)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(high, -np.sort(-np.quantile(values, 0.99, axis=0)), rtol=1e-5)
    assert peak < values.nbytes / 3


def test_a_scatter_has_every_picture_and_zero_in_the_middle(store: SweepStore) -> None:
    ringed = store.top(1, "tension", 5)
    names = ("excitation", "inhibition", "response")
    columns = {name: store.values(name, 1) for name in names}
    dots, rings = scatter(columns, ringed, "fc:1").axes[0].collections
    assert len(dots.get_offsets()) == 40
    excited, inhibited = store.values("excitation", 1), store.values("inhibition", 1)
    np.testing.assert_allclose(rings.get_offsets(), np.c_[inhibited, excited][ringed])
    assert dots.norm.vmin == -dots.norm.vmax
    assert dots.norm.vmax == pytest.approx(np.abs(store.values("response", 1)).max())


def test_a_sweep_is_shown_in_tensorboard(store: SweepStore, tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, "", "")
    log(store, [logger])
    events = EventAccumulator(logger.log_dir).Reload()
    shown = {f"sweep/fc:{k} ({kind})" for k, kind in enumerate(KINDS)}
    assert set(events.Tags()["images"]) == shown | {"sweep_features"}
    assert "sweep_features/text_summary" in events.Tags()["tensors"]


def test_a_sheet_outlines_the_window(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for grey in range(0, 250, 50):
        Image.new("RGB", (96, 96), (grey, 255 - grey, 128)).save(folder / f"{grey}.png")
    path = tmp_path / "sweep.zarr"
    module = Sweep(
        Backbone("vetoed_shapes_resnet"),
        ["layer2.0.act2/input:*@centre"],
        "layer1",
        store=str(path),
    )
    predict(module, PictureFolder(folder))
    store = SweepStore(path)
    top, left, height, width = store.window(3)
    assert max(height, width) < 96
    out, sheet = tmp_path / "rank.csv", tmp_path / "sheet.png"
    make_ranking(
        str(path), "layer2.0.act2/input:3@centre", "tension", 9, out, sheet, overwrite=False
    )
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5
    with Image.open(sheet) as image:
        tile = np.asarray(image.crop((14, 48, 14 + 176, 48 + 176)).resize((96, 96)))
    with Image.open(folder / rows[0]["key"]) as image:
        changed = np.abs(np.asarray(image).astype(int) - tile).sum(2) > 60
    rows_of, columns_of = np.nonzero(changed)
    found = [rows_of.min(), columns_of.min(), rows_of.max(), columns_of.max()]
    np.testing.assert_allclose(found, [top, left, top + height - 1, left + width - 1], atol=1)
    with pytest.raises(InputError, match=r"rank\.csv exists; give another name, or --overwrite"):
        make_ranking(str(path), None, "tension", 9, out, None, overwrite=False)
    (folder / "0.png").unlink()
    with pytest.raises(InputError, match=r"there were 5, there are 4; number 0 was 0\.png"):
        make_ranking(
            str(path), "layer2.0.act2/input:3@centre", "tension", 9, out, sheet, overwrite=True
        )


def test_the_sheet_does_not_replace_the_table(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to("a.png")
    for out, sheet in (("a.png", "a.png"), ("a.png", "b/../a.png"), ("link.png", "a.png")):
        with pytest.raises(InputError, match="cannot be the table and the sheet; give two names"):
            make_ranking("s.zarr", None, "tension", 9, tmp_path / out, tmp_path / sheet, True)
    assert not (tmp_path / "a.png").exists()
