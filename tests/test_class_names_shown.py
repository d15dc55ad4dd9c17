"""A class's name beside its index wherever people look; hostile names do no harm there."""

import csv
import re
import warnings
from pathlib import Path

import pytest
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mti_lightning import (
    AtlasInversion,
    AtlasLog,
    Backbone,
    Chart,
    InputError,
    PictureLog,
    Results,
    SignedInversion,
    Sweep,
    SweepPictures,
    SweepStore,
    Validity,
    VetoedShapesPictures,
)
from mti_lightning.cli import main
from mti_lightning.compose import contact_sheet
from mti_lightning.sweep.ranking import layer_table, log

HOSTILE = (
    '=HYPERLINK("x")',
    "</script><b>&",
    "../../etc/passwd",
    "$\\frac{$",
    "a\u202eb\x1b[31m",
    "@sum, +1",
    "名前 ü" * 30,
    "CON|*?<>\"':@centre",
)
QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("names")
    (folder / "labels.txt").write_text("\n".join(HOSTILE), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def backbone(desk: Path) -> Backbone:
    return Backbone("vetoed_shapes_resnet", labels=str(desk / "labels.txt"))


@pytest.fixture(scope="module")
def board(desk: Path) -> TensorBoardLogger:
    return TensorBoardLogger(desk, "run", version=0, default_hp_metric=False)


@pytest.fixture(scope="module")
def store(desk: Path, backbone: Backbone) -> SweepStore:
    sweep = Sweep(backbone, ["fc:*"], "layer4", store=str(desk / "sweep.zarr"), keep=24, block=16)
    data = VetoedShapesPictures(24, seed=5, contents="tense")
    trainer = Trainer(logger=False, **QUIET)
    trainer.predict(sweep, datamodule=data, return_predictions=False)
    return SweepStore(desk / "sweep.zarr")


@pytest.fixture(scope="module")
def run(desk: Path, backbone: Backbone, board: TensorBoardLogger) -> Path:
    features = ["fc:0", f"fc:{HOSTILE[1]}", "fc:2", f"fc:{HOSTILE[7]}"]
    objective = SignedInversion(backbone, features, "layer4", steps_per_epoch=2, pair="matched")
    trainer = Trainer(max_epochs=1, logger=board, callbacks=[PictureLog(), Results()], **QUIET)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* images cannot be made")
        trainer.fit(objective, datamodule=VetoedShapesPictures(4, seed=3))
    return Path(board.log_dir)


def test_a_run_names_them_in_tables_sheets_and_tags(run: Path, desk: Path) -> None:
    with (run / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["feature"] for row in rows} == {"fc:0", "fc:1", "fc:2", "fc:7"}
    names = {row["feature"]: row["class"] for row in rows}
    assert names["fc:0"] == f"'{HOSTILE[0]}"  # no formula
    assert names["fc:1"] == HOSTILE[1]
    assert names["fc:7"] == HOSTILE[7]
    assert contact_sheet([run]).size
    tags = EventAccumulator(str(run)).Reload().Tags()["scalars"]
    by_picture = [tag for tag in tags if tag.startswith("response_by_picture/")]
    assert len(by_picture) == len(rows)
    assert all(re.fullmatch(r"[\w./-]+", tag) for tag in by_picture)
    assert {path.parent for path in desk.rglob("*.png")} == {run / "pictures", run / "sources"}


def test_a_sweep_keeps_the_names_and_can_be_asked_by_them(store: SweepStore) -> None:
    assert store.features == [f"fc:{k}" for k in range(8)]
    assert store.classes[:4] == list(HOSTILE[:4])
    assert store.classes[4] == "a b [31m"
    assert store.shown[1] == f"fc:1 ({HOSTILE[1]})"
    assert len(store.shown[6]) < 80  # cut short
    assert store.feature_index(f"fc:{HOSTILE[3]}") == 3
    assert store.feature_index("fc:+1") == 5  # one of two names
    assert SweepPictures(store.path, feature=f"fc:{HOSTILE[2]}", count=3).chosen_for == ["fc:2"]
    with pytest.raises(InputError, match="no class 'nothing' of"):
        store.feature_index("fc:nothing")
    with pytest.raises(InputError, match="there is no feature 'fc:9'"):
        store.feature_index("fc:9")


def test_a_ranking_names_them(
    store: SweepStore, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(desk)
    main(["rank", str(store.path), "--out=all.csv"])
    with Path("all.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["feature"]: row["class"] for row in csv.DictReader(file)}
    assert rows["fc:0"] == f"'{HOSTILE[0]}"
    assert rows["fc:3"] == HOSTILE[3]
    main(["rank", str(store.path), f"--feature=fc:{HOSTILE[1]}", "--out=one.csv", "--sheet=s.jpg"])
    assert Path("s.jpg").is_file()
    assert [row["class"] for row in layer_table(store) if row["feature"] == "fc:1"] == [HOSTILE[1]]


@pytest.mark.filterwarnings("ignore:Glyph:UserWarning")  # Matplotlib's own font has no Chinese
def test_a_sweep_s_figures_name_them(store: SweepStore, desk: Path) -> None:
    logger = TensorBoardLogger(desk / "figures", "", version="")
    log(store, [logger])
    tags = EventAccumulator(logger.log_dir).Reload().Tags()["images"]
    assert f"sweep/fc:3 ({HOSTILE[3]})" in tags


def test_an_atlas_and_its_page_name_them(store: SweepStore, desk: Path, backbone: Backbone) -> None:
    chart = Chart(str(store.path), size=(2, 2), minimum=4)
    logger = TensorBoardLogger(desk, "atlas", version=0, default_hp_metric=False)
    objective = AtlasInversion(
        backbone, [f"fc:{HOSTILE[1]}"], "layer4", chart=chart, steps_per_epoch=1, faces=["positive"]
    )
    trainer = Trainer(max_epochs=1, logger=logger, callbacks=[AtlasLog()], **QUIET)
    trainer.fit(objective)
    page = (Path(logger.log_dir) / "atlas.html").read_text(encoding="utf-8")
    assert "fc:1 (\\u003c/script>\\u003cb>&)" in page
    assert HOSTILE[1] not in page


def test_a_report_names_them(desk: Path, backbone: Backbone) -> None:
    logger = TensorBoardLogger(desk, "report", version=0, default_hp_metric=False)
    module = Validity(backbone, [f"fc:{HOSTILE[1]}"], "layer4", pictures=6, rendered=0)
    trainer = Trainer(logger=logger, inference_mode=False, **QUIET)
    trainer.validate(module, datamodule=VetoedShapesPictures(6, contents="random"), verbose=False)
    assert list(module.report.verdicts) == ["fc:1"]
    page = (Path(logger.log_dir) / "validity.md").read_text(encoding="utf-8")
    assert "## fc:1 (&lt;/script&gt;&lt;b&gt;&amp;)" in page
    assert HOSTILE[1] not in page


def test_errors_name_them(backbone: Backbone) -> None:
    objective = SignedInversion(backbone, ["fc:0"], "layer4", steps_per_epoch=1)
    with pytest.warns(UserWarning, match=re.escape(f"+ of fc:0 ({HOSTILE[0]}) in tense/test/0/2")):
        objective.build_bank(VetoedShapesPictures(3))
