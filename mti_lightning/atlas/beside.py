"""Two atlases of the same pictures side by side, their cells linked by the pictures they share."""

import base64
import colorsys
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, final

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from mti_lightning.atlas.columns import OTHER
from mti_lightning.atlas.layout import Cell
from mti_lightning.atlas.picture import draw_icons
from mti_lightning.errors import InputError
from mti_lightning.files import replacing, versions
from mti_lightning.pages import read_data, write_html
from mti_lightning.tables import read_table, writing_table

PAGES: Final = {"excites": "atlas_excites", "inhibits": "atlas_inhibits", "both": "atlas"}
PICTURES: Final = "atlas_pictures.csv"
_NAMED: Final = 3  # pictures that are named of those that two cells share
_WIDTH, _HEAD, _EDGE = 900, 54, 30  # pixels: of a map, above it, and to its left
_WHERE = "In a cell: the row and column in the other map of most of its pictures, and their share."
_TOLD: Final = (f"Colour by place. {_WHERE}", f"Colour by where the pictures are there. {_WHERE}")
Links = Mapping[tuple[int, int], Sequence[str]]  # by two cells, the pictures in both
Colour = tuple[int, ...]


@final
@dataclass(frozen=True)
class Side:
    """A map of a finished run, as its folder has it.

    Attributes:
        data: What its page holds.
        every: The picture of each of its points, [M].
        cells: Its cells, with places among the points for members.
    """

    data: Mapping[str, Any]
    every: Sequence[str]
    cells: Sequence[Cell]

    @classmethod
    def read(cls, folder: Path, kind: str, table: Iterable[Mapping[str, str]]) -> "Side":
        """Read the map of a kind, such as `excites`, with the folder's `table` of pictures."""
        rows = [row for row in table if row["map"] == kind]
        members: dict[tuple[int, int], list[int]] = {}
        for point, row in enumerate(rows):
            members.setdefault((int(row["row"]), int(row["column"])), []).append(point)
        data = read_data(folder / f"{PAGES[kind]}.html")
        places = [(cell["row"], cell["column"]) for cell in data["cells"]]
        none = np.array([], np.int64)
        cells = [Cell(*place, np.array(members[place]), {}, none) for place in places]
        return cls(data, [row["picture"] for row in rows], cells)

    def pictures(self, cell: Cell) -> set[str]:
        """Return a cell's pictures; of several features one may have been there twice."""
        return {self.every[place] for place in cell.members}

    def icons(self, face: str) -> dict[tuple[int, int], Image.Image]:
        """Return what the cells show on a face, by row and column."""
        found = {}
        for cell in self.data["cells"]:
            if face in cell["faces"]:
                coded = self.data["images"][cell["faces"][face]].partition(",")[2]
                with Image.open(io.BytesIO(base64.b64decode(coded))) as image:
                    found[cell["row"], cell["column"]] = image.convert("RGBA")
        return found


def finished(folder: Path) -> Path:
    """Return the folder of a finished atlas: this one, or the latest version in it.

    Raises:
        InputError: If there is none.
    """
    for one in (folder, *reversed(versions(folder))):
        if (one / PICTURES).is_file():
            kinds = {row["map"] for row in read_table(one / PICTURES)}
            if all((one / f"{PAGES[kind]}.html").is_file() for kind in kinds):
                return one
    raise InputError(f"beside: there is no finished atlas in {folder}")


def check_same_pictures(folder: Path, keys: Sequence[str]) -> None:
    """Make sure that an atlas is of pictures of which some are among others.

    Raises:
        InputError: If none is.
    """
    if {row["picture"] for row in read_table(folder / PICTURES)}.isdisjoint(keys):
        raise InputError(f"beside: the atlas in {folder} has none of this one's pictures")


def links_of(left: Side, right: Side) -> Links:
    """Return which cells of two maps share which pictures."""
    where: dict[str, list[int]] = {}
    for place, cell in enumerate(right.cells):
        for picture in right.pictures(cell):
            where.setdefault(picture, []).append(place)
    shared: dict[tuple[int, int], list[str]] = {}
    for place, cell in enumerate(left.cells):
        for picture in sorted(left.pictures(cell)):
            for other in where.get(picture, ()):
                shared.setdefault((place, other), []).append(picture)
    return dict(sorted(shared.items()))


