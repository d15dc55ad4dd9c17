"""Tables as CSV and Markdown, in which no text of a user's runs as a formula or is markup."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from html import escape
from pathlib import Path
from typing import Any

from mti_lightning.errors import printable
from mti_lightning.files import open_file, replacing

_FORMULA = (*"=+-@", *"＝＋－＠", "\t", "\r")  # what a spreadsheet takes for the start of one


def _guarded(value: Any) -> Any:
    """Put a ' before text that a spreadsheet would run; numbers stay as they are."""
    text = value.lstrip("'") if isinstance(value, str) else ""  # a ' of its own stays its own
    if not text.lstrip().startswith(_FORMULA) or len(text) < 2:
        return value
    with suppress(ValueError):
        float(value)
        return value
    return f"'{value}"


@contextmanager
def writing_table(path: Path, head: Iterable[str]) -> Iterator[Callable[[Iterable[Any]], None]]:
    """Give a function that writes a row of a table, which gets its name when it is whole."""
    with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)

        def write(row: Iterable[Any]) -> None:
            writer.writerow(map(_guarded, row))

        write(head)
        yield write


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of the same columns, the first one's names as the head."""
    with writing_table(path, rows[0]) as write:
        for row in rows:
            write(row[name] for name in rows[0])


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table as they were before `write_table`."""
    with io.TextIOWrapper(open_file(path), "utf-8", newline="") as file:
        return [
            {
                name: value[1:] if value[:1] == "'" and _guarded(value[1:]) == value else value
                for name, value in row.items()
            }
            for row in csv.DictReader(file)
        ]


def in_markdown(text: str) -> str:
    """Return text as a cell of a Markdown table takes it, without links and pictures in it."""
    return re.sub(r"([\\`\[\]|])", r"\\\1", escape(printable(text), quote=False))
