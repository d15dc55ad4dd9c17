"""The atlas as one HTML file that people explore: needs no network, and asks for none."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from mti_lightning.atlas.columns import COLUMNS, KINDS, commonest, ranked, scale
from mti_lightning.atlas.layout import MOST_DOTS, Cell, Layout, thinned
from mti_lightning.attribution.signs import Sign
from mti_lightning.errors import InputError
from mti_lightning.pages import Images, numbers, write_html

# Of made pictures, and of photographs.
_FACES = ("positive", "negative", "both", "exciting", "inhibiting")
_ICON, _THUMBNAIL = 96, 80  # pixels: the longer side


def write_page(
    path: Path,
    layout: Layout,
    cells: Sequence[Cell],
    icons: Sequence[Mapping[str, Image.Image]],
    columns: Mapping[str, ArrayLike],
    keys: Sequence[str],
    thumbnails: Callable[[int], Image.Image | None] | None = None,
    kinds: Mapping[str, Sequence[str]] | None = None,
    title: str = "Attribution atlas",
    units: Sequence[Mapping[Sign, Sequence[tuple[int, float]]]] | None = None,
    words: Sequence[Sequence[str]] | None = None,
) -> None:
    """Write the page: zoom, faces, colours, what a cell holds; equal bytes for equal inputs.

    Of very many pictures only some are drawn as dots, evenly spread, the exemplars among them.

    Drawn on a plain canvas instead of by Bokeh, which took four times as long for a frame of 30×30
    cells with 10,000 pictures, and whose WebGL works only where strings may be run as code.

    Keys, kinds and title reach the page as text nodes; its content security policy runs no script
    but its own, by hash, and forbids every request.

    Args:
        path: The file; it is replaced in one step.
        layout: Where M pictures lie.
        cells: The cells that are shown.
        icons: For each cell its faces by name, "positive", "negative" or "both", and "exciting" or
            "inhibiting" for photographs; none is an empty mapping.
        columns: For each picture its numbers, by names in `COLUMNS`, [M]; NaN is shown as unknown.
            At least one of them.
        keys: For each picture what it is called, such as its path, [M].
        thumbnails: Returns a picture by its place in the layout; asked for exemplars only.
        kinds: For each picture of what kind it is, [M], by what one of them is called, such as
            `label` or `feature`; the commonest have colours of their own.
        title: What the page is about, such as the feature.
        units: For each cell and sign the units that excite (inhibit) most, and by how much.
        words: For each cell what the network names its exemplars.

    Raises:
        InputError: If lengths or names do not fit.
    """
    kinds = kinds or {}
    _check(layout, cells, icons, columns, {"keys": keys, **kinds})
    images = Images()
    measured = {
        name: np.asarray(columns[name], dtype=np.float64) for name in COLUMNS if name in columns
    }
    rows, across = layout.size
    sorts = {name: ranked(of) for name, of in kinds.items()}
    exemplars = [int(place) for cell in cells for place in cell.exemplars]
    drawn = np.array(sorted({*thinned(len(layout.points), MOST_DOTS), *exemplars}))
    dot = {place: index for index, place in enumerate(drawn.tolist())}
    points = np.asarray(layout.points, dtype=np.float64)[drawn]
    small = {}
    for place in exemplars:
        image = thumbnails(place) if thumbnails else None
        if image is not None:
            small[dot[place]] = images.add(image, _THUMBNAIL)
    data = {
        "title": title,
        "pictures": len(layout.points),
        "size": [int(rows), int(across)],
        "x": numbers(points[:, 0] * across),
        "y": numbers((1 - points[:, 1]) * rows),
        "measures": {name: _coloured(name, of, of[drawn]) for name, of in measured.items()},
        "kinds": {
            name: {"texts": texts, "values": [of[place] for place in drawn], "colours": KINDS}
            for name, (texts, of) in sorts.items()
        },
        "cells": [
            {
                "row": int(cell.row),
                "column": int(cell.column),
                "count": int(cell.count),
                "exemplars": [dot[int(place)] for place in cell.exemplars],
                "faces": {face: images.add(faces[face], _ICON) for face in _FACES if face in faces},
                "units": [
                    [[unit, *numbers([value])] for unit, value in of.get(sign, ())]
                    for sign in ("+", "-")
                ],
                "words": list(said),
                "kinds": {
                    name: commonest([of[place] for place in cell.members])
                    for name, (_, of) in sorts.items()
                },
                **{name: numbers([cell.means[name]])[0] for name in measured},
            }
            for cell, faces, of, said in zip(
                cells, icons, units or [{}] * len(cells), words or [()] * len(cells), strict=True
            )
        ],
        "keys": [str(keys[place]) for place in drawn],
        "thumbnails": small,
        "images": list(images.addresses),
    }
    write_html(path, "mti_lightning.atlas", data)


def _check(
    layout: Layout,
    cells: Sequence[Cell],
    icons: Sequence[Mapping[str, Image.Image]],
    columns: Mapping[str, ArrayLike],
    texts: Mapping[str, Sequence[str]],
) -> None:
    wrong = sorted(set(columns) - set(COLUMNS))
    if wrong or not columns:
        raise InputError(
            f"a page cannot be coloured by {', '.join(wrong) or 'nothing'}; give columns among "
            f"{', '.join(COLUMNS)}"
        )
    wrong = sorted({face for faces in icons for face in faces} - set(_FACES))
    if wrong:
        raise InputError(f"an icon has no face {', '.join(wrong)}; there are {', '.join(_FACES)}")
    if len(icons) != len(cells):
        raise InputError(f"{len(icons)} icons for {len(cells)} cells; give one mapping for each")
    pictures = len(layout.points)
    for name, values in {**columns, **texts}.items():
        if np.shape(values) != (pictures,):
            raise InputError(
                f"{name} has the shape {list(np.shape(values))}; the layout has [{pictures}]"
            )


def _coloured(name: str, values: NDArray[np.float64], drawn: NDArray[np.float64]) -> dict[str, Any]:
    """Return a measure of the pictures that are drawn, and the colours of all."""
    colours, low, high = scale(name, values)
    stops = [
        [round(255 * channel) for channel in colormaps[colours](place)[:3]]
        for place in np.linspace(0, 1, 17)
    ]
    return {
        "values": numbers(drawn),
        "low": low,
        "high": high,
        "stops": stops,
        "meaning": COLUMNS[name],
    }
