"""What all objectives share: the steps and epochs in which an image bank is optimised."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from lightning import Trainer
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from mti_lightning.checkpoints import write_whole
from mti_lightning.errors import InputError, check_range
from mti_lightning.log import log_warning
from mti_lightning.objectives.bank import ImageBank
from mti_lightning.objectives.chunk import ImageChunk
from mti_lightning.objectives.preflight import check_bank, check_devices, check_options
from mti_lightning.objectives.saliency import check_moves, loss_scale, note_moves
from mti_lightning.objectives.turns import ImageBankStrategy, Step, Steps, Turn
from mti_lightning.sweep.provenance import as_read_back, attributed

_TRIAL = 20  # steps after which an image that is stuck starts anew


class Objective(ImageBank, ABC):
    """A bank of images, each optimised for a feature of a frozen backbone.

    Args:
        optimizer: Moves the image parameters; Adam, by default with lr 0.1, 0.2 for inversions.
            Its rate falls to 0 along half a cosine.
        steps_per_epoch: Steps for each image between two looks at the pictures.
    """

    def __init__(
        self,
        *args: Any,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.Adam(
            parameters, lr=0.1, fused=True
        ),
        steps_per_epoch: int = 20,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_range(1, steps_per_epoch=steps_per_epoch)
        self.optimizer, self.steps_per_epoch = optimizer, steps_per_epoch
        self._turn: Turn | None = None
        self._precision = "32-true"  # the trainer's

    # --- what an objective is ---

    decisive: ClassVar[tuple[str, ...]] = ()  # its own arguments that decide what images become

    @abstractmethod
    def losses(self, views: Tensor, turn: Turn, progress: float) -> Tensor:
        """Return one loss for each view, [N], none of which depends on another picture.

        Args:
            views: Of the turn's images, [N, 3, h, w], those of one image next to each other.
            turn: The images and their target.
            progress: How far their run has come, 0..1.
        """

    def target(self, chunk: ImageChunk) -> Any:
        """Return what the chunk's images shall become; asked for when the chunk's turn comes."""
        return None

    def restart_stuck(self, turn: Turn) -> None:
        """Give those images that are stuck on the way to their target a fresh start."""

    # --- before a run ---

    def prepare_run(self, trainer: Trainer, data: object) -> None:
        check_options(trainer)
        self._precision = trainer.precision
        write_whole(trainer)
        check_devices(trainer, self.chunks, self.batch_size)
        if not len(self.bank):
            self.build_bank(data)
            check_devices(trainer, self.chunks, self.batch_size)
        try:
            rates = [group["lr"] for group in self.configure_optimizers().param_groups]
            check_range(0, **{"learning rate": max(rates)})
        except (ValueError, TypeError) as error:  # torch checks values only now
            raise InputError(f"optimizer: {error}") from error

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if data := getattr(self.trainer, "datamodule", None):
            data.serve("train", self.train_dataloader())

    @property
    def provenance(self) -> dict[str, Any]:
        """What the images are and how they come to be, as a checkpoint holds it."""
        given = [f"{k}={v}" for k, v in vars(self.image).items() if isinstance(v, str | float)]
        moves = self.configure_optimizers()
        told = {
            **attributed(self.backbone, self.layer, self.attribution),
            "tension": vars(self.tension),
            "views": vars(self.views),
            **{name: getattr(self, name) for name in self.decisive},
            "optimizer": {"class": type(moves).__name__, **moves.defaults},
        }
        return {
            "objective": type(self).__name__,
            "backbone": self.backbone.name,
            **as_read_back(told),
            "image": f"{type(self.image).__name__}({', '.join(given)})",
            "canvas": list(self.canvas),
            "input_size": list(self.input_size),
            "accentuate": self.accentuate,
            "precision": self._precision,
            "batch_size": self.batch_size,
            "steps_per_epoch": self.steps_per_epoch,
            **{f"image {place}": str(entry) for place, entry in enumerate(self.entries)},
            "pictures": self.pictures_digest,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for chunk in self.chunks:
            check_moves(chunk, self.shown)
        checkpoint["bank"] = self.provenance
        checkpoint["epochs"] = self.trainer.max_epochs

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the checkpoint's images, also for more epochs than its run was to have.

        Raises:
            InputError: If they are not those of this run.
        """
        held = checkpoint.get("bank")
        if isinstance(held, Mapping):
            self.take_steps(held.get("attribution", {}))
        check_bank(held, self.provenance)
        planned = checkpoint.get("epochs")
        if self._trainer is not None and planned != (epochs := self.trainer.max_epochs):
            log_warning(
                f"the checkpoint is of a run of {planned} epochs, which goes on to {epochs}: rates "
                f"and prices follow that length, so images are not those of {epochs} epochs in one "
                "go"
            )

    # --- steps and epochs ---

    def train_dataloader(self) -> Steps:
        trainer = self.trainer
        return Steps(len(self.bank), self.steps_per_epoch, trainer.global_rank, trainer.world_size)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.bank.parameters())

    def training_step(self, batch: Step, batch_idx: int) -> Tensor:
        if batch.chunk is None:
            return torch.zeros((), device=self.device, requires_grad=True)
        chunk: ImageChunk = self.bank[batch.chunk]  # type: ignore[assignment]
        if self._turn is None or self._turn.chunk is not chunk:
            self._turn = Turn(chunk, self.target(chunk))
        turn, step = self._turn, self.current_epoch * self.steps_per_epoch + batch.step
        epochs = self.trainer.max_epochs or -1
        progress = min(step / (epochs * self.steps_per_epoch), 1.0) if epochs > 0 else 0.0
        self._anneal(progress)
        if step == _TRIAL and progress <= 0.25:  # else there is no time for it
            self.restart_stuck(turn)
        part = chunk.window and chunk.window.box
        box = self.views.covered_box(part, self.input_size, chunk.grid) if part else None
        pictures = chunk.optimised(box)
        note_moves(pictures, chunk, box, self.shown, partial(loss_scale, self.trainer))
        with torch.autocast(self.device.type, enabled=False):
            keys = [entry.key for entry in chunk.entries]
            views = self.views(
                pictures, keys, step, self.input_size, part, box and (box, chunk.grid)
            )
        with self.backbone.working():
            losses = self.losses(views, turn, progress) / self.views.count
        # To show it at each step is to wait for it.
        shown = self.device.type == "cpu"
        self.log("loss", losses.detach().sum() / len(chunk.entries), prog_bar=shown, batch_size=1)
        # The sum, never the mean: an image's path must not depend on how many neighbours it has.
        return losses.sum()

    def _anneal(self, progress: float) -> None:
        """Lower the learning rate to 0 along half a cosine, by the images' own progress."""
        for group in self.optimizers().param_groups:  # type: ignore[union-attr]
            group.setdefault("initial_lr", group["lr"])
            group["lr"] = group["initial_lr"] * (1 + math.cos(math.pi * progress)) / 2

    def on_train_batch_end(self, outputs: Any, batch: Step, batch_idx: int) -> None:
        trainer, strategy = self.trainer, self.trainer.strategy
        last = trainer.is_last_batch or trainer.should_stop
        for chunk in self.chunks if last else ():
            check_moves(chunk, self.shown)
        if last and isinstance(strategy, ImageBankStrategy):
            strategy.share(self.chunks, trainer.optimizers[0])  # before callbacks look
