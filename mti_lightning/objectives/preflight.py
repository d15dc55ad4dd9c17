"""What would end a run or spoil its pictures, found before any work."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer

from mti_lightning.backbone.weight_files import check_archive
from mti_lightning.errors import InputError
from mti_lightning.files import at_home
from mti_lightning.objectives.chunk import ImageChunk
from mti_lightning.objectives.turns import ImageBankStrategy

_GIVE = "give one such as tb_logs/NAME/version_0/checkpoints/epoch=4-step=100.ckpt"


def check_options(trainer: Trainer) -> None:
    """Make sure that each image of a bank gets all its steps, and only its own.

    Raises:
        InputError: If an option of the trainer is in the way.
    """
    limit, turns = trainer.limit_train_batches, "images take turns, and the last would get none"
    for name, refused, reason in (
        ("precision", "16-true" in trainer.precision, "pictures take 32 bits; give bf16-mixed"),
        ("max_epochs", trainer.max_epochs == 0, "give 1 or more"),
        ("max_steps", trainer.max_steps >= 0, f"{turns}; give max_epochs"),
        (
            "limit_train_batches",
            isinstance(limit, int) or limit < 1,
            f"{turns}; give the model fewer steps_per_epoch",
        ),
        (
            "val_check_interval",
            trainer.val_check_interval not in (None, 1),
            "there is nothing to validate within an epoch",
        ),
        (
            "accumulate_grad_batches",
            trainer.accumulate_grad_batches != 1,
            "two batches may be of different images; give the model more views",
        ),
        (
            "gradient_clip_val",
            bool(trainer.gradient_clip_val),
            "an image's path would depend on its neighbours; give a lower learning rate",
        ),
    ):
        # A rehearsal may be short: nothing is kept of it.
        if refused and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            raise InputError(f"trainer.{name}: {getattr(trainer, name)} will not do: {reason}")


def check_devices(trainer: Trainer, chunks: Sequence[ImageChunk], batch_size: int) -> None:
    """Make sure that several devices can share out an image bank.

    Args:
        trainer: Of the run.
        chunks: The bank's; none where it is not made yet.
        batch_size: Images per chunk.

    Raises:
        InputError: If they cannot.
    """
    if trainer.world_size == 1:
        return
    if not isinstance(trainer.strategy, ImageBankStrategy):
        raise InputError(
            f"{type(trainer.strategy).__name__} cannot share out an image bank among "
            f"{trainer.world_size} devices; give --trainer.strategy auto, in Python "
            "strategy=ImageBankStrategy()"
        )
    if 0 < len(chunks) < trainer.world_size:
        images = sum(len(chunk.entries) for chunk in chunks)
        raise InputError(
            f"{trainer.world_size} devices for a bank of {images} images, "
            f"{batch_size} at once; give fewer devices or a smaller --model.batch_size"
        )


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read the checkpoint of a run.

    Raises:
        InputError: If it is none.
    """
    path = at_home(path)
    if not path.is_file():
        raise InputError(f"ckpt_path {str(path)!r} is no file")
    check_archive(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # On other bytes it raises what it trips over: UnpicklingError, struct.error, RuntimeError.
        raise InputError(f"ckpt_path {str(path)!r} is no checkpoint; {_GIVE}") from error
    if not isinstance(found, dict) or "state_dict" not in found:
        raise InputError(f"ckpt_path {str(path)!r} is no checkpoint of a run; {_GIVE}")
    return found


def check_bank(held: Any, provenance: Mapping[str, Any]) -> None:
    """Make sure that a checkpoint holds the images of this run.

    Args:
        held: What its images are, as `Objective.provenance` says it.
        provenance: What this run's are.

    Raises:
        InputError: If they are others, naming the first difference.
    """
    if not isinstance(held, Mapping):
        raise InputError(f"the checkpoint holds no images; {_GIVE}")
    for name in {**provenance, **held}:
        if held.get(name) != provenance.get(name):  # what was not told yet was None
            old, new = held.get(name, "missing"), provenance.get(name, "missing")
            raise InputError(
                f"the checkpoint was written with {name} {old}, not {new}; go on with the "
                "configuration it was written with, or leave ckpt_path out to begin anew"
            )
