"""What a run has to say on its way, from its first process, and where it leaves its results."""

import logging
from pathlib import Path

from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_only

LOG = logging.getLogger("mti_lightning")


@rank_zero_only
def log_info(message: str) -> None:
    """Put a message on the log."""
    LOG.info(message)


@rank_zero_only
def log_warning(message: str) -> None:
    """Put on the log what is seen also where the log was not asked for, as in a notebook."""
    LOG.warning(message)


def show() -> None:
    """Show the log on the terminal, once."""
    if not LOG.handlers:
        LOG.addHandler(logging.StreamHandler())
    LOG.setLevel(logging.INFO)


def run_folder(trainer: Trainer) -> Path | None:
    """Return where results go, None without a logger; all processes have to ask for it together."""
    return Path(trainer.log_dir) if trainer.logger is not None and trainer.log_dir else None
