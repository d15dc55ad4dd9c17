"""Tables as CSV and Markdown, in which no text of a user's runs as a formula or is markup."""

import csv
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import Any

from mti_lightning.errors import printable
from mti_lightning.files import replacing

_FORMULA = (*"=+-@", *"＝＋－＠", "\t", "\r")  # what a spreadsheet takes for the start of one


def _guarded(value: Any) -> Any:
    """Put a ' before text that a spreadsheet would run; numbers stay as they are."""
    if not isinstance(value, str) or not value.lstrip().startswith(_FORMULA):
        return value
    with suppress(ValueError):
        float(value)
        return value
    return f"'{value}"


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of the same columns, the first one's names as the head."""
    with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(map(_guarded, rows[0]))
        writer.writerows([_guarded(row[name]) for name in rows[0]] for row in rows)


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table as they were before `write_table`."""
    with path.open(newline="", encoding="utf-8") as file:
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
