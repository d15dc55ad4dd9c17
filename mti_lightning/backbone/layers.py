"""Which layers of a backbone can be named, by what, and on which side of activation functions."""

from contextlib import suppress
from dataclasses import dataclass
from typing import final
from weakref import WeakKeyDictionary

from mti_lightning.backbone.layout import ActivationLayout, Layer
from mti_lightning.backbone.network import Backbone
from mti_lightning.backbone.trace import Trace
from mti_lightning.errors import InputError

# Of layers behind activation functions, what is said of the one before; None of the others.
_BEFORE: WeakKeyDictionary[Backbone, dict[Layer, str | None]] = WeakKeyDictionary()


@final
@dataclass(frozen=True)
class UsableLayer:
    """A layer that can be a target layer, and where it is `attributable` an attribution layer, too.

    `activation` is the side of an activation function that its values are from: `before`, where
    a veto is told from absence, `after`, or nothing if there is none next to it.
    """

    layer: Layer
    layout: ActivationLayout
    activation: str
    attributable: bool

    @property
    def feature(self) -> str:
        """What names its features, with CHANNEL in place of a channel's index."""
        if len(self.layout.shape) == 1:
            return f"{self.layer}:CHANNEL"
        return f"{self.layer}:CHANNEL@{'centre' if self.layout.grid else 'mean'}"


def usable_layers(backbone: Backbone) -> list[UsableLayer]:
    """List a backbone's layers in the order in which pictures come to their end.

    These are the outputs of all modules that change what they are given, and the inputs of
    activation functions, as far as they can be tapped.

    Raises:
        InputError: If the network cannot take pictures of its input size.
    """
    trace = Trace(backbone)
    usable = []
    feeding = trace.feeding()
    for layer in trace.values:
        with suppress(InputError):
            layout = backbone.layout(layer)
            usable.append(UsableLayer(layer, layout, trace.side(layer), layer in feeding))
    return usable


def layer_lines(layers: list[UsableLayer]) -> list[str]:
    """Return a table of layers, its head first."""
    rows = [("attribution_layer", "shape", "activation", "features")]
    for one in layers:
        named = zip(one.layout.shape, one.layout.dimensions, strict=True)
        shape = " x ".join(f"{size} {name}s" for size, name in named)
        rows.append(
            (str(one.layer) if one.attributable else "-", shape, one.activation, one.feature)
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def read_after(layer: Layer, backbone: Backbone) -> str | None:
    """Say whether a layer's values come from activation functions: absent is like vetoed there.

    Returns:
        None where they do not; else what stands before them, to be put behind a sentence, or "".
    """
    found = _BEFORE.setdefault(backbone, {})
    if layer not in found:
        trace = Trace(backbone, until=layer)
        functions = trace.behind(layer)
        told = [
            f"; before it is {other}"
            for other, ahead in trace.ahead.items()
            if functions <= ahead and trace.values[other].shape == trace.values[layer].shape
        ]
        found[layer] = ["", *told][-1] if functions else None
    return found[layer]
