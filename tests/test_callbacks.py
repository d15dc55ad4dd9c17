"""What comes out of a run."""

import csv
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mti_lightning import (
    Backbone,
    InputError,
    MaximallyTense,
    Objective,
    RenderError,
    SignedInversion,
    Tension,
    VetoedShapesPictures,
)
from mti_lightning.attribution.methods import attribute
from mti_lightning.callbacks import PictureLog, Results
from mti_lightning.data.base import PictureData
from mti_lightning.images.views import whole
from mti_lightning.vetoed_shapes.shapes import KINDS

COLUMNS = [
    "id",
    "source",
    "feature",
    "class",
    "objective",
    "seed",
    "response",
    "excitation",
    "inhibition",
    "tension",
    "balance",
    "cosine",
    "interference",
    "file",
]


def run(
    folder: Path,
    objective: Objective,
    callbacks: tuple[Callback, ...] = (),
    data: PictureData | None = None,
) -> Path:
    logger = TensorBoardLogger(folder, "run", version=0, default_hp_metric=False)
    trainer = Trainer(
        max_epochs=2, logger=logger, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=2, callbacks=[*callbacks, PictureLog(), Results()],
    )  # fmt: skip
    trainer.fit(objective, datamodule=data or VetoedShapesPictures(2, seed=3))
    return Path(logger.log_dir)


def inversion() -> SignedInversion:
    return SignedInversion(
        Backbone("vetoed_shapes_resnet"),
        ["fc:0", "fc:1"],
        "layer4",
        pair="matched",
        batch_size=3,
        steps_per_epoch=4,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SignedInversion]:
    objective = inversion()
    return run(tmp_path_factory.mktemp("logs"), objective), objective


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_holds_what_the_clean_pictures_on_disk_show(
    finished: tuple[Path, SignedInversion],
) -> None:
    folder, objective = finished
    rows = table(folder / "results.csv")
    assert list(rows[0]) == COLUMNS
    assert [row["objective"] for row in rows] == ["positive", "negative"] * 2
    assert [row["feature"] for row in rows] == ["fc:0", "fc:0", "fc:1", "fc:1"]
    assert [row["class"] for row in rows] == [KINDS[0], KINDS[0], KINDS[1], KINDS[1]]
    for number, row in enumerate(rows):
        with Image.open(folder / row["file"]) as image:
            assert image.mode == "RGBA"
            image.load()
        picture = (
            torch.from_numpy(np.asarray(image)[..., :3] / 255.0).permute(2, 0, 1)[None].float()
        )
        bound_feature = objective.bound_features[objective.entries[number].feature]
        _, attribution, response = attribute(
            objective.backbone,
            whole(picture, (96, 96)),
            [bound_feature],
            objective.layer,
            objective.attribution,
        )
        excited, inhibited = Tension().split(attribution, objective.layout)
        tension = Tension()(attribution, objective.layout)
        # The file is rounded to 8 bits.
        assert float(row["response"]) == pytest.approx(response.item(), abs=0.3)
        assert float(row["excitation"]) == pytest.approx(excited.item(), abs=0.3)
        assert float(row["inhibition"]) == pytest.approx(inhibited.item(), abs=0.3)
        low, high = sorted((float(row["excitation"]), float(row["inhibition"])))
        assert float(row["balance"]) == pytest.approx(low / high, abs=1e-4)
        assert float(row["tension"]) == pytest.approx(tension.item(), abs=0.3)
    sources = table(folder / "sources.csv")
    assert [row["source"] for row in sources] == ["tense/test/3/0", "tense/test/3/1"]
    assert all((folder / row["file"]).is_file() for row in sources)


def test_tensorboard_holds_pictures_and_scalars_of_every_epoch(
    finished: tuple[Path, SignedInversion],
) -> None:
    events = EventAccumulator(str(finished[0]), size_guidance={"images": 0}).Reload()
    tags = events.Tags()
    assert set(tags["images"]) == {"pictures", "pictures_where_it_looked"}
    for tag in tags["images"]:
        assert [event.step for event in events.Images(tag)] == [0, 1]
    for measure in ("response", "excitation", "inhibition", "tension", "balance", "cosine"):
        for kind in ("positive", "negative"):
            assert [event.step for event in events.Scalars(f"{measure}/{kind}")] == [0, 1]
    rows = table(finished[0] / "results.csv")
    mean = np.mean([float(row["response"]) for row in rows if row["objective"] == "positive"])
    assert events.Scalars("response/positive")[-1].value == pytest.approx(mean, rel=1e-4)
    assert "final/response" in tags["scalars"]


