"""Checkpoints are whole, and one is at hand while an epoch lasts."""

import resource
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from mti_lightning import Backbone, MaximallyTense
from mti_lightning.checkpoints import Unfinished, WholeCheckpoints
from mti_lightning.errors import RunError

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def fit(folder: Path, stop_at: int | None = None) -> None:
    objective = MaximallyTense(
        Backbone("vetoed_shapes_resnet"), ["fc:0"], "layer4", steps_per_epoch=3
    )
    step = objective.training_step

    def stop(batch: Any, batch_idx: int) -> Any:
        if objective.trainer.global_step == stop_at:
            raise KeyError("stop")
        return step(batch, batch_idx)

    objective.training_step = stop  # type: ignore[method-assign]
    callbacks = [ModelCheckpoint(folder), Unfinished(every=0)]
    Trainer(max_epochs=2, accelerator="cpu", callbacks=callbacks, **QUIET).fit(objective)


def steps(folder: Path) -> dict[str, int]:
    return {
        path.name: torch.load(path, weights_only=True)["global_step"]
        for path in folder.glob("*.ckpt")
    }


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_kill_within_an_epoch_leaves_a_checkpoint_and_an_end_none(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        fit(tmp_path, stop_at=2)
    assert steps(tmp_path) == {"unfinished.ckpt": 2}
    fit(tmp_path)
    assert steps(tmp_path) == {"epoch=1-step=6.ckpt": 6}


def test_a_full_disk_leaves_the_checkpoint_that_was_there(tmp_path: Path) -> None:
    path, large = tmp_path / "a.ckpt", {"state": torch.ones(100_000)}
    WholeCheckpoints().save_checkpoint({"step": torch.tensor(1)}, path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_001, limits[1]))
    try:
        with pytest.raises(RunError, match=r"a\.ckpt cannot be written: File too large"):
            WholeCheckpoints().save_checkpoint(large, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.ckpt"]
    with pytest.raises(RunError, match="/dev/full cannot be written: the disk is full; make room"):
        WholeCheckpoints().save_checkpoint(large, "/dev/full")


def test_a_checkpoint_is_not_copied_to_be_written(tmp_path: Path) -> None:
    large = {"state": torch.ones(1_000_000)}
    tracemalloc.start()
    WholeCheckpoints().save_checkpoint(large, tmp_path / "a.ckpt")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 1e6  # bytes, of 4 million
