"""What a run has to say on its way, from its first process."""

import logging

from lightning.pytorch.utilities import rank_zero_only

LOG = logging.getLogger("mti_lightning")


@rank_zero_only
def say(message: str) -> None:
    """Put a message on the log."""
    LOG.info(message)


def show() -> None:
    """Show the log on the terminal, once."""
    if not LOG.handlers:
        LOG.addHandler(logging.StreamHandler())
    LOG.setLevel(logging.INFO)
