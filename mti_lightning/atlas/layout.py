"""The map: where pictures lie, in which cell, and the cells' means. Pure functions on arrays."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, final

import numpy as np

from mti_lightning.errors import InputError
from mti_lightning.sweep.measures import Array

Face = Literal["positive", "negative", "both"]
MOST_DOTS: Final = 20_000  # that are drawn of a map: more take long, and cover each other
FEWEST_CELLS: Final = 30  # that a map should have
MOST_CELLS: Final = 400
_MOST_SIDES = 40  # rows that are tried
_ENOUGH = 6  # pictures of a cell
PICTURES: Final = 25  # for which there is a cell
_MARGIN = 0.05  # shares of the trimmed span, on every side


@final
@dataclass(frozen=True)
class Layout:
    """Where pictures are on the map, and in which cell each is.

    Attributes:
        pictures: Place of each picture in the sweep, [M].
        points: x and y of each, 0..1, y upwards, [M, 2]; outliers lie on the border.
        cell: row · columns + column of each, [M]; row 0 is at the top.
        size: Rows and columns.
        minimum: Pictures that a cell needs to be shown.
    """

    pictures: Array
    points: Array
    cell: Array
    size: tuple[int, int]
    minimum: int = 1


@final
@dataclass(frozen=True)
class Cell:
    """A cell that has enough pictures for an icon.

    Attributes:
        row: From the top.
        column: From the left.
        members: Its pictures, as places in `Layout.pictures`, [n].
        means: Of the members' numbers, by the names in `COLUMNS`.
        exemplars: The members nearest the cell's mean normalised attribution, nearest first.
    """

    row: int
    column: int
    members: Array
    means: Mapping[str, float]
    exemplars: Array

    @property
    def count(self) -> int:
        """How many pictures it has."""
        return len(self.members)


def lay_out(
    pictures: Array,
    points: Array,
    size: tuple[int, int] | None = (20, 20),
    trim: float = 1.0,
    minimum: int | None = 6,
) -> Layout:
    """Trim points, scale them to 0..1, and put each picture into exactly one cell.

    Args:
        pictures: Place of each in the sweep, [M].
        points: [M, 2].
        size: Rows and columns; None for what `fit_grid` finds.
        trim: From this percentile to its counterpart, with equal margins, the map reaches; what
            lies farther out is moved to the border. 0 to 50.
        minimum: Pictures that a cell needs to be shown; None for what `fit_grid` finds.

    Raises:
        InputError: If a number is out of range.
    """
    if size is not None and min(size) < 1:
        raise InputError(f"a map of {size[0]} rows and {size[1]} columns: give 1 or more of each")
    if not 0 <= trim < 50:
        raise InputError(f"trim {trim}: give a percentile from 0 to below 50")
    if not np.isfinite(points).all():
        raise InputError("some points are not finite")
    points = points.astype(np.float64)
    points = points / max(np.abs(points).max(initial=0), np.finfo(np.float64).tiny)
    low, high = np.percentile(points, [trim, 100 - trim], axis=0)  # [2] each
    low, high = low - _MARGIN * (high - low), high + _MARGIN * (high - low)
    wide = np.where(high > low, high - low, 1)
    points = np.where(high > low, np.clip((points - low) / wide, 0, 1), 0.5)
    size, minimum = fit_grid(points, size, minimum)
    return Layout(np.asarray(pictures), points, _cells(points, size), size, minimum)


def _cells(points: Array, size: tuple[int, int]) -> Array:
    """Return row · columns + column of each point, [M]."""
    rows, across = size
    column = np.minimum((points[:, 0] * across).astype(np.int64), across - 1)
    row = np.minimum(((1 - points[:, 1]) * rows).astype(np.int64), rows - 1)
    return row * across + column


def fit_grid(
    points: Array, size: tuple[int, int] | None = None, minimum: int | None = None
) -> tuple[tuple[int, int], int]:
    """Return rows and columns, and how many pictures a cell needs, that suit the pictures.

    They suit from some dozens of pictures to very many: a cell needs 6, or fewer where so few cells
    have as many. Of the square grids the coarsest is taken that has a cell for 25 pictures, 30 to
    400 of them, or nine tenths of the cells that one can have: it leaves fewer pictures out, and
    icons of more pictures show what these share.

    Args:
        points: As a layout has them, [M, 2].
        size: Rows and columns, where they are given.
        minimum: Pictures that a cell needs, where that is given.
    """
    sizes = [size] if size else [(side, side) for side in range(1, _MOST_SIDES + 1)]
    counts = {one: np.bincount(_cells(points, one)) for one in sizes}
    found, need = size or (1, 1), minimum or _ENOUGH
    for need in [minimum] if minimum else range(_ENOUGH, 0, -1):
        shown = {one: int((of >= need).sum()) for one, of in counts.items()}
        few = {one: cells for one, cells in shown.items() if cells <= MOST_CELLS} or shown
        wanted = min(0.9 * max(few.values()), max(len(points) / PICTURES, FEWEST_CELLS))
        found = next(one for one, cells in few.items() if cells >= wanted)
        if few[found] >= FEWEST_CELLS or size:
            break
    return found, need


def find_cells(
    layout: Layout,
    vectors: Array,
    columns: Mapping[str, Array],
    minimum: int = 6,
    exemplars: int = 5,
) -> list[Cell]:
    """Return the cells that have enough pictures, from the top left.

    Args:
        layout: Of M pictures.
        vectors: What the map was made from, [M, D].
        columns: As `columns_of` returns them, [M] each.
        minimum: Pictures that a cell needs.
        exemplars: How many a cell has, at most.
    """
    unit = normalised(vectors)
    order = np.argsort(layout.cell, kind="stable")
    occupied, starts = np.unique(layout.cell[order], return_index=True)
    found = []
    for place, members in zip(occupied.tolist(), np.split(order, starts[1:]), strict=True):
        if len(members) < minimum:
            continue
        mean = unit[members].mean(0, dtype=np.float64)
        likeness = (unit[members] * mean).sum(1)
        nearest = np.argsort(-likeness, kind="stable")[:exemplars]
        means = {name: float(of[members].mean(dtype=np.float64)) for name, of in columns.items()}
        row, column = divmod(place, layout.size[1])
        found.append(Cell(row, column, members, means, members[nearest]))
    return found


def normalised(vectors: Array) -> Array:
    """Divide each vector [M, D] by its norm; one that is all zero stays so."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)


def place(vectors_new: Array, vectors: Array, points: Array, neighbours: int = 5) -> Array:
    """Say where other pictures fall on a map, [K, 2], which stays as it is.

    The mean of the points of their nearest neighbours by cosine, weighted by it.

    Args:
        vectors_new: [K, D].
        vectors: What the map was made from, [M, D].
        points: Of the map, [M, 2].
        neighbours: How many.
    """
    likeness = normalised(vectors_new) @ normalised(vectors).T  # [K, M]
    nearest = np.argsort(-likeness, axis=1, kind="stable")[:, :neighbours]  # [K, neighbours]
    weight = np.take_along_axis(likeness, nearest, 1).clip(min=1e-6)[..., None]
    total: Array = (weight * points[nearest]).sum(1) / weight.sum(1)
    return total


def thinned(count: int, most: int) -> range:
    """Return at most `most` of `count` places, evenly spread."""
    return range(0, count, -(-count // most) or 1)
