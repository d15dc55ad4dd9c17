"""The errors a user may meet; the command line prints them as one line and exits with 2."""

import math
import os
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches

_STEERING = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode's: control, format, surrogate, line, paragraph


def printable(text: str) -> str:
    r"""Return a text as a terminal may show it: what would steer it is written out, as `\x1b`.

    Names of pictures and what is in files come from others.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(ascii(c)[1:-1] if unicodedata.category(c) in _STEERING else c for c in text)


def shortened(text: str, most: int) -> str:
    """Return a text of at most so many letters; one that is cut ends in …."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


class MtiError(Exception):
    """Anything this package stops for on purpose."""

    def __str__(self) -> str:
        return printable(super().__str__())


class InputError(MtiError, ValueError):
    """Something that was given cannot be used; the message names it and what would do."""


class RunError(MtiError, RuntimeError):
    """A run cannot go on, as with a disk that is full; what was done is kept."""


class RenderError(RunError):
    """Pictures cannot be made: the loss is not finite, or the feature does not respond."""


def check_range(least: float, most: float | None = None, /, **given: float) -> None:
    """Make sure that numbers are finite and lie in a range; None for no upper end.

    Raises:
        InputError: If one does not, naming it.
    """
    for name, value in given.items():
        if not (math.isfinite(value) and least <= value <= (value if most is None else most)):
            end = "or more" if most is None else f"to {most}"
            raise InputError(f"{name} {value}: give {least} {end}")


def check_memory(needed: float, what: str) -> None:
    """Make sure that the machine has so much memory.

    Args:
        needed: Bytes.
        what: Takes them; the message begins with it.

    Raises:
        InputError: If it has not.
    """
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise InputError(
            f"{what} would take {needed / 2**30:,.0f} GiB of memory, and the machine has "
            f"{there / 2**30:,.0f}"
        )


def nearest(given: str, choices: Iterable[str]) -> str:
    """Return `; did you mean 'a' or 'b'?` for the choices spelt most like `given`, else `""`."""
    matches = get_close_matches(given, list(choices), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(map(repr, matches))}?" if matches else ""


def reason_of(error: Exception) -> str:
    """Return what another library's error says, in one line of 300 characters at most."""
    return " ".join(str(error).split())[:300] or type(error).__name__
