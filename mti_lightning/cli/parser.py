"""The parser: nothing is abbreviated, and an error takes a line."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Never

from jsonargparse import ArgumentParser

from mti_lightning.cli.errors import in_one_line, name_neighbours, own_error
from mti_lightning.errors import InputError
from mti_lightning.files import at_home


def joined(args: Sequence[str], *options: str) -> list[str]:
    """Return arguments in which options have what follows them, also where that begins with -."""
    found: list[str] = []
    for argument in args:
        if found and found[-1] in options:
            found[-1] += f"={argument}"
        else:
            found.append(argument)
    return found


def figure_beside(table: Path, given: str | None) -> Path | None:
    """Return where a figure goes that was asked for beside a table.

    Raises:
        InputError: If its name is none of a figure, or is that of the table.
    """
    if given is None:
        return None
    figure = at_home(given)
    if figure.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"{figure}: give a name that ends in .png, .svg or .pdf")
    if figure.resolve() == table.resolve():
        raise InputError(f"{table} cannot be the table and the figure; give two names")
    return figure


class Parser(ArgumentParser):
    """jsonargparse's parser, which raises `InputError` and takes no abbreviated options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def add_network(self, *, several: str = "") -> None:
        """Add the options that say which network is meant.

        Args:
            several: Where --model may be given more than once, what that does.
        """
        told = "A timm model, or one of a plugin."
        if several:
            self.add_argument("--model", required=True, action="append", help=f"{told} {several}")
        else:
            self.add_argument("--model", required=True, help=told)
        self.add_argument("--weights", default="pretrained", help="pretrained, random, or a file.")
        self.add_argument("--labels", help="A text file of the names of its classes, one a line.")
        self.add_argument(
            "--arguments",
            type=dict[str, Any] | None,
            help="Further ones of timm.create_model, such as '{num_classes: 37}'.",
        )

    def classes(self) -> Mapping[str, Sequence[str]]:
        """Return what can stand at the keys that take a class."""
        return {}

    def error(self, message: str, ex: Exception | None = None) -> Never:
        parser = getattr(ex, "subcommand_parser", self)
        message = name_neighbours(message, [action.dest for action in parser._actions])  # noqa: SLF001
        if not self.exit_on_error:  # a class inside: the outer parser reports what it says
            super().error(message, ex)
        raise own_error(ex) or InputError(in_one_line(message, self.classes()))
