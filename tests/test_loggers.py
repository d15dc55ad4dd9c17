"""Pictures and numbers in the loggers of a run, with the real packages where they are installed."""

import csv
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning import Trainer
from lightning.pytorch.loggers import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mti_lightning import Backbone, PictureLog, Results, SignedInversion, VetoedShapesPictures
from mti_lightning.cli import main
from mti_lightning.loggers import (
    log_figure,
    log_numbers,
    log_picture,
    log_text,
    put_picture,
    run_folder,
    take_pictures,
)

PICTURE = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5)
HOSTILE = "sweep/../fc:3 (a/b) $x$"


class Silent(Logger):
    """A logger that keeps numbers alone, and has no folder."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: dict[str, float] = {}

    @property
    def name(self) -> str:
        return "silent"

    @property
    def version(self) -> int:
        return 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.numbers |= metrics

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    pytest.importorskip("wandb", reason="Weights & Biases is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own
        logger = WandbLogger(save_dir=tmp_path, project="shapes", offline=True)
        yield logger
        logger.experiment.finish()


@pytest.fixture
def mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    pytest.importorskip("mlflow", reason="MLflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("DO_NOT_TRACK", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own
        yield MLFlowLogger("shapes", save_dir=str(tmp_path / "mlruns"))


def fit(folder: Path, loggers: list[Logger] | bool, **options: Any) -> Path | None:
    objective = SignedInversion(
        Backbone("vetoed_shapes_resnet"), ["fc:0"], "layer4", steps_per_epoch=2
    )
    trainer = Trainer(
        max_epochs=2,
        logger=loggers,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        log_every_n_steps=1,
        callbacks=[PictureLog(), Results()],
        **options,
    )
    trainer.fit(objective, datamodule=VetoedShapesPictures(2, seed=3))
    return run_folder(trainer)


def is_complete(folder: Path | None) -> bool:
    assert folder is not None
    names = {path.name for path in folder.iterdir()}
    return {"pictures", "sources", "results.csv", "sources.csv"} <= names


def test_weights_and_biases_get_pictures_and_numbers(wandb: Any, tmp_path: Path) -> None:
    folder = fit(tmp_path, [wandb])
    assert is_complete(folder)
    assert folder == tmp_path / "shapes" / wandb.version
    media = Path(wandb.experiment.dir, "media", "images")
    assert len([*media.glob("pictures_[0-9]*.png")]) == 2  # one of each epoch
    assert len([*media.glob("pictures_where_it_looked_*.png")]) == 2
    summary = dict(wandb.experiment.summary)
    assert summary["response/positive"] == pytest.approx(summary["final/response"], rel=2)
    assert wandb.experiment.config["objective"] == "SignedInversion"


def test_mlflow_gets_pictures_and_numbers(mlflow: Any, tmp_path: Path) -> None:
    folder = fit(tmp_path, [mlflow])
    assert is_complete(folder)
    client, run = mlflow.experiment, mlflow.run_id
    for name in ("pictures", "pictures_where_it_looked"):
        paths = [file.path for file in client.list_artifacts(run, name)]
        assert paths == [f"{name}/000.png", f"{name}/001.png"]
    data = client.get_run(run).data
    assert {"response/positive", "tension/negative", "final/response"} <= {*data.metrics}
    assert data.params["objective"] == "SignedInversion"


def test_csv_gets_numbers(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, "shapes")
    folder = fit(tmp_path, [logger])
    assert is_complete(folder)
    assert folder == Path(logger.log_dir)
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len([row for row in rows if row["response/positive"]]) == 2
    assert any(row["final/response"] for row in rows)
    assert "objective: SignedInversion" in (folder / "hparams.yaml").read_text()


def test_several_loggers_get_the_same(
    wandb: Any, mlflow: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board = TensorBoardLogger(tmp_path, "shapes", default_hp_metric=False)
    silent = Silent()
    folder = fit(tmp_path, [silent, wandb, mlflow, board])
    assert folder == Path(board.log_dir)  # the first with a folder of its own
    assert is_complete(folder)
    events = EventAccumulator(board.log_dir).Reload()
    last = {name: events.Scalars(name)[-1].value for name in events.Tags()["scalars"]}
    for name in ("response/positive", "tension/negative"):
        assert silent.numbers[name] == pytest.approx(last[name])
        assert mlflow.experiment.get_run(mlflow.run_id).data.metrics[name] == pytest.approx(
            last[name]
        )
        assert wandb.experiment.summary[name] == pytest.approx(last[name])


@pytest.mark.parametrize("loggers", [False, [Silent()]])
def test_files_are_enough_where_no_logger_takes_pictures(
    loggers: list[Logger] | bool, tmp_path: Path
) -> None:
    folder = fit(tmp_path, loggers)
    if loggers is False:
        assert folder is None
        return
    assert is_complete(folder)
    assert folder == tmp_path / "silent" / "version_0"


def test_each_kind_of_thing_reaches_who_takes_it(wandb: Any, mlflow: Any, tmp_path: Path) -> None:
    board = TensorBoardLogger(tmp_path / "board")
    loggers = [board, CSVLogger(tmp_path / "csv"), Silent(), wandb, mlflow]
    assert take_pictures(loggers) == [board, wandb, mlflow]
    figure = Figure(figsize=(1, 1))
    log_picture(loggers, HOSTILE, PICTURE, 3)
    log_figure(loggers, "figure", figure, 0)
    log_text(loggers, "told", "| a | b |\n|---|---|")
    log_numbers(loggers, {HOSTILE: 1.5}, 2)
    board.experiment.flush()
    events = EventAccumulator(board.log_dir, size_guidance={"images": 0}).Reload()
    assert {*events.Tags()["images"]} == {HOSTILE, "figure"}
    files = [path.relative_to(tmp_path) for path in (tmp_path / "mlruns").rglob("*.png")]
    assert sorted(path.name for path in files) == ["000.png", "003.png"]
    assert not any(".." in path.parts for path in files)
    with Image.open(tmp_path / next(path for path in files if path.name == "003.png")) as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(PICTURE))
    assert [path.suffix for path in (tmp_path / "mlruns").rglob("told.*")] == [".md"]


def test_a_logger_can_be_taught_to_take_pictures() -> None:
    class Gallery(Silent):
        pass

    shown = []

    @put_picture.register
    def _(logger: Gallery, name: str, picture: Image.Image, step: int) -> None:
        shown.append(f"{name} {step}")

    log_picture([Gallery(), Silent()], "one", PICTURE, 4)
    assert shown == ["one 4"]


def test_the_command_writes_its_configuration_where_the_results_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    logger = "--trainer.logger=lightning.pytorch.loggers.CSVLogger"
    main(
        [
            *("fit", "--model=MaximallyTense", "--model.backbone.name=vetoed_shapes_resnet"),
            *("--model.features=['fc:star']", "--model.attribution_layer=layer4"),
            *("--model.steps_per_epoch=2", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"),
            *(logger, "--trainer.logger.save_dir=logs", "--trainer.logger.name=run"),
        ]
    )
    folder = Path("logs/run/version_0")
    assert capsys.readouterr().out.splitlines()[-1].strip() == str(folder)
    assert {"config.yaml", "metrics.csv", "results.csv"} <= {path.name for path in folder.iterdir()}