def test_the_checkpoint_is_small_and_holds_no_backbone(
    finished: tuple[Path, SignedInversion],
) -> None:
    (path,) = (finished[0] / "checkpoints").glob("*.ckpt")
    # Their values, and two of each that the optimizer keeps.
    values = sum(value.numel() for value in finished[1].bank.parameters())
    assert path.stat().st_size < 3 * 4 * values + 200_000
    keys = torch.load(path, weights_only=True)["state_dict"]
    assert all(key.startswith("bank.") for key in keys)


def test_results_are_not_overwritten(finished: tuple[Path, SignedInversion]) -> None:
    folder = finished[0]
    before = {path: path.read_bytes() for path in folder.rglob("*.csv")}
    with pytest.raises(
        InputError, match="holds the results of another run, which would be overwritten"
    ):
        run(folder.parent.parent, inversion())
    assert {path: path.read_bytes() for path in folder.rglob("*.csv")} == before


class Poison(Callback):
    """Spoils a picture at the beginning of an epoch."""

    def __init__(self, epoch: int, chunk: int) -> None:
        self.epoch, self.chunk = epoch, chunk

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Objective) -> None:
        if trainer.current_epoch == self.epoch:
            with torch.no_grad():
                next(iter(pl_module.chunks[self.chunk].trained.values()))[0, 0, 0, 0] = torch.nan


def test_nothing_is_written_when_a_run_fails_at_its_first_step(tmp_path: Path) -> None:
    with pytest.raises(RenderError, match="not finite"):
        run(tmp_path, inversion(), callbacks=(Poison(0, 0),))
    assert {path.suffix for path in tmp_path.rglob("*")}.isdisjoint({".png", ".csv"})


def test_what_cannot_be_made_leaves_its_place_empty(tmp_path: Path) -> None:
    objective = SignedInversion(
        Backbone("vetoed_shapes_resnet"), ["fc:0"], "layer4", steps_per_epoch=1
    )
    with pytest.warns(
        UserWarning, match=r"cannot be made.*: \+ of fc:0 \(disc\) in tense/test/0/2;"
    ):
        folder = run(tmp_path, objective, data=VetoedShapesPictures(3))
    rows = table(folder / "results.csv")
    kinds = ["positive", "negative", "positive", "negative", "negative"]
    assert [row["objective"] for row in rows] == kinds
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    with Image.open(
        BytesIO(events.Images("pictures_where_it_looked")[-1].encoded_image_string)
    ) as image:
        tiles = np.asarray(image)[2:98].reshape(96, -1, 3)[:, 2:].reshape(96, 9, 98, 3)[:, :, :96]
    blank = [bool((tile == 255).all()) for tile in tiles.swapaxes(0, 1)]
    assert blank == [False] * 7 + [True, False]  # source, + and - of each picture


def test_pictures_so_far_are_kept_when_a_run_fails(tmp_path: Path) -> None:
    with pytest.raises(RenderError, match="not finite"):
        run(tmp_path, inversion(), callbacks=(Poison(1, 1),))
    rows = table(tmp_path / "run" / "version_0" / "results.csv")
    assert len(rows) == 4
    for row in rows:
        with Image.open(tmp_path / "run" / "version_0" / row["file"]) as image:
            assert image.size == (96, 96)


def test_a_tense_image_has_no_source_and_no_cosine(tmp_path: Path) -> None:
    objective = MaximallyTense(
        Backbone("vetoed_shapes_resnet"), ["fc:0"], "layer4", steps_per_epoch=1
    )
    folder = run(tmp_path, objective)
    (row,) = table(folder / "results.csv")
    assert (row["source"], row["cosine"]) == ("", "")
    assert not (folder / "sources.csv").exists()
