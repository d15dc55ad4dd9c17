"""The parser: nothing is abbreviated, and an error takes a line."""

from collections.abc import Mapping, Sequence
from typing import Any, Never

from jsonargparse import ArgumentParser

from mti_lightning.cli.errors import in_one_line, name_neighbours, own_error
from mti_lightning.errors import InputError


def joined(args: Sequence[str], *options: str) -> list[str]:
    """Return arguments in which options have what follows them, also where that begins with -."""
    found: list[str] = []
    for argument in args:
        if found and found[-1] in options:
            found[-1] += f"={argument}"
        else:
            found.append(argument)
    return found


class Parser(ArgumentParser):
    """jsonargparse's parser, which raises `InputError` and takes no abbreviated options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def classes(self) -> Mapping[str, Sequence[str]]:
        """Return what can stand at the keys that take a class."""
        return {}

    def error(self, message: str, ex: Exception | None = None) -> Never:
        parser = getattr(ex, "subcommand_parser", self)
        message = name_neighbours(message, [action.dest for action in parser._actions])  # noqa: SLF001
        if not self.exit_on_error:  # a class inside: the outer parser reports what it says
            super().error(message, ex)
        raise own_error(ex) or InputError(in_one_line(message, self.classes()))
