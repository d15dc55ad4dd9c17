"""`mti fit`, `mti predict` and `mti validate`, which take configurations."""

from collections.abc import Sequence

from mti_lightning.cli.errors import add_place, own_error
from mti_lightning.cli.files import check, locate
from mti_lightning.errors import InputError


def fit(args: Sequence[str]) -> None:
    """Run `mti fit`."""
    _run("fit", args)


def predict(args: Sequence[str]) -> None:
    """Run `mti predict`."""
    _run("predict", args)


def validate(args: Sequence[str]) -> None:
    """Run `mti validate`."""
    _run("validate", args)


def _run(command: str, args: Sequence[str]) -> None:
    """Run a command; an error says where in a configuration it is."""
    args = locate(args)
    check(args)
    # Only now, as they import PyTorch.
    from mti_lightning.cli.discovery import with_plugins
    from mti_lightning.cli.mti_cli import MtiCLI

    try:
        with with_plugins():
            MtiCLI(command, args)
    except Exception as error:
        cause = own_error(error)
        if isinstance(cause, InputError):
            raise InputError(add_place(str(cause), args)) from error
        raise
