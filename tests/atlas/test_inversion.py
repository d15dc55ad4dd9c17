"""The atlas of a small sweep of the vetoed shapes: its targets, its pictures, its page."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image, ImageColor
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mti_lightning import (
    AtlasInversion,
    AtlasLog,
    Backbone,
    Chart,
    InputError,
    MaximallyTense,
    SweepStore,
    Tension,
    VetoedShapesPictures,
)
from mti_lightning.atlas.columns import COLUMNS, KINDS
from mti_lightning.atlas.contents import crop
from mti_lightning.atlas.data_set import data_set_of, labels_of
from mti_lightning.atlas.projector import project
from mti_lightning.attribution.methods import ActGrad, attribute
from mti_lightning.attribution.signs import at_scale
from mti_lightning.callbacks import PictureLog, Results
from mti_lightning.pages import read_data
from mti_lightning.tables import read_table

PICTURES, CLASS = 48, "fc:3"


@pytest.fixture(scope="module")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Chart:
    """Of a sweep that is made on the way."""
    sweep = tmp_path_factory.mktemp("sweep") / "sweep.zarr"
    made = Chart(str(sweep), size=(2, 2), minimum=5, exemplars=3)
    inversion(made).build_bank(world())
    return made


def world() -> VetoedShapesPictures:
    return VetoedShapesPictures(PICTURES, seed=5, contents="tense")


def inversion(chart: Chart, **options: object) -> AtlasInversion:
    settings = {"features": [CLASS], "attribution_layer": "layer4", "steps_per_epoch": 3}
    backbone = Backbone("vetoed_shapes_resnet", input_size=options.pop("input_size", None))
    return AtlasInversion(backbone, chart=chart, **{"keep": PICTURES, **settings, **options})


def run(
    folder: Path,
    objective: object,
    epochs: int = 2,
    chart: Chart | None = None,
    version: int | None = None,
    also: tuple[Callback, ...] = (),
    **fit: object,
) -> Path:
    logger = TensorBoardLogger(folder, "run", version=version, default_hp_metric=False)
    trainer = Trainer(
        max_epochs=epochs,
        logger=logger,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            PictureLog(),
            AtlasLog(chart),
            Results(),
            *also,
            ModelCheckpoint(save_top_k=-1, filename="{epoch}-{step}", every_n_train_steps=1),
        ],
    )
    trainer.fit(objective, **fit)
    return Path(logger.log_dir)


@pytest.fixture(scope="module")
def whole(chart: Chart, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs that was not stopped."""
    return run(tmp_path_factory.mktemp("whole"), inversion(chart))


def assert_same(folder: Path, whole: Path, epochs: tuple[int, ...] = (0, 1)) -> None:
    """The atlases of some epochs, no others, and the page are those of a whole run."""
    names = {path.name for path in (whole / "atlas").iterdir()}
    wanted = {name for name in names if int(name[-7:-4]) in epochs}
    assert len(wanted) == 3 * len(epochs)
    assert {path.name for path in (folder / "atlas").iterdir()} == wanted
    for name in wanted:
        assert (folder / "atlas" / name).read_bytes() == (whole / "atlas" / name).read_bytes()
    assert (folder / "atlas.html").read_bytes() == (whole / "atlas.html").read_bytes()


