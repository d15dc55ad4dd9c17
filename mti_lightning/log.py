"""What a run has to say on its way, from its first process."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from lightning.pytorch.utilities import rank_zero_only

from mti_lightning.errors import printable

LOG = logging.getLogger("mti_lightning")
_LIGHTNING: Final = "lightning.pytorch", "lightning.fabric"  # loggers


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


@contextmanager
def quietly() -> Iterator[None]:
    """Keep Lightning from greeting, and from warning of images that cannot be made."""
    levels = {name: logging.getLogger(name).level for name in _LIGHTNING}
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.WARNING)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* images cannot be made")
            warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)  # Lightning's own
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
