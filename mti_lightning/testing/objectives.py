"""The kit for objectives: what a class must satisfy to make images."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, final

import torch
from lightning import Trainer
from torch import Tensor

from mti_lightning.attribution.methods import ActGrad
from mti_lightning.backbone import Backbone
from mti_lightning.data.shapes import VetoedShapesPictures
from mti_lightning.log import quietly
from mti_lightning.objectives.base import Objective
from mti_lightning.testing.checks import (
    Check,
    assert_passed,
    check_frozen,
    difference_of,
    fail,
    hooks_of,
    name_changed,
    run_checks,
    values_of,
)


def check_objective(kind: type[Objective]) -> None:
    """Make sure that an objective keeps its word, with the defaults of its own arguments.

    Raises:
        AssertionError: If it does not: all checks that failed, each with its cause.
    """
    assert_passed(kind.__name__, objective_checks(kind))


def objective_checks(kind: type[Objective]) -> list[Check]:
    """Run every check of an objective; all others are left out if it makes no pictures."""
    return run_checks(_CHECKS, _Trial(kind), first=("makes pictures",))


@final
class _Trial:
    """An objective, and a network of known vetoes."""

    def __init__(self, kind: type[Objective]) -> None:
        self.kind = kind
        self.backbone = Backbone("vetoed_shapes_resnet")
        network = self.backbone.network
        self.before, self.hooked = values_of(network), hooks_of(network)

    def make(self, batch_size: int = 2) -> Tensor:
        """Make two pictures, in two steps each, [2, 3, H, W]."""
        options: dict[str, Any] = {"steps_per_epoch": 2, "batch_size": batch_size, "seeds": 2}
        objective = self.kind(self.backbone, ["fc:0"], "layer3", ActGrad(), **options)
        data = VetoedShapesPictures(1) if objective.needs_sources else None
        with quietly():
            run = Trainer(
                accelerator="cpu",
                max_epochs=1,
                logger=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                enable_progress_bar=False,
            )
            run.fit(objective, datamodule=data)
        with torch.no_grad():
            return torch.cat([chunk() for chunk in objective.chunks])

    @cached_property
    def pictures(self) -> Tensor:
        return self.make()


def _makes_pictures(trial: _Trial) -> None:
    pictures = trial.pictures
    if len(pictures) != 2:
        fail(f"{len(pictures)} pictures of one feature and two seeds")
    if not bool(((pictures >= 0) & (pictures <= 1)).all()):
        fail("they are not finite, or not within 0..1")


def _is_deterministic(trial: _Trial) -> None:
    if not torch.equal(trial.make(), trial.pictures):
        fail("a second run makes other pictures")


def _one_by_one(trial: _Trial) -> None:
    if difference := difference_of(trial.make(batch_size=1), trial.pictures, 1e-3):
        fail(f"a picture depends on those beside it: {difference}")


def _stays_frozen(trial: _Trial) -> None:
    check_frozen(trial.backbone, trial.before)


def _no_hooks(trial: _Trial) -> None:
    if changed := name_changed(trial.hooked, hooks_of(trial.backbone.network)):
        fail(f"{changed} is hooked or altered by a run")


_CHECKS: Mapping[str, Callable[[_Trial], str | None]] = {
    "makes pictures": _makes_pictures,
    "deterministic": _is_deterministic,
    "batch equals one by one": _one_by_one,
    "backbone frozen": _stays_frozen,
    "hooks removed": _no_hooks,
}