def test_a_cell_s_targets_are_the_means_of_its_pictures_targets(chart: Chart) -> None:
    objective = inversion(chart)
    objective.build_bank(None)
    found = objective.map
    assert found is not None
    assert sum(cell.count for cell in found.cells) <= PICTURES
    data = world()
    data.use(objective.backbone.preprocessing)
    for source, cell in enumerate(found.cells):
        shown = torch.stack(
            [data.pictures[int(found.layout.pictures[i])]["picture"] for i in cell.members]
        )
        bound_features = [objective.bound_features[0]] * cell.count
        activations, attribution, _ = attribute(
            objective.backbone, shown, bound_features, objective.layer, ActGrad()
        )
        way = torch.where(activations < 0, -1, 1)
        unit = attribution / attribution.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        excites = at_scale(unit.sum(1, keepdim=True), 0.1, objective.layout) > 0
        wanted = {
            "positive": (unit.clamp(min=0) * excites * way).mean(0),
            "negative": ((-unit).clamp(min=0) * ~excites * way).mean(0),
        }
        wanted["both"] = wanted["positive"] + wanted["negative"]
        for chunk in objective.chunks:
            targets, _ = objective.target(chunk)[objective.layer]
            for entry, target in zip(chunk.entries, targets, strict=True):
                if entry.source == source:
                    torch.testing.assert_close(
                        target, wanted[entry.objective], rtol=1e-4, atol=1e-6
                    )
        made = {entry.objective for entry in objective.entries if entry.source == source}
        strength = {
            "positive": lambda cell: cell.means["excitation"],
            "negative": lambda cell: cell.means["inhibition"],
            "both": lambda cell: cell.means["excitation"] + cell.means["inhibition"],
        }
        assert made == {
            face
            for face, target in wanted.items()
            if target.any() and strength[face](cell) >= 0.05 * max(map(strength[face], found.cells))
        }


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"top": 0}, "top 0: give 1 or more"),
        ({"size": (3, 0)}, "size 0: give 1 or more"),
        ({"minimum": 0}, "minimum 0: give 1 or more"),
        ({"exemplars": -1}, "exemplars -1: give 0 or more"),
        ({"neighbours": 1}, "neighbours 1: give 2 or more"),
        ({"min_dist": 1.5}, "min_dist 1.5: give 0 to 1"),
        ({"trim": 50}, "trim 50: give 0 to 49"),
        ({"seed": -1}, "seed -1: give 0 to 4294967295"),
        ({"by": ("tensoin",)}, "there is no measure 'tensoin'"),
    ],
)
def test_numbers_out_of_range_are_refused_at_once(given: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Chart(**given)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"faint": 2}, "faint 2: give 0 to 1"),
        ({"power": -1}, "power -1: give 0 or more"),
        ({"rivals": -1}, "rivals -1: give 0 or more"),
    ],
)
def test_options_out_of_range_are_refused(given: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        inversion(Chart(), **given)


def test_bad_charts_are_refused(chart: Chart, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="accentuate: an icon stands for many pictures"):
        inversion(chart, accentuate=True)
    with pytest.raises(InputError, match=r"there is no complete sweep at .*none\.zarr; make"):
        inversion(replace(chart, sweep=str(tmp_path / "none.zarr"))).build_bank(None)
    with pytest.raises(InputError, match=r"there is no feature 'fc:0' of .*; it has fc:3"):
        inversion(chart, features=["fc:0"]).build_bank(None)
    with pytest.raises(InputError, match="was made with attribution_layer 'layer4', not 'layer3'"):
        inversion(chart, attribution_layer="layer3").build_bank(None)
    other = AtlasInversion(
        Backbone("vetoed_shapes_resnet", "random"), [CLASS], "layer4", chart=chart
    )
    with pytest.raises(InputError, match=r"was made with weights '[0-9a-f]{16}', not '[0-9a-f]"):
        other.build_bank(None)
    with pytest.raises(InputError, match="no cell of the map of 48 pictures has 49; give"):
        inversion(replace(chart, minimum=49)).build_bank(None)


class Other(ActGrad):
    """Another attribution method."""


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        (VetoedShapesPictures(60, 5, contents="tense"), {}, "data.init_args.size 48, not 60; give"),
        (VetoedShapesPictures(48, 6, contents="tense"), {}, "data.init_args.seed 5, not 6; give"),
        (world(), {"keep": 9}, "keep 48, not 9; give the same, or another chart.sweep"),
        (world(), {"rivals": 8}, "rivals None, not 8; give the same, or another chart.sweep"),
        (
            None,
            {"attribution": Other()},
            "attribution.class_path 'mti_lightning.ActGrad",
        ),
        (None, {"tension": Tension("minimum")}, "tension.measure 'geometric', not 'minimum'; give"),
        (
            None,
            {"input_size": (64, 64)},
            r"preprocessing.size \[96, 96\], not \[64, 64\]; give",
        ),
    ],
    ids=["size", "seed", "keep", "rivals", "attribution", "tension", "input size"],
)
def test_a_sweep_that_was_made_otherwise_is_refused(
    chart: Chart, data: object, options: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError, match=f"was made with {words}"):
        inversion(chart, **options).build_bank(data)


