"""`mti configs`: the configurations that are shipped."""

from collections.abc import Sequence
from pathlib import Path

from mti_lightning.cli.files import shipped
from mti_lightning.cli.parser import Parser
from mti_lightning.errors import InputError, nearest


def run(args: Sequence[str]) -> None:
    """Run `mti configs` and `mti configs NAME`."""
    parser = Parser(
        prog="mti configs",
        description="Without arguments: the configurations that are shipped. mti configs NAME: one "
        "of them, to start from. --config NAME uses it as it is, where no file is called NAME.",
    )
    parser.add_argument("name", nargs="?", help="Which to print.")
    name, known = parser.parse_args(list(args)).name, shipped()
    if name is None:
        width = max(map(len, known))
        for each, path in known.items():
            print(f"{each:{width}}  {_first_line(path)}")
        return
    if name.removesuffix(".yaml") not in known:
        near = nearest(name, known) or "; mti configs lists them"
        raise InputError(f"no configuration {name!r} is shipped{near}")
    print(known[name.removesuffix(".yaml")].read_text(encoding="utf-8"), end="")


def _first_line(path: Path) -> str:
    return path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ").rstrip(":.")
