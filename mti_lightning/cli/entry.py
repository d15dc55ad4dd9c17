"""The command line: finds the command that is asked for; an error takes a line and exits with 2."""

import os
import pkgutil
import select
import sys
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mti_lightning import __version__
from mti_lightning.cli.errors import TRACEBACK, told_in_a_line, unexpected
from mti_lightning.cli.memory import keep_memory
from mti_lightning.errors import InputError, nearest, printable
from mti_lightning.locks import release_all
from mti_lightning.signals import Stopped, heeding


class Command(NamedTuple):
    """What follows a command's name, what it does in a line, and the function that does it.

    The function takes the arguments after the name; its module in this package is imported when it
    is asked for.
    """

    takes: str
    does: str
    function: str


COMMANDS = {
    "fit": Command("--config FILE", "make pictures of features, or an atlas", "runs:fit"),
    "predict": Command("--config FILE", "sweep a data set for tense pictures", "runs:predict"),
    "validate": Command("--config FILE", "say how far to believe pictures", "runs:validate"),
    "rank": Command("SWEEP", "list the top pictures of a sweep, by any measure", "rank:run"),
    "inhibitors": Command(
        "SWEEP --feature F", "name the units that keep a feature silent", "inhibitors:run"
    ),
    "signs": Command("MODEL ...", "tell the signs of models' weights, layer by layer", "signs:run"),
    "sheet": Command("RUN ...", "lay the pictures of finished runs side by side", "sheet:run"),
    "layers": Command("MODEL", "list a model's layers, by the names to give", "layers:run"),
    "explain": Command(
        "PICTURE ... --model NAME", "say what excites and inhibits in a picture", "explain:run"
    ),
    "atlas": Command(
        "FOLDER --model NAME",
        "map what excites and inhibits in pictures",
        "atlas:run",
    ),
    "configs": Command("[NAME]", "list the shipped configurations, or print one", "configs:run"),
    "plugins": Command("[check NAME]", "list the installed plugins, or check one", "plugins:run"),
}


RUNS = ("fit", "predict", "validate")  # where they are under way an error is no mistake of a user's


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line with `args`, by default those of the process."""
    if args is None:
        keep_memory()
        threading.excepthook = _told_later
    try:
        try:
            with heeding():
                _dispatch(list(sys.argv[1:] if args is None else args))
        finally:  # also where a help has ended it
            release_all()
            sys.stdout.flush()
    except Stopped as stopped:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # of several processes the first one tells
            notes = "; ".join(getattr(stopped, "__notes__", ["the same command begins anew"]))
            print(f"mti: stopped by {stopped.signal.name}: {notes}", file=sys.stderr)
        raise SystemExit(stopped.code) from None
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            raise SystemExit(141) from None  # as a shell says of a program that SIGPIPE ends
        told = told_in_a_line(error)
        if told is None or os.environ.get(TRACEBACK):
            raise
        print(f"mti: error: {printable(told)}", file=sys.stderr)
        raise SystemExit(2) from error


def _told_later(ended: threading.ExceptHookArgs) -> None:
    """Keep quiet of a disk that TensorBoard's thread cannot write: it raises that here, too."""
    if not isinstance(ended.exc_value, OSError):
        threading.__excepthook__(ended)


def _dispatch(given: Sequence[str]) -> None:
    name = given[0] if given else ""
    if name in ("-h", "--help", "--version"):
        print(f"mti-lightning {__version__}" if name == "--version" else _help())
        raise SystemExit(0)
    if not name or name.startswith("-"):
        raise InputError(f"give a command: {_offer()}")
    if name not in COMMANDS:
        raise InputError(
            f"there is no command {name!r}{nearest(name, COMMANDS) or f'; give {_offer()}'}"
        )
    function = f"mti_lightning.cli.{COMMANDS[name].function}"
    run: Callable[[Sequence[str]], None] = pkgutil.resolve_name(function)
    try:
        run(given[1:])
    except Exception as error:
        if name in RUNS or told_in_a_line(error) is not None:
            raise
        raise InputError(unexpected(error)) from error


def _usages() -> list[str]:
    return [f"mti {name} {command.takes}" for name, command in COMMANDS.items()]


def _offer() -> str:
    return f"{', '.join(_usages())}; mti --help explains"


def _help() -> str:
    width = max(map(len, _usages()))
    lines = zip(_usages(), COMMANDS.values(), strict=True)
    return "\n".join(
        [
            "What excites and what inhibits a feature of a vision network.\n",
            *(f"  {usage:{width}}  {command.does}" for usage, command in lines),
            "\nmti COMMAND --help explains a command; mti --version tells the version.",
        ]
    )


def _nobody_reads() -> bool:
    """Return whether standard output was closed, as `| head` does; if so, drop what is left."""
    output = select.poll()
    output.register(sys.stdout, 0)
    closed = any(event & select.POLLERR for _, event in output.poll(0))
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return closed