def test_with_rivals_its_sweep_measures_interference(tmp_path: Path) -> None:
    made = Chart(str(tmp_path / "sweep.zarr"), size=(2, 2), minimum=5)
    objective = inversion(made, rivals=8)
    objective.build_bank(world())
    index = objective.map.columns["interference"]
    assert ((index > 0) & (index < 1)).all()
    assert all(0 < cell.means["interference"] < 1 for cell in objective.map.cells)
    assert objective.measure()["interference"].isfinite().all()


def test_a_sweep_s_own_data_are_taken(chart: Chart) -> None:
    inversion(chart).build_bank(world())
    # What is not to be made may be chosen as is not possible while making it.
    objective = inversion(replace(chart, by=("balance",), top=30, minimum=2))
    objective.build_bank(None)
    assert len(objective.map.layout.pictures) == 30


def test_where_nothing_excites_or_inhibits_there_is_no_atlas(tmp_path: Path) -> None:
    backbone = Backbone("vetoed_shapes_resnet")
    backbone.network.fc.weight.data[3] = 0
    empty = Chart(str(tmp_path / "sweep.zarr"), minimum=1)
    objective = AtlasInversion(backbone, [CLASS], "layer4", chart=empty)
    with pytest.raises(
        InputError, match=r"nothing excites or inhibits fc:3 \(star\) at layer4 in .*zarr, s"
    ):
        objective.build_bank(VetoedShapesPictures(12))


@pytest.fixture(scope="module")
def apart(chart: Chart) -> AtlasInversion:
    """Of a map for each sign."""
    made = inversion(replace(chart, apart=True, quiet=0.3))
    made.build_bank(None)
    return made


