"""`mti sheet`: the pictures of several runs side by side."""

import csv
from collections.abc import Sequence

from mti_lightning.cli.parser import Parser, joined
from mti_lightning.errors import InputError, check_range, reason_of
from mti_lightning.files import at_home, replacing
from mti_lightning.locks import taking


def run(args: Sequence[str]) -> None:
    """Run `mti sheet`."""
    parser = Parser(prog="mti sheet", description="Lay the pictures of several runs side by side.")
    parser.add_argument(
        "runs", nargs="+", help="Folders of finished runs; of a folder of versions the latest."
    )
    parser.add_argument("--out", default="sheet.png", help="The picture to write.")
    parser.add_argument("--rows", type=int, default=16, help="Rows at most.")
    parser.add_argument("--caption", default="", help="What stands beneath.")
    parser.add_argument("--overwrite", action="store_true", help="Replace the picture.")
    given = parser.parse_args(joined(args, "--caption"))
    check_range(1, rows=given.rows)
    out = at_home(given.out)
    if out.is_file() and not given.overwrite:
        raise InputError(f"{out} exists; give --out another name, or --overwrite")
    with taking(out, overwrite=given.overwrite):
        from mti_lightning.compose import contact_sheet

        try:
            picture = contact_sheet([at_home(run) for run in given.runs], given.rows, given.caption)
        except (KeyError, ValueError, OSError, csv.Error) as error:
            if isinstance(error, InputError):
                raise
            runs = ", ".join(given.runs)
            raise InputError(f"the results in {runs} cannot be read: {reason_of(error)}") from error
        try:
            with replacing(out) as part:
                picture.save(part)
        except ValueError as error:
            raise InputError(f"{out} cannot be written: {error}") from error
    print(out)
