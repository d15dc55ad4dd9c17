"""Tables hold nothing that a spreadsheet computes, or that Markdown shows as markup."""

import csv
from pathlib import Path

import pytest

from mti_lightning.errors import InputError, printable
from mti_lightning.tables import in_markdown, read_table, write_table

FORMULAS = [
    "=1+1",
    '=HYPERLINK("http://x.example","y").png',
    "+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    " =1",
]


@pytest.mark.parametrize("name", FORMULAS)
def test_a_name_is_no_formula_in_a_table(tmp_path: Path, name: str) -> None:
    write_table(tmp_path / "t.csv", [{"key": name, "response": "-1.5", name: 3}])
    with (tmp_path / "t.csv").open(newline="") as file:
        head, row = csv.reader(file)
    assert head == ["key", "response", f"'{name}"]
    assert row == [f"'{name}", "-1.5", "3"]
    assert read_table(tmp_path / "t.csv")[0]["key"] == name


@pytest.mark.parametrize("value", ["-1.5", "+2", "-inf", "", "a-b.png", "cat/=1.png", "'a"])
def test_numbers_and_plain_names_stay_what_they_are(tmp_path: Path, value: str) -> None:
    write_table(tmp_path / "t.csv", [{"key": value}, {"key": "b"}])
    assert (tmp_path / "t.csv").read_text().splitlines()[1].strip('"') == value
    assert read_table(tmp_path / "t.csv")[0]["key"] == value


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("a\x1b[2Jb\x07.png", r"a\x1b[2Jb\x07.png"),
        ("a\r\nb", r"a\r\nb"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("bad\udcff.png", r"bad\udcff.png"),
        ("\x9b31m", r"\x9b31m"),
        ("日本 ä b\u202fPM.png", "日本 ä b\u202fPM.png"),
    ],
)
def test_what_would_steer_a_terminal_is_written_out(given: str, shown: str) -> None:
    assert printable(given) == shown
    assert str(InputError(f"{given} is no picture")) == f"{shown} is no picture"


def test_names_are_no_markdown() -> None:
    assert in_markdown("![x](http://x.example/y.png)") == r"!\[x\](http://x.example/y.png)"
    assert in_markdown("a|b<script>`c`\x1b") == r"a\|b&lt;script&gt;\`c\`\\x1b"
    assert in_markdown("-1.5") == "-1.5"
