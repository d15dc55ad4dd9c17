"""`mti rank`: the top pictures of a sweep."""

from collections.abc import Sequence

from mti_lightning.cli.parser import Parser, joined
from mti_lightning.files import at_home


def run(args: Sequence[str]) -> None:
    """Run `mti rank`."""
    from mti_lightning.log import show  # imports PyTorch, as do the next
    from mti_lightning.sweep.measures import MEASURES, TRUTH
    from mti_lightning.sweep.ranking import make_ranking

    parser = Parser(prog="mti rank", description="The top pictures of a sweep, by any measure.")
    parser.add_argument("sweep", help="The sweep's folder, such as tb_logs/NAME/sweep.zarr.")
    parser.add_argument(
        "--feature",
        help="One of its features; without it, all are ranked, by a high percentile of the measure "
        "over the pictures.",
    )
    parser.add_argument(
        "--by",
        default="tension",
        help=f"{', '.join(MEASURES)}, of composites {', '.join(TRUTH)}; with - before it the low "
        "end.",
    )
    parser.add_argument(
        "--count", type=int, help="Rows at most; by default 20 pictures, or all features."
    )
    parser.add_argument("--out", default="rank.csv", help="The table to write.")
    parser.add_argument("--sheet", help="A contact sheet to write, such as rank.png.")
    parser.add_argument("--overwrite", action="store_true", help="Replace what is there.")
    given = parser.parse_args(joined(args, "--by"))
    show()
    out, sheet = at_home(given.out), None if given.sheet is None else at_home(given.sheet)
    make_ranking(given.sweep, given.feature, given.by, given.count, out, sheet, given.overwrite)
    for path in filter(None, (out, sheet)):
        print(path)
