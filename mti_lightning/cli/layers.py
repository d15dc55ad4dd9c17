"""`mti layers`: what can be named of a model."""

from collections.abc import Sequence

from mti_lightning.cli.parser import Parser


def run(args: Sequence[str]) -> None:
    """Run `mti layers`."""
    parser = Parser(
        prog="mti layers",
        description="The layers of a model, in the order in which pictures come to their end. What "
        "stands under attribution_layer and features is as a configuration takes it, with a "
        "channel's index for CHANNEL. After an activation function absent looks like vetoed.",
    )
    parser.add_argument("model", help="A timm model, or one of a plugin.")
    parser.add_argument("--weights", default="random", help="pretrained, random, or a file.")
    given = parser.parse_args(list(args))
    from mti_lightning.backbone import Backbone
    from mti_lightning.backbone.layers import layer_lines, usable_layers
    from mti_lightning.cli.discovery import with_plugins
    from mti_lightning.registry import layers_of_interest

    with with_plugins():
        print("\n".join(layer_lines(usable_layers(Backbone(given.model, given.weights)))))
        if named := layers_of_interest(given.model):
            print(f"of interest: {', '.join(named)}")
