"""What a run has to say on its way, from its first process."""

import logging

from lightning.pytorch.utilities import rank_zero_only

from mti_lightning.errors import printable

LOG = logging.getLogger("mti_lightning")


@rank_zero_only
def log_info(message: str) -> None:
    """Put a message on the log."""
    LOG.info("%s", printable(message))


@rank_zero_only
def log_warning(message: str) -> None:
    """Put on the log what is seen also where the log was not asked for, as in a notebook."""
    LOG.warning("%s", printable(message))


def show() -> None:
    """Show the log on the terminal, once."""
    if not LOG.handlers:
        LOG.addHandler(logging.StreamHandler())
    LOG.setLevel(logging.INFO)
