"""What the cells of a map hold: units, photographs where most excites or inhibits, and names."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import numpy as np
import torch
from PIL import Image

from mti_lightning.atlas.columns import ranked
from mti_lightning.atlas.data_set import data_set_of
from mti_lightning.atlas.layout import Cell
from mti_lightning.atlas.map import Map
from mti_lightning.attribution.signs import Sign
from mti_lightning.backbone import Backbone
from mti_lightning.compose import to_image
from mti_lightning.data.datasets import Pictures
from mti_lightning.features.classes import class_layer, class_names
from mti_lightning.tables import writing_table

SIGNS: Final[tuple[Sign, ...]] = ("+", "-")
# What photographs are called that are cut to where they excite, or inhibit, most.
WHERE: Final[dict[Sign, str]] = {"+": "exciting", "-": "inhibiting"}
KIND: Final[dict[Sign | None, str]] = {"+": "excites", "-": "inhibits", None: "both"}  # of a map
MOST_UNITS: Final = 8  # of each sign that are told of a cell
_CROP: Final = 0.45  # of the shorter side
_TILE: Final = 96  # pixels: a photograph in a mosaic
_AT_ONCE: Final = 16
Units = dict[Sign, list[tuple[int, float]]]


def units_of(found: Map, cell: Cell) -> Units:
    """Return the units that add most to the response and those that take most from it.

    Returns:
        For each sign unit and number, the mean over the cell's pictures, the largest first.
    """
    means = found.pooled.added[cell.members].mean(0, dtype=np.float64)  # [2, C]
    told: Units = {}
    for sign, values in zip(SIGNS, means, strict=True):
        order = np.argsort(-values, kind="stable")[:MOST_UNITS]
        told[sign] = [(int(unit), float(values[unit])) for unit in order if values[unit] > 0]
    return told


@final
@dataclass(frozen=True)
class Contents:
    """What is known of a map's pictures beside their numbers.

    Attributes:
        map: The map.
        pictures: Its data set; None where that is gone.
        named: What the network says first of each exemplar, by its place in the layout; empty where
            its classes have no names.
        photographs: For each sign of the map, of each cell its exemplars cut to where they excite
            (inhibit) most.
    """

    map: Map
    pictures: Pictures | None
    named: Mapping[int, str]
    photographs: Mapping[Sign, Sequence[Image.Image]]

    @classmethod
    def of(cls, found: Map, backbone: Backbone) -> "Contents":
        """Read a map's exemplars, and ask the network for their names."""
        pictures = data_set_of(found)
        if pictures is None:
            return cls(found, None, {}, {})
        signs = SIGNS if found.sign is None else (found.sign,)
        shown = {s: [_mosaic(found, cell, s, pictures) for cell in found.cells] for s in signs}
        return cls(found, pictures, _names(found, backbone, pictures), shown)

    def words(self, cell: Cell) -> list[str]:
        """Return the names of a cell's exemplars, the most frequent first."""
        words = [self.named[place] for place in cell.exemplars.tolist() if place in self.named]
        return sorted(dict.fromkeys(words), key=lambda word: -words.count(word))


def _mosaic(found: Map, cell: Cell, sign: Sign, pictures: Pictures) -> Image.Image:
    """Return a cell's first exemplar, or its first four, cut to where they excite most."""
    shown = cell.exemplars[: 4 if len(cell.exemplars) >= 4 else 1]
    across = 2 if len(shown) == 4 else 1
    mosaic = Image.new("RGB", (across * _TILE, across * _TILE))
    for number, place in enumerate(shown.tolist()):
        picture = to_image(pictures[int(found.layout.pictures[place])]["picture"])
        part = crop(picture, *found.pooled.places[place, SIGNS.index(sign)].tolist())
        tile = part.resize((_TILE, _TILE), Image.Resampling.LANCZOS)
        mosaic.paste(tile, (number % across * _TILE, number // across * _TILE))
    return mosaic


def crop(picture: Image.Image, y: float, x: float) -> Image.Image:
    """Return a square of a picture around a place, which is in shares of height and width."""
    side = max(1, round(_CROP * min(picture.size)))
    left = min(max(round(x * picture.width - side / 2), 0), picture.width - side)
    top = min(max(round(y * picture.height - side / 2), 0), picture.height - side)
    return picture.crop((left, top, left + side, top + side))


@torch.no_grad()
def _names(found: Map, backbone: Backbone, pictures: Pictures) -> dict[int, str]:
    names, layer = class_names(backbone), class_layer(backbone)
    if names is None or layer is None:
        return {}
    places = sorted({int(place) for cell in found.cells for place in cell.exemplars})
    told: dict[int, str] = {}
    for start in range(0, len(places), _AT_ONCE):
        part = places[start : start + _AT_ONCE]
        shown = torch.stack([pictures[int(found.layout.pictures[p])]["picture"] for p in part])
        logits = backbone(shown.to(backbone.mean.device)).flatten(1)
        told |= {p: names[i] for p, i in zip(part, logits.argmax(1).tolist(), strict=True)}
    return {place: name for place, name in told.items() if name}


def write_tables(folder: Path, contents: Sequence[Contents]) -> None:
    """Write what the cells are, by what units, and where each picture is.

    Into `atlas_cells.csv`, `atlas_units.csv` and `atlas_pictures.csv`.
    """
    names = [of.map.feature_names for of in contents]  # None where there is one feature
    measures, place = [*contents[0].map.columns], ["map", "row", "column"]
    head = [*place, "pictures", *measures, *["features"] * bool(names[0]), "named", "exemplars"]
    with writing_table(folder / "atlas_cells.csv", head) as write:
        for number, of, cell, where in _every(contents):
            keys = of.map.store.keys_of(of.map.layout.pictures[cell.exemplars])
            means = [f"{cell.means[name]:.6g}" for name in measures]
            own = names[number]
            features = [_counted([own[member] for member in cell.members])] if own else []
            words = "; ".join(of.words(cell))
            write([*where, cell.count, *means, *features, words, "; ".join(keys)])
    with writing_table(folder / "atlas_units.csv", [*place, "unit", "adds"]) as write:
        for _, of, cell, where in _every(contents):
            for sign, units in units_of(of.map, cell).items():
                for unit, value in units:
                    write([*where, unit, f"{value if sign == '+' else -value:.6g}"])
    head = [*place, "x", "y", *["feature"] * bool(names[0]), "picture"]
    with writing_table(folder / "atlas_pictures.csv", head) as write:
        for of, own in zip(contents, names, strict=True):
            layout, keys = of.map.layout, of.map.store.keys_of(of.map.layout.pictures)
            for point, cell in enumerate(layout.cell.tolist()):
                x_y = [f"{value:.6g}" for value in layout.points[point]]
                where = [KIND[of.map.sign], *divmod(cell, layout.size[1])]
                write([*where, *x_y, *(own[point : point + 1] if own else []), keys[point]])


def _counted(kinds: Sequence[str]) -> str:
    """Return which kinds there are of how many, the commonest first."""
    names, places = ranked(kinds)
    return "; ".join(f"{names[place]}: {count}" for place, count in Counter(places).most_common())


def _every(contents: Sequence[Contents]) -> Iterator[tuple[int, Contents, Cell, list[object]]]:
    """Yield each cell, its map and that one's number, and the columns that say where it is."""
    for number, of in enumerate(contents):
        kind = KIND[of.map.sign]
        yield from ((number, of, cell, [kind, cell.row, cell.column]) for cell in of.map.cells)
