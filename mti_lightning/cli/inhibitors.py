"""`mti inhibitors`: which units keep a feature silent, proven by silencing them."""

import shutil
from collections.abc import Sequence

from mti_lightning.cli.parser import Parser, figure_beside
from mti_lightning.errors import InputError


def run(args: Sequence[str]) -> None:
    """Run `mti inhibitors`."""
    from mti_lightning.cli.discovery import with_plugins  # imports PyTorch, as do the next
    from mti_lightning.files import at_home, beside, replacing
    from mti_lightning.inhibitors.figures import draw, log
    from mti_lightning.inhibitors.page import write_page
    from mti_lightning.inhibitors.result import KINDS
    from mti_lightning.inhibitors.study import find_inhibitors
    from mti_lightning.locks import taking
    from mti_lightning.sweep.store import SweepStore
    from mti_lightning.tables import write_table

    parser = Parser(
        prog="mti inhibitors",
        description="Name the units that inhibit a feature most, on half of a sweep's pictures, "
        "and test each by silencing it in the others. The sweep is made with --model.units true.",
    )
    parser.add_argument("sweep", help="The sweep's folder, such as tb_logs/NAME/sweep.zarr.")
    parser.add_argument("--feature", help="One of its features.")
    parser.add_argument("--count", type=int, default=8, help="How many units to name.")
    parser.add_argument(
        "--pictures",
        default="all",
        help="all; tensest: the tenth with the most tension, 64 or more; or a text file of "
        "pictures' names, one a line.",
    )
    parser.add_argument("--of", default="inhibitors", help=f"{' or '.join(KINDS)}.")
    parser.add_argument("--seed", type=int, default=0, help="Of the halves and of random units.")
    parser.add_argument(
        "--examples", type=int, default=4, help="Photographs for each unit, where it adds most."
    )
    parser.add_argument(
        "--icons", type=int, default=60, help="Steps for an image of each unit; 0 for none."
    )
    parser.add_argument(
        "--depth",
        type=int,
        default=1,
        help="Layers of a tree: 2 or 3 name what drives the strongest units, too.",
    )
    parser.add_argument(
        "--out", default="inhibitors.csv", help="The table to write; beside it a page, .html."
    )
    parser.add_argument("--figure", help="A figure to write, such as inhibitors.png.")
    parser.add_argument("--tensorboard", help="A folder for TensorBoard, such as tb_logs/NAME.")
    parser.add_argument("--overwrite", action="store_true", help="Replace what is there.")
    given = parser.parse_args(list(args))
    out = at_home(given.out)
    figure, page = figure_beside(out, given.figure), out.with_suffix(".html")
    board = None if given.tensorboard is None else at_home(given.tensorboard)
    if page == out:
        raise InputError(f"{out} is the page beside the table; give a name such as {out.stem}.csv")
    unfinished = beside(out.with_suffix(""), "unfinished")
    written = [*filter(None, (out, page, figure))]
    taken = [*written, *([] if board is None else [board / "events"])]
    with with_plugins(), taking(*taken, overwrite=given.overwrite):
        found = find_inhibitors(
            *(SweepStore(given.sweep), given.feature, given.count, given.pictures, given.of),
            seed=given.seed,
            examples=given.examples,
            icons=given.icons,
            depth=given.depth,
            unfinished=unfinished,
        )
        print(found.text)
        write_table(out, found.rows)
        write_page(page, found)
        if figure is not None:
            with replacing(figure) as part:
                draw(found).savefig(part, dpi=120)
        if board is not None:
            log(found, board)
        shutil.rmtree(unfinished)
    for path in written:
        print(path)
