"""Checkpoints that are whole, that lag a minute at most, and that a signal leaves."""

import io
import time
from pathlib import Path
from signal import SIGTERM
from typing import Any, Final, final

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

import mti_lightning.signals as signals
from mti_lightning.files import replacing
from mti_lightning.signals import Stopped

UNFINISHED: Final = "unfinished.ckpt"


@final
class _EveryByte(io.FileIO):
    """A file of which each write writes all or raises: torch does not look how much was written."""

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        while left:
            left = left[super().write(left) :]
        return size


@final
class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its name, on the same disk, and then moves it."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with replacing(Path(path), lasting=True) as part:
            part.parent.mkdir(parents=True, exist_ok=True)
            with _EveryByte(part, "w") as file:
                try:
                    torch.save(checkpoint, file)
                except RuntimeError as error:  # how torch ends once a write has failed
                    if isinstance(error.__context__, OSError):
                        raise error.__context__ from None
                    raise


def write_whole(trainer: Trainer) -> None:
    """Have a trainer write its checkpoints whole, unless it was given its own way to."""
    strategy: Any = trainer.strategy
    if type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = WholeCheckpoints()


@final
class Unfinished(Callback):
    """Keeps a checkpoint of a run that is under way, and stops it where a signal asks for it.

    `unfinished.ckpt`, beside the other checkpoints, is from within an epoch; a run that goes on
    from it ends with the same bits. It is removed once another is as far.

    Args:
        every: Seconds between two of them.
    """

    def __init__(self, every: float = 60) -> None:
        self.every = every
        self._folder: Path | None = None
        self._saved = time.monotonic()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        write_whole(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        kept = trainer.checkpoint_callback
        if isinstance(kept, ModelCheckpoint) and kept.dirpath:
            self._folder = Path(kept.dirpath)
        self._saved = time.monotonic()
        signals.wait()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        received = signals.received()
        due = time.monotonic() - self._saved > self.every
        agree = trainer.strategy.reduce_boolean_decision
        if not agree(bool(received) or due, all=False):
            return
        stop = agree(bool(received), all=False)
        if self._folder is not None:
            trainer.save_checkpoint(self._folder / UNFINISHED)
        self._saved = time.monotonic()
        if stop:
            raise Stopped(received or SIGTERM)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        signals.wait_no_longer()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._folder is not None and trainer.is_global_zero:
            newest = self._newest()
            if newest is not None and newest.name != UNFINISHED:
                (self._folder / UNFINISHED).unlink(missing_ok=True)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        signals.wait_no_longer()
        if isinstance(exception, Stopped):
            exception.kept = self._newest()

    def _newest(self) -> Path | None:
        found = self._folder.glob("*.ckpt") if self._folder else ()
        return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)
