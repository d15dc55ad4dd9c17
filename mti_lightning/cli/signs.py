"""`mti signs`: the signs of a network's weights, without pictures."""

from collections.abc import Sequence

from mti_lightning.cli.parser import Parser, figure_beside


def run(args: Sequence[str]) -> None:
    """Run `mti signs`."""
    from mti_lightning.backbone import Backbone  # imports PyTorch, as do the next
    from mti_lightning.cli.discovery import with_plugins
    from mti_lightning.files import at_home, replacing
    from mti_lightning.inhibitors.signs import draw_signs, find_signs, summary
    from mti_lightning.locks import taking
    from mti_lightning.tables import write_table

    parser = Parser(
        prog="mti signs",
        description="For each layer of models how far a unit's outgoing weights have one sign, and "
        "the share of negative weight; the units of a linear head that inhibit most classes. By "
        "weights alone.",
    )
    parser.add_argument("models", nargs="+", help="timm models, or those of plugins.")
    parser.add_argument("--weights", default="pretrained", help="pretrained, random, or a file.")
    parser.add_argument("--out", default="signs.csv", help="The table to write.")
    parser.add_argument("--figure", help="A figure to write, such as signs.png.")
    parser.add_argument("--overwrite", action="store_true", help="Replace what is there.")
    given = parser.parse_args(list(args))
    out = at_home(given.out)
    figure = figure_beside(out, given.figure)
    written = [*filter(None, (out, figure))]
    with with_plugins(), taking(*written, overwrite=given.overwrite):
        found = [find_signs(Backbone(model, given.weights)) for model in given.models]
        for of_model in found:
            print("\n".join(summary(of_model)))
        write_table(out, [one.row for of_model in found for one in of_model])
        if figure is not None:
            with replacing(figure) as part:
                draw_signs(found).savefig(part, dpi=120)
    for path in written:
        print(path)
