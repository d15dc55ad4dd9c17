"""The atlas of a small sweep of the embedded world: its targets, its pictures, its page."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mti_lightning import (
    AtlasInversion,
    AtlasLog,
    Backbone,
    Chart,
    InputError,
    MaximallyTense,
    VetoedShapesPictures,
)
from mti_lightning.attribution import ActGrad, attribute
from mti_lightning.callbacks import PictureLog, Results

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
    settings = {"features": [CLASS], "attribution_layer": "layer4", "steps_per_epoch": 3} | options
    return AtlasInversion(Backbone("vetoed_shapes_resnet"), chart=chart, keep=PICTURES, **settings)


def run(
    folder: Path, objective: object, epochs: int = 2, chart: Chart | None = None, **fit: object
) -> Path:
    logger = TensorBoardLogger(folder, "run", default_hp_metric=False)
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
            ModelCheckpoint(save_top_k=-1, filename="{epoch}"),
        ],
    )
    trainer.fit(objective, **fit)
    return Path(logger.log_dir)


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
        probes = [objective.probes[0]] * cell.count
        _, attribution, _ = attribute(objective.backbone, shown, probes, objective.layer, ActGrad())
        unit = attribution / attribution.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        excites = unit.sum(1, keepdim=True) > 0
        wanted = {
            "positive": (unit.clamp(min=0) * excites).mean(0),
            "negative": ((-unit).clamp(min=0) * ~excites).mean(0),
        }
        wanted["both"] = wanted["positive"] + wanted["negative"]
        for chunk in objective.chunks:
            targets, _ = objective.target(chunk)
            for entry, target in zip(chunk.entries, targets, strict=True):
                if entry.source == source:
                    torch.testing.assert_close(
                        target, wanted[entry.objective], rtol=1e-4, atol=1e-6
                    )
        made = {entry.objective for entry in objective.entries if entry.source == source}
        strength = {
            "positive": lambda cell: cell.excitation,
            "negative": lambda cell: cell.inhibition,
            "both": lambda cell: cell.excitation + cell.inhibition,
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
        ({"seed": -1}, "seed -1: give 0 or more"),
        ({"by": ("tensoin",)}, "there is no measure 'tensoin'"),
    ],
)
def test_numbers_out_of_range_are_refused_at_once(given: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Chart(**given)


@pytest.mark.parametrize(
    ("given", "told"),
    [({"faint": 2}, "faint 2: give 0 to 1"), ({"power": -1}, "power -1: give 0 or more")],
)
def test_shares_out_of_range_are_refused(given: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        inversion(Chart(), **given)


def test_bad_charts_are_refused(chart: Chart, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="an atlas is of one feature; 2 were given"):
        inversion(chart, features=["fc:0", "fc:1"])
    with pytest.raises(InputError, match="accentuate: an icon stands for many pictures"):
        inversion(chart, accentuate=True)
    with pytest.raises(InputError, match=r"there is no sweep at .*none\.zarr; make it by mti pre"):
        inversion(replace(chart, sweep=str(tmp_path / "none.zarr"))).build_bank(None)
    with pytest.raises(InputError, match=r"there is no feature 'fc:0' of .*; it has fc:3"):
        inversion(chart, features=["fc:0"]).build_bank(None)
    with pytest.raises(InputError, match="was made with attribution_layer layer4, not layer3"):
        inversion(chart, attribution_layer="layer3").build_bank(None)
    other = AtlasInversion(
        Backbone("vetoed_shapes_resnet", "random"), [CLASS], "layer4", chart=chart
    )
    with pytest.raises(InputError, match=r"was made with weights [0-9a-f]{16}, not [0-9a-f]{16}"):
        other.build_bank(None)
    with pytest.raises(InputError, match="no cell of the map of 48 pictures has 49; give"):
        inversion(replace(chart, minimum=49)).build_bank(None)


def test_an_atlas_at_the_end_of_each_epoch_also_after_a_stop(chart: Chart, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", inversion(chart))
    names = [f"{face}_epoch{epoch:03d}.png" for epoch in range(2) for face in ("positive", "both")]
    for name in names:
        assert (whole / "atlas" / name).is_file()
    begun = run(tmp_path / "begun", inversion(chart), epochs=1)
    # Its rate falls over one epoch, not two: only a run of the same length can be continued.
    (checkpoint,) = (whole / "checkpoints").glob("epoch=0.ckpt")
    goes_on = run(tmp_path / "on", inversion(chart), ckpt_path=str(checkpoint), weights_only=True)
    for name in names:
        assert (goes_on / "atlas" / name).read_bytes() == (whole / "atlas" / name).read_bytes()
    assert (goes_on / "atlas.html").read_bytes() == (whole / "atlas.html").read_bytes()
    assert (begun / "atlas" / names[0]).read_bytes() != (whole / "atlas" / names[0]).read_bytes()
    events = EventAccumulator(str(whole), size_guidance={"images": 0}).Reload()
    shown = {tag for tag in events.Tags()["images"] if tag.startswith("atlas/")}
    assert shown == {"atlas/positive", "atlas/negative", "atlas/both"}
    assert [image.step for image in events.Images("atlas/both")] == [0, 1]
    config = (whole / "projector_config.pbtxt").read_text()
    assert "fc-3" in config
    assert "sprite.png" in config
    (metadata,) = whole.glob("**/metadata.tsv")
    lines = metadata.read_text().splitlines()
    assert lines[0].split("\t") == ["picture", "response", "excitation", "inhibition", "tension"]
    assert len(lines) == 1 + PICTURES


def test_where_a_run_s_own_pictures_lie(chart: Chart, tmp_path: Path) -> None:
    objective = MaximallyTense(
        Backbone("vetoed_shapes_resnet"), [CLASS], "layer4", seeds=2, steps_per_epoch=3
    )
    folder = run(tmp_path, objective, epochs=1, chart=chart)
    (picture,) = (folder / "atlas").iterdir()
    assert picture.name == "fc-3_epoch000.png"
    other = MaximallyTense(
        Backbone("vetoed_shapes_resnet"), [CLASS], "layer3", seeds=2, steps_per_epoch=3
    )
    with pytest.raises(InputError, match="is of attributions to layer4, the run's are to layer3"):
        run(tmp_path, other, epochs=1, chart=chart)


def test_the_map_is_fitted_once(chart: Chart) -> None:
    first, again = (inversion(chart) for _ in range(2))
    first.build_bank(None)
    again.build_bank(None)
    assert first.map is not None
    assert again.map is not None
    np.testing.assert_array_equal(first.map.layout.points, again.map.layout.points)
    assert len(list(Path(str(chart.sweep)).parent.glob("sweep.map-*.npz"))) >= 1
