"""Source pictures of an objective: what is attributed, and how often."""

import csv
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from mti_lightning import (
    Attribution,
    Backbone,
    MaximallyTense,
    Objective,
    SignedInversion,
    VetoedShapesPictures,
)
from mti_lightning.attribution.methods import ActGrad, Pass
from mti_lightning.callbacks import PictureLog, Results
from mti_lightning.objectives import sources as sources_module
from mti_lightning.objectives.sources import SourceAttributions

SOURCES, FEATURES = 3, ["fc:0", "fc:1"]


class Counting(Attribution):
    """Activation times gradient that keeps the pictures it was asked about."""

    differentiable = True

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def attribute(self, forward: Pass, create_graph: bool) -> Tensor:
        self.seen += forward.pictures.detach().clone()
        return ActGrad().attribute(forward, create_graph)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(SignedInversion, {"coherent": False}), (MaximallyTense, {"accentuate": True})],
)
def test_sources_are_attributed_once_for_each_feature(
    kind: type[Objective],
    options: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mti_lightning.objectives.base._TRIAL", 1)
    method = Counting()
    objective = kind(
        Backbone("vetoed_shapes_resnet"),
        FEATURES,
        "layer4",
        method,
        batch_size=5,
        steps_per_epoch=2,
        **options,
    )
    logger = TensorBoardLogger(tmp_path, "run", version=0, default_hp_metric=False)
    Trainer(
        max_epochs=2,
        logger=logger,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        callbacks=[PictureLog(), Results()],
    ).fit(objective, datamodule=VetoedShapesPictures(SOURCES, seed=3))
    assert len(objective.chunks) > 1
    with (Path(logger.log_dir) / "sources.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == SOURCES * len(FEATURES)
    for source in objective.sources:
        asked = sum(torch.equal(source, picture) for picture in method.seen)
        assert asked == len(FEATURES)


@pytest.mark.filterwarnings("ignore:.* images cannot be made")
def test_what_is_too_much_for_memory_is_the_same_on_the_disk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objective = SignedInversion(Backbone("vetoed_shapes_resnet"), FEATURES, "layer3")
    objective.build_bank(VetoedShapesPictures(SOURCES))
    pairs = [(2, 1), (0, 0), (1, 1), (0, 1), (2, 1)]
    kept = objective.attribute_sources(pairs, rendered=False)
    activations, attribution, responses = objective.attribute(
        objective.sources[[source for source, _ in pairs]],
        [objective.bound_features[feature] for _, feature in pairs],
    )
    assert torch.equal(kept[0], attribution)
    assert torch.equal(kept[1], activations < 0)
    assert torch.equal(kept[2], responses)
    monkeypatch.setattr(sources_module, "_IN_MEMORY", 1000)
    spilled = SourceAttributions(objective, objective.sources, rendered=False)
    assert kept[0].stride() == attribution.stride()
    for on_disk, in_memory in zip(spilled(pairs, at_once=2), kept, strict=True):
        assert torch.equal(on_disk, in_memory)
    assert spilled._file._rolled
