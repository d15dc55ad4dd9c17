"""Plugins, for the commands that use them."""

from collections.abc import Iterator
from contextlib import contextmanager

from mti_lightning.attribution.methods import Attribution
from mti_lightning.cli.errors import own_error
from mti_lightning.errors import InputError
from mti_lightning.log import show
from mti_lightning.objectives.base import Objective
from mti_lightning.registry import load_plugins, note_skipped


@contextmanager
def with_plugins() -> Iterator[None]:
    """Load plugins; an error of something that is not there says which were left out.

    Raises:
        InputError: If plugins are broken.
    """
    show()
    load_plugins(Attribution, Objective)
    try:
        yield
    except Exception as error:
        cause = own_error(error)
        if cause is not None and (note := note_skipped(str(cause))):
            raise InputError(f"{cause}{note}") from error
        raise