def compare(other: Path, own: Path) -> dict[str, Image.Image]:
    """Write two atlases side by side into the second one's folder, for each kind of map of both.

    A page `beside_KIND.html`, a picture `beside_KIND.png`, and of all the table `atlas_links.csv`:
    the cells that share pictures, how many, and what share of either's that is.

    Args:
        other: The folder of a finished atlas; it comes to the left.
        own: That of another, which may have been finished just now.

    Returns:
        The pictures, by name.
    """
    drawn, folders = {}, (other, own)
    tables = [read_table(folder / PICTURES) for folder in folders]
    head = ["map", "row", "column", "beside_row", "beside_column", "common", "share"]
    with writing_table(own / "atlas_links.csv", [*head, "beside_share"]) as write:
        for kind, page in PAGES.items():
            if not all((folder / f"{page}.html").is_file() for folder in folders):
                continue
            left, right = (Side.read(*of) for of in zip(folders, (kind, kind), tables, strict=True))
            links = links_of(left, right)
            for (there, here), pictures in links.items():
                cells = right.cells[here], left.cells[there]
                sizes = len(right.pictures(cells[0])), len(left.pictures(cells[1]))
                shares = [f"{len(pictures) / size:.4g}" for size in sizes]
                places = [place for cell in cells for place in (cell.row, cell.column)]
                write([kind, *places, len(pictures), *shares])
            colours = colour(left, right, links)
            _write_page(own / f"beside_{kind}.html", (left, right), links, colours)
            drawn[f"beside_{kind}"] = picture = _draw((left, right), links, colours)
            with replacing(own / f"beside_{kind}.png") as part:
                picture.save(part)
    return drawn


def colour(left: Side, right: Side, links: Links) -> tuple[list[Colour], list[Colour]]:
    """Return the borders of both maps' cells, RGB.

    On the left by place: the hue by column, the lightness by row. On the right the mean of those
    that a cell's pictures have on the left; grey where these are from everywhere, or not there.
    """
    rows, columns = left.data["size"]
    of_left = [
        colorsys.hls_to_rgb(
            0.8 * cell.column / columns, 0.3 + 0.4 * cell.row / max(rows - 1, 1), 0.85
        )
        for cell in left.cells
    ]
    sums = np.zeros((len(right.cells), 4))
    for (there, here), pictures in links.items():
        sums[here] += len(pictures) * np.array([*of_left[there], 1])
    unknown = ImageColor.getrgb(OTHER)
    mixed: list[Colour] = [
        tuple(np.rint(255 * of[:3] / of[3]).astype(int).tolist()) if of[3] else unknown
        for of in sums
    ]
    return [tuple(round(255 * part) for part in one) for one in of_left], mixed


def _write_page(
    path: Path, sides: tuple[Side, Side], links: Links, colours: tuple[list[Colour], list[Colour]]
) -> None:
    linked: tuple[dict[int, set[str]], dict[int, set[str]]] = {}, {}
    for places, pictures in links.items():
        for place, of in zip(places, linked, strict=True):
            of.setdefault(place, set()).update(pictures)
    maps = [
        {
            "title": side.data["title"],
            "size": side.data["size"],
            "images": side.data["images"],
            "cells": [
                {
                    **{name: shown[name] for name in ("row", "column", "faces", "words")},
                    "count": len(side.pictures(cell)),
                    "elsewhere": len(side.pictures(cell)) - len(linked[number].get(place, ())),
                    "colour": f"rgb{colours[number][place]}",
                }
                for place, (cell, shown) in enumerate(
                    zip(side.cells, side.data["cells"], strict=True)
                )
            ],
        }
        for number, side in enumerate(sides)
    ]
    told = [[*places, len(of), of[:_NAMED]] for places, of in links.items()]
    write_html(path, "mti_lightning.atlas", {"maps": maps, "links": told}, "beside.html")


def _draw(
    sides: tuple[Side, Side], links: Links, colours: tuple[list[Colour], list[Colour]]
) -> Image.Image:
    """Draw the maps beside each other, a row for each of their faces."""
    faces = dict.fromkeys(face for cell in sides[1].data["cells"] for face in cell["faces"])
    halves = []
    for number, side in enumerate(sides):
        head = Image.new("RGB", (_WIDTH, _HEAD), "white")
        pen = ImageDraw.Draw(head)
        pen.text((_EDGE, 8), side.data["title"], fill="#222", font=ImageFont.load_default(15))
        pen.text((_EDGE, 31), _TOLD[number], fill="#777", font=ImageFont.load_default(13))
        draw = partial(
            draw_icons, side.data["size"], side.cells, colours=colours[number], width=_WIDTH
        )
        captions = _captions(links, sides, number)
        halves.append([head, *(draw(side.icons(face), captions=captions) for face in faces)])
    heights = [max(parts) for parts in zip(*[[p.height for p in h] for h in halves], strict=True)]
    sheet = Image.new("RGB", (2 * _WIDTH, sum(heights)), "white")
    for number, half in enumerate(halves):
        for place, part in enumerate(half):
            sheet.paste(part, (number * _WIDTH, sum(heights[:place])))
    return sheet


def _captions(links: Links, sides: tuple[Side, Side], number: int) -> list[str]:
    """Return for each cell that of the other map with most of its pictures, and their share."""
    best: dict[int, tuple[int, int]] = {}  # pictures, and the other's place
    for places, pictures in links.items():
        own, other = places[number], places[1 - number]
        best[own] = max(best.get(own, (0, 0)), (len(pictures), other))
    told = []
    for place, cell in enumerate(sides[number].cells):
        if place not in best:
            told.append("")
            continue
        count, other = best[place]
        there = sides[1 - number].cells[other]
        share = count / len(sides[number].pictures(cell))
        told.append(f"{there.row},{there.column} {share:.0%}")
    return told
