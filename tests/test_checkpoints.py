"""Checkpoints are whole, and one is at hand while an epoch lasts."""

import errno
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


def test_a_full_disk_leaves_the_checkpoint_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.ckpt"
    WholeCheckpoints().save_checkpoint({"step": torch.tensor(1)}, path)

    def half(self: Path, data: bytes) -> None:
        with self.open("wb") as file:
            file.write(data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(RunError, match=r"a\.ckpt cannot be written: the disk is full; make room"):
        WholeCheckpoints().save_checkpoint({"step": torch.tensor(2)}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.ckpt"]
