"""`mti fit`, `mti predict` and `mti validate`, which take configurations."""

import os
import shlex
from collections.abc import Sequence

from mti_lightning.cli.errors import add_place, own_error
from mti_lightning.cli.files import check, locate
from mti_lightning.errors import InputError
from mti_lightning.signals import Stopped, end_with_parent


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
    if os.environ.get("LOCAL_RANK", "0") != "0":
        end_with_parent()
    given, args = list(args), locate(args)
    check(args)
    # Only now, as they import PyTorch.
    from mti_lightning.cli.classes import naming_classes
    from mti_lightning.cli.discovery import with_plugins
    from mti_lightning.cli.mti_cli import MtiCLI

    try:
        with with_plugins(), naming_classes(args):
            MtiCLI(command, args)
    except Exception as error:
        cause = own_error(error)
        if isinstance(cause, InputError):
            raise InputError(add_place(str(cause), args)) from error
        raise
    except Stopped as stopped:
        stopped.add_note(_how_to_go_on(command, given, stopped))
        raise


def _how_to_go_on(command: str, args: Sequence[str], stopped: Stopped) -> str:
    """Say what a stopped command leaves, and what is to be typed."""
    again = ["mti", command, *args]
    if command == "predict":
        return f"every finished block is kept; the same command goes on: {shlex.join(again)}"
    if command == "fit" and stopped.kept is not None:
        for place in [i for i, word in enumerate(again) if word.startswith("--ckpt_path")][::-1]:
            del again[place : place + (1 if "=" in again[place] else 2)]
        goes_on = shlex.join([*again, "--ckpt_path", str(stopped.kept)])
        return f"{stopped.kept} is kept; go on with: {goes_on}"
    noted = bool(getattr(stopped, "__notes__", ()))  # of what is kept
    if noted and command == "validate":
        return f"the same command begins anew: {shlex.join(again)}"
    if noted:
        return f"the same command goes on: {shlex.join(again)}"
    return f"nothing new is kept; the same command begins anew: {shlex.join(again)}"
