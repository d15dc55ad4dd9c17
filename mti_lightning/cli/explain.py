"""`mti explain`: what excites and what inhibits in a picture what a network says of it."""

import re
from collections.abc import Sequence

from mti_lightning.cli.parser import Parser
from mti_lightning.errors import InputError
from mti_lightning.files import at_home
from mti_lightning.locks import taking


def run(args: Sequence[str]) -> None:
    """Run `mti explain`."""
    from mti_lightning.attribution.methods import Attribution  # imports PyTorch, as do the next
    from mti_lightning.cli.classes import naming_classes
    from mti_lightning.cli.discovery import with_plugins
    from mti_lightning.explanation.explain import explain
    from mti_lightning.explanation.result import check_out

    parser = Parser(
        prog="mti explain",
        description="What in a picture excites and what inhibits the classes that a network says "
        "first, or any feature: a sheet, a table, and the YAML that mti fit --config takes to make "
        "the same pictures. Several pictures are compared.",
    )
    parser.add_argument("pictures", nargs="+", help="Up to four picture files.")
    parser.add_network()
    parser.add_argument(
        "--feature",
        action="append",
        help="What to explain in place of those classes, such as 'fc:Egyptian cat' or "
        "layer3.0.act2/input:12@centre; may be given several times.",
    )
    parser.add_argument(
        "--classes",
        type=int,
        help="How many classes of each picture, 50 at most, where no --feature is given.",
    )
    parser.add_argument(
        "--layer",
        help="The attribution layer; by default the last on a fine grid that feeds them. "
        "mti layers MODEL lists them.",
    )
    parser.add_argument(
        "--attribution",
        type=Attribution | None,
        help="The attribution method, such as one of a plugin; by default the cheapest that adds "
        "up: ActGrad, or IntGrad in 4, 8 or 16 steps.",
    )
    parser.add_argument(
        "--crop", help="left,top,width,height in pixels: a part to compare the one picture with."
    )
    parser.add_argument("--steps", type=int, default=100, help="Steps for each picture.")
    parser.add_argument("--seed", type=int, default=0, help="Of the noise they start from.")
    parser.add_argument("--accelerator", default="auto", help="cpu, gpu, mps or auto.")
    parser.add_argument("--out", default="explain.png", help="The sheet to write.")
    parser.add_argument("--overwrite", action="store_true", help="Replace what is there.")
    with with_plugins(), naming_classes(args):
        given = parser.parse_args(list(args))
        out, crop = at_home(given.out), _box(given.crop)
        check_out(out, given.overwrite)
        with taking(out, overwrite=given.overwrite):
            found = explain(
                given.pictures,
                given.model,
                given.feature or (),
                weights=given.weights,
                labels=given.labels,
                arguments=given.arguments,
                layer=given.layer,
                attribution=parser.instantiate(given).attribution,
                crop=crop,
                classes=given.classes,
                steps=given.steps,
                seed=given.seed,
                accelerator=given.accelerator,
            )
            print(found.table)
            for path in found.save(out, given.overwrite):
                print(path)


def _box(text: str | None) -> tuple[int, int, int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+),(\d+),(\d+),(\d+)", text.replace(" ", ""))
    if match is None:
        raise InputError(
            f"crop {text!r}: give left,top,width,height in pixels, such as 0,0,200,200"
        )
    left, top, width, height = map(int, match.groups())
    return left, top, width, height