def test_each_sign_may_have_a_map_of_its_own(apart: AtlasInversion) -> None:
    assert {*apart.maps} == {"positive", "negative"}
    for face, name in (("positive", "excitation"), ("negative", "inhibition")):
        found = apart.maps[face]
        every = found.store.values(name, 0)
        strong = np.flatnonzero(every >= 0.3 * np.percentile(every, 95))
        assert {*strong} <= {*found.layout.pictures.tolist()}
        entries = [entry for entry in apart.entries if entry.objective == face]
        assert entries
        for entry in entries:
            assert entry.id.startswith({"positive": "excites", "negative": "inhibits"}[face])
            target = apart._targets[entry.source][face]
            strength = target.sum(1)[0]
            row, column = divmod(int(strength.argmax()), strength.shape[1])
            # The middle: where the strongest place of each picture was brought to.
            assert abs(row - strength.shape[0] // 2) <= 1
            assert abs(column - strength.shape[1] // 2) <= 1
    with pytest.raises(InputError, match=r"with chart\.apart there are positive and negative"):
        inversion(apart.chart, faces=("both",))


SEVERAL = ["fc:0", "fc:3"]


def test_several_features_share_a_map_that_is_coloured_by_them(
    tmp_path: Path,
) -> None:
    made = Chart(str(tmp_path / "sweep.zarr"), size=(2, 2), minimum=5, exemplars=3, quiet=0)
    folder = run(
        tmp_path, inversion(made, features=SEVERAL), epochs=1, datamodule=world(), version=0
    )
    objective = inversion(made, features=SEVERAL)
    objective.build_bank(None)
    found = objective.map
    assert found is not None
    pairs = [*zip(found.of.tolist(), found.layout.pictures.tolist(), strict=True)]
    assert sorted(pairs) == [(of, place) for of in (0, 1) for place in range(PICTURES)]
    for of in (0, 1):
        for name, values in found.columns.items():
            np.testing.assert_array_equal(values[found.of == of], found.store.values(name, of))
    # A star excites the one class and inhibits the other.
    labels = labels_of(found, data_set_of(found))
    kinds = np.stack([found.feature_names, labels], 1)
    points = found.layout.points
    near = np.argsort(np.linalg.norm(points[:, None] - points, axis=2))[:, 1:4]
    assert (kinds[near] == kinds[:, None]).all(2).mean() > 0.8
    for entry in objective.entries:
        own = found.of[objective.cell(entry.source).members]
        assert entry.feature == np.bincount(own, minlength=2).argmax()
    for row in read_table(folder / "atlas_cells.csv"):
        told = [part.rsplit(": ", 1) for part in row["features"].split("; ")]
        assert sum(int(count) for _, count in told) == int(row["pictures"])
        assert {name for name, _ in told} <= {*found.store.shown}
    data = read_data(folder / "atlas.html")
    assert sorted(data["kinds"]["feature"]["texts"]) == sorted(found.store.shown)
    assert len(data["x"]) == len(pairs)
    (metadata,) = folder.glob("**/metadata.tsv")
    assert metadata.read_text().splitlines()[0].split("\t")[-2:] == ["feature", "label"]
    with Image.open(folder / "atlas/positive_epoch000.png") as picture:
        colours = {colour for _, colour in picture.getcolors(1 << 24)}
    assert {ImageColor.getrgb(shade) for shade in KINDS[:2]} <= colours


def test_of_both_signs_what_excites_stands_left_and_what_inhibits_right(chart: Chart) -> None:
    objective = inversion(chart, align=True)
    objective.build_bank(None)
    for targets in objective._targets:
        both = targets["both"].sum(1)[0]
        half = both.shape[1] // 2
        assert both[:, :half].sum() > 0
        assert both[:, half:].sum() > 0


def test_a_run_from_python_makes_its_sweep_first(whole: Path, tmp_path: Path) -> None:
    """Of the sweep and of the run, each has the batches that are its own."""
    made = Chart(str(tmp_path / "sweep.zarr"), size=(2, 2), minimum=5, exemplars=3)
    assert_same(run(tmp_path, inversion(made), datamodule=world()), whole)
    assert "ground" not in str(SweepStore(made.sweep).provenance["attribution"])


def test_an_atlas_at_the_end_of_each_epoch(whole: Path) -> None:
    assert_same(whole, whole)
    events = EventAccumulator(str(whole), size_guidance={"images": 0}).Reload()
    shown = {tag for tag in events.Tags()["images"] if tag.startswith("atlas/")}
    assert shown == {
        *("atlas/positive", "atlas/negative", "atlas/both"),
        *("atlas/photographs_exciting", "atlas/photographs_inhibiting"),
    }
    assert [image.step for image in events.Images("atlas/both")] == [0, 1]


def test_another_layer_s_atlas_stands_beside_one_also_after_a_stop(
    chart: Chart, whole: Path, tmp_path: Path
) -> None:
    later = Chart(str(tmp_path / "sweep.zarr"), size=(2, 2), minimum=5, exemplars=3)
    options = {"attribution_layer": "layer3", "beside": str(whole), "steps_per_epoch": 1}
    folder = run(tmp_path, inversion(later, **options), 1, datamodule=world(), version=0)
    links = read_table(folder / "atlas_links.csv")
    # In either map each picture is in one cell.
    assert 0.8 * PICTURES < sum(int(row["common"]) for row in links) <= PICTURES
    assert len(read_table(folder / "atlas_pictures.csv")) == PICTURES
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    assert "atlas/beside_both" in events.Tags()["images"]
    start = str(folder / "checkpoints/epoch=0-step=1.ckpt")
    on = {"ckpt_path": start, "weights_only": True}
    again = run(tmp_path, inversion(later, **options), 1, version=1, **on)
    for name in ("beside_both.html", "beside_both.png", "atlas_links.csv"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    with pytest.raises(InputError, match="beside: there is no finished atlas in"):
        run(tmp_path, inversion(later, **options | {"beside": "none"}), version=2)


@pytest.mark.parametrize(
    ("checkpoint", "made"), [("epoch=0-step=3", (0, 1)), ("epoch=1-step=4", (1,))]
)
def test_a_run_goes_on_with_the_same_atlas(
    chart: Chart, whole: Path, tmp_path: Path, checkpoint: str, made: tuple[int, ...]
) -> None:
    start = str(whole / "checkpoints" / f"{checkpoint}.ckpt")
    folder = run(tmp_path, inversion(chart), ckpt_path=start, weights_only=True)
    assert_same(folder, whole, made)  # no epoch's atlas is made of icons of the next


def test_a_finished_run_that_goes_on_makes_up_what_is_missing(
    chart: Chart, whole: Path, tmp_path: Path
) -> None:
    last = str(whole / "checkpoints/epoch=1-step=6.ckpt")
    assert_same(run(tmp_path, inversion(chart), ckpt_path=last, weights_only=True), whole, (1,))


KILLED = """
import os, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from lightning import Callback
from mti_lightning import Chart
from tests.atlas.test_inversion import inversion, run

class Die(Callback):
    def on_train_batch_end(self, trainer, *_):
        if (trainer.current_epoch, trainer.global_step) == {when}:
            os._exit(9)

run(Path({folder!r}), inversion({chart!r}), version=0, also=(Die(),))
"""


@pytest.mark.filterwarnings("ignore:Checkpoint directory")  # it goes on where it was killed
@pytest.mark.parametrize(
    ("when", "start"),
    [
        ((1, 5), "epoch=1-step=4"),
        pytest.param((1, 4), "epoch=0-step=3", marks=pytest.mark.slow),
        pytest.param((0, 2), "epoch=0-step=1", marks=pytest.mark.slow),
        pytest.param((0, 1), None, marks=pytest.mark.slow),
    ],
)
def test_killed_within_an_epoch_and_continued_it_ends_with_the_same_atlas(
    chart: Chart, whole: Path, tmp_path: Path, when: tuple[int, int], start: str | None
) -> None:
    script = tmp_path / "killed.py"
    root = str(Path(__file__).parents[2])
    script.write_text(KILLED.format(root=root, folder=str(tmp_path), chart=chart, when=when))
    died = subprocess.run([sys.executable, str(script)], check=False, capture_output=True)
    assert died.returncode == 9, died.stderr
    folder = tmp_path / "run/version_0"
    assert not (folder / "results.csv").exists()
    checkpoint = {}
    if start:
        checkpoint = {"ckpt_path": str(folder / f"checkpoints/{start}.ckpt"), "weights_only": True}
    run(tmp_path, inversion(chart), version=0, **checkpoint)
    assert_same(folder, whole)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_maps_for_each_sign_that_were_killed_end_the_same(chart: Chart, tmp_path: Path) -> None:
    apart = replace(chart, apart=True)
    script, root = tmp_path / "killed.py", str(Path(__file__).parents[2])
    script.write_text(KILLED.format(root=root, folder=str(tmp_path), chart=apart, when=(1, 5)))
    died = subprocess.run([sys.executable, str(script)], check=False, capture_output=True)
    assert died.returncode == 9, died.stderr
    start = str(tmp_path / "run/version_0/checkpoints/epoch=1-step=4.ckpt")
    on = {"ckpt_path": start, "weights_only": True}
    folders = (
        run(tmp_path, inversion(apart), version=0, **on),
        run(tmp_path, inversion(apart), version=1),
    )
    kinds = ("atlas/*.png", "*.png", "atlas*.html", "*.csv")
    made = [
        {str(path.relative_to(one)): path.read_bytes() for kind in kinds for path in one.glob(kind)}
        for one in folders
    ]
    assert {"atlas_excites.html", "atlas_inhibits.html", "atlas/positive_epoch001.png"} <= {
        *made[0]
    }
    assert made[0].keys() == made[1].keys()
    assert [name for name, held in made[0].items() if held != made[1][name]] == []


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_what_a_killed_run_left_is_not_taken_for_another_s(
    chart: Chart, whole: Path, tmp_path: Path
) -> None:
    left = run(tmp_path, inversion(chart, seed=7), version=0)
    for name in ("results.csv", "atlas.html"):  # which a kill comes before
        (left / name).unlink()
    assert_same(run(tmp_path, inversion(chart), version=0), whole)


def test_what_cells_hold_is_told(chart: Chart, apart: AtlasInversion, whole: Path) -> None:
    folder = run(whole.parent.parent, inversion(apart.chart, steps_per_epoch=1), epochs=1)
    assert (folder / "atlas_excites.html").is_file()
    assert (folder / "atlas_inhibits.html").is_file()
    cells = read_table(folder / "atlas_cells.csv")
    assert {row["map"] for row in cells} == {"excites", "inhibits"}
    first = apart.maps["positive"]
    assert [int(row["pictures"]) for row in cells[: len(first.cells)]] == [
        cell.count for cell in first.cells
    ]
    units = read_table(folder / "atlas_units.csv")
    shown = first.cells[0]
    maps = torch.from_numpy(first.store.maps(first.rows[shown.members]))
    excites = at_scale(maps.sum(1, keepdim=True), 0.1, first.store.map_layout) > 0
    added = (maps.clamp(min=0) * excites).sum((2, 3)).mean(0)
    best = int(added.argmax())
    assert (units[0]["map"], units[0]["unit"]) == ("excites", str(best))
    assert float(units[0]["adds"]) == pytest.approx(float(added[best]), rel=1e-4)
    assert any(float(row["adds"]) < 0 for row in units)
    for name in ("photographs_exciting", "photographs_inhibiting"):
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.width == 1800
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    assert "atlas/photographs_exciting" in events.Tags()["images"]


def test_photographs_are_cut_to_where_they_excite_most() -> None:
    picture = Image.fromarray(np.arange(100 * 200, dtype=np.uint16).reshape(100, 200) % 251 + 0)
    part = np.asarray(crop(picture, 0.5, 0.25))
    assert part.shape == (45, 45)
    np.testing.assert_array_equal(part, np.asarray(picture)[28:73, 28:73])
    corner = np.asarray(crop(picture, 1.0, 1.0))
    np.testing.assert_array_equal(corner, np.asarray(picture)[55:, 155:])


def test_where_a_run_s_own_pictures_lie(chart: Chart, tmp_path: Path) -> None:
    objective = MaximallyTense(
        Backbone("vetoed_shapes_resnet"), [CLASS], "layer4", seeds=2, steps_per_epoch=3
    )
    folder = run(tmp_path, objective, epochs=1, chart=chart)
    (picture,) = (folder / "atlas").iterdir()
    assert picture.name == "fc-3_epoch000.png"


@pytest.mark.parametrize(
    ("backbone", "layer", "words"),
    [
        (("vetoed_shapes_resnet",), "layer3", "attribution_layer 'layer4', not 'layer3'; give"),
        (("vetoed_shapes_resnet", "random"), "layer4", r"weights '[0-9a-f]{16}"),
        (("resnet18", "random"), "layer4", r"weights '[0-9a-f]{16}"),
    ],
)
def test_pictures_of_another_network_or_layer_have_no_place_on_a_map(
    chart: Chart, tmp_path: Path, backbone: tuple[str, ...], layer: str, words: str
) -> None:
    objective = MaximallyTense(Backbone(*backbone), [CLASS], layer, steps_per_epoch=3)
    with pytest.raises(InputError, match=f"was made with {words}"):
        run(tmp_path, objective, epochs=1, chart=chart)


def test_umap_is_fitted_once_for_all_grids(
    chart: Chart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, again = inversion(chart), inversion(chart)
    first.build_bank(None)
    monkeypatch.setattr("mti_lightning.atlas.embedding.embed", None)
    again.build_bank(None)
    np.testing.assert_array_equal(first.map.layout.points, again.map.layout.points)
    monkeypatch.chdir(Path(chart.sweep).parent)
    for grid in ({"minimum": 3}, {"exemplars": 1}, {"size": (3, 3), "minimum": 1}, {"trim": 5}):
        inversion(replace(chart, sweep="sweep.zarr", **grid)).build_bank(None)
    with pytest.raises(TypeError):
        inversion(replace(chart, seed=1)).build_bank(None)


# --- what TensorBoard serves ---


def test_the_projector_has_all_columns_of_the_map_and_what_pictures_are(
    chart: Chart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(COLUMNS, "tension_l2", "Another one.")
    objective = inversion(chart)
    objective.build_bank(None)
    project([objective.map], tmp_path)
    (metadata,) = tmp_path.glob("**/metadata.tsv")
    head, *rows = (line.split("\t") for line in metadata.read_text().splitlines())
    assert head == [
        *("picture", "response", "excitation", "inhibition", "tension", "tension_l2", "label")
    ]
    assert len(rows) == PICTURES
    truth = {row[0]: row[-1] for row in rows}
    pictures = world()
    pictures.use(objective.backbone.preprocessing)
    for index in range(PICTURES):
        # Shape k = index mod 8 and its veto, k + 3: the class is a star, which a crescent vetoes.
        wanted = {3: "star and crescent", 0: "star", 6: "crescent"}.get(index % 8, "neither")
        assert truth[pictures.pictures.keys[index]] == wanted


@contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """Start TensorBoard on a free port; yield its address."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", "0"]
    started = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--load_fast", "false"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert started.stderr is not None
        said = []
        for line in started.stderr:
            said.append(line)
            if found := re.search(r"at (http://\S+)", line):
                yield found[1] + "data/plugin/"
                return
        pytest.fail("".join(said))
    finally:
        started.kill()
        started.communicate()


def test_tensorboard_serves_the_atlas(whole: Path) -> None:
    with tensorboard(whole) as address:

        def get(what: str, **query: object) -> bytes:
            with urlopen(f"{address}{what}?{urlencode(query)}", timeout=30) as answer:
                return answer.read()

        until, shown = time.monotonic() + 60, []
        while len(shown) < 2:  # it reads the events one after the other
            assert time.monotonic() < until, shown
            time.sleep(0.2)
            if "atlas/both" in json.loads(get("images/tags")).get(".", {}):
                shown = json.loads(get("images/images", run=".", tag="atlas/both", sample=0))
        assert [image["step"] for image in shown] == [0, 1]
        with urlopen(f"{address}images/individualImage?{shown[1]['query']}") as answer:
            served = Image.open(BytesIO(answer.read()))
        with Image.open(whole / "atlas/both_epoch001.png") as picture:
            assert np.array_equal(served.convert("RGB"), picture)
        (embedding,) = json.loads(get("projector/info", run="."))["embeddings"]
        name = embedding["tensorName"]
        assert name.startswith("fc-3")
        assert embedding["tensorShape"][0] == PICTURES
        side, _ = embedding["sprite"]["singleImageDim"]
        with Image.open(BytesIO(get("projector/sprite_image", run=".", name=name))) as sprite:
            assert sprite.size == (7 * side, 7 * side)  # 48 pictures
        head, *rows = get("projector/metadata", run=".", name=name).decode().splitlines()
        assert head.split("\t")[:2] == ["picture", "response"]
        assert {row.split("\t")[0] for row in rows} == {
            f"tense/test/5/{i}" for i in range(PICTURES)
        }
