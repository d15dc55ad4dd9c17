"""What a unit is: the places of photographs in which it inhibits (or excites) a feature most."""

from functools import partial
from typing import final

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from mti_lightning.attribution.methods import Attribution, attribute
from mti_lightning.backbone import Backbone, Layer
from mti_lightning.compose import to_image
from mti_lightning.errors import InputError
from mti_lightning.features.bound import BoundFeature, FeatureGroup
from mti_lightning.features.feature import Feature
from mti_lightning.features.probe import (
    TOO_SMALL,
    Pair,
    find_field,
    random_pictures,
    respond_to,
    strides_of,
)
from mti_lightning.images.boxes import Box
from mti_lightning.inhibitors.network import Network
from mti_lightning.inhibitors.result import Example
from mti_lightning.sweep.measures import Array
from mti_lightning.sweep.store import SweepStore

_READ = 2**19  # numbers of the store that are read together
_LEAST = 72  # pixels that a crop has at least
_AROUND = 1.3  # how much more than the receptive field a crop shows


def find_examples(
    network: Network,
    method: Attribution,
    store: SweepStore,
    place: int,
    units: list[int],
    pictures: Array,
    sign: int,
    count: int,
) -> dict[int, tuple[Example, ...]]:
    """Return for each unit the pictures in which it adds most of a sign, the strongest first.

    Args:
        network: The network, and the pictures.
        method: By which the sweep attributes.
        store: The sweep.
        place: The feature's place in it.
        units: The units.
        pictures: Among which to look, [P].
        sign: −1 where the unit is to inhibit, 1 where to excite.
        count: Pictures of each unit.
    """
    best = _strongest(store, place, units, pictures, sign, count)
    rows = np.unique(np.concatenate([*best.values()]))
    fields, read = Fields(network.backbone, network.layer), list[int]()
    found: dict[int, dict[int, Example]] = {unit: {} for unit in units}
    for batch in network.load(rows, read):
        of = network.pieces.next(partial(_attributed, network, batch, method, units))
        active, added = of["active"], of["added"]
        for place_in_batch, row in enumerate(read[-len(batch) :]):
            image = to_image(batch[place_in_batch])
            for column, unit in enumerate(units):
                if row not in best[unit]:
                    continue
                here = added[place_in_batch, :, column]
                peak = int((sign * here).argmax())
                field = fields.of(unit, peak)
                found[unit][row] = Example(
                    store.keys_of([row])[0],
                    float(here.sum()),
                    float(active[place_in_batch, peak, column]),
                    field,
                    crop(image, field),
                )
    return {
        unit: tuple(found[unit][row] for row in rows if row in found[unit])
        for unit, rows in best.items()
    }


def _attributed(
    network: Network, batch: Tensor, method: Attribution, units: list[int]
) -> dict[str, Array]:
    """Return activations and attributions of units at all positions, [N, P, U] each."""
    of = (network.backbone, batch, [network.feature] * len(batch), network.layer, method)
    layout, (activations, attribution, _) = network.layout, attribute(*of)
    every = "peak" if layout.position_dims else None

    def of_units(values: Tensor) -> Array:
        placed = layout.at(values.detach(), every).view(len(batch), -1, layout.channels)
        return placed[..., units].cpu().numpy()

    return {"active": of_units(activations), "added": of_units(attribution)}


def _strongest(
    store: SweepStore, place: int, units: list[int], pictures: Array, sign: int, count: int
) -> dict[int, list[int]]:
    """Return for each unit the pictures to which it adds most of a sign."""
    values: Array = np.empty((0, len(units)))
    rows: Array = np.empty((0, len(units)), np.int64)
    pictures, step = np.sort(pictures), max(1, _READ // store.units)
    for start in range(0, len(pictures), step):
        some = pictures[start : start + step]
        added = sign * store.contributions(place, some)[:, units].astype(np.float64)
        values = np.concatenate([values, added])
        rows = np.concatenate([rows, some[:, None].repeat(len(units), 1)])
        order = np.argsort(-values, axis=0, kind="stable")[:count]
        values, rows = (np.take_along_axis(of, order, 0) for of in (values, rows))
    return {unit: rows[values[:, column] > 0, column].tolist() for column, unit in enumerate(units)}


@final
class Fields:
    """The receptive fields of a layer's units, each found once.

    Args:
        backbone: The network.
        layer: The layer.
    """

    def __init__(self, backbone: Backbone, layer: Layer) -> None:
        self.backbone, self.layer = backbone, layer
        self._layout = backbone.layout(layer)
        grid = self._layout.grid
        self._strides = None if grid is None else self._try_strides()
        self._found: dict[int, Box] = {}

    def _try_strides(self) -> Pair | None:
        found = strides_of(self.backbone, [self.layer])
        return None if found is None else found[0]

    def of(self, unit: int, position: int) -> Box:
        """Return the box of the picture that a unit depends on at a position, in pixels.

        Args:
            unit: A channel of the layer.
            position: Counted over all positions of the layer.
        """
        if position not in self._found:
            self._found[position] = self._find(unit, position)
        return self._found[position]

    @torch.backends.cudnn.flags(enabled=False)
    def _find(self, unit: int, position: int) -> Box:
        height, width = self.backbone.preprocessing.size
        whole = 0, 0, height, width
        grid, place = self._layout.grid, position
        if self._layout.is_tokens:
            place -= self._layout.prefix_tokens
        if self._strides is None or grid is None or place < 0:
            return whole
        row, column = divmod(place, grid[1])
        feature = Feature.parse(f"{self.layer}:{unit}@{row},{column}")
        group = FeatureGroup([BoundFeature(feature, self.backbone).to(self.backbone.mean.device)])
        own = (row * self._strides[0], column * self._strides[1], *self._strides)
        pictures = random_pictures((height, width))[:1].to(self.backbone.mean)
        try:
            return find_field(
                lambda shown: respond_to(self.backbone, group, shown), pictures, own, self._strides
            )
        except (*TOO_SMALL, InputError):
            return whole


def crop(image: Image.Image, field: Box) -> Image.Image:
    """Return what lies around a box of a picture, the box outlined."""
    top, left, height, width = field
    side = max(_AROUND * max(height, width), _LEAST)
    corners = []
    for start, length, full in ((left, width, image.width), (top, height, image.height)):
        wide = min(full, round(side))
        first = min(max(round(start + (length - wide) / 2), 0), full - wide)
        corners.append((first, first + wide))
    (x, right), (y, bottom) = corners
    part = image.crop((x, y, right, bottom))
    outline = (left - x, top - y, left - x + width - 1, top - y + height - 1)
    draw = ImageDraw.Draw(part)
    draw.rectangle(outline, outline="white", width=2)
    draw.rectangle(outline, outline="black", width=1)
    return part
