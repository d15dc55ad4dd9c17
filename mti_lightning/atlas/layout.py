"""The map: where pictures lie, in which cell, and the cells' means. Pure functions on arrays."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, final

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree

from mti_lightning.errors import InputError
from mti_lightning.sweep.measures import Array

Face = Literal["positive", "negative", "both"]
MOST_DOTS: Final = 20_000  # that are drawn of a map: more take long, and cover each other
FEWEST_CELLS: Final = 30  # that a map should have
MOST_CELLS: Final = 400
_ENOUGH = 6  # pictures of a cell
PICTURES: Final = 25  # for which there is a cell
_SPARE = 1.1  # times as many groups are tried: some are too small
_ROUNDS = 20  # of grouping
_FILLED = 0.9  # share of a cell's side that its points fill
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
        size: Rows and columns; None for groups of near pictures on a full grid, as many as suit
            them: points are then moved into their cells.
        trim: From this percentile to its counterpart, with equal margins, the map reaches; what
            lies farther out is moved to the border. 0 to 50.
        minimum: Pictures that a cell needs to be shown; None for 6, or for fewer where fewer than
            30 cells have as many.

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
    if size is None:
        return _gathered(np.asarray(pictures), points, minimum)
    cell = _cells(points, size)
    counts = np.bincount(cell)
    needs = [minimum] if minimum else range(_ENOUGH, 0, -1)
    need = next((n for n in needs if (counts >= n).sum() >= FEWEST_CELLS), needs[-1])
    return Layout(np.asarray(pictures), points, cell, size, need)


def _cells(points: Array, size: tuple[int, int]) -> Array:
    """Return row · columns + column of each point, [M]."""
    rows, across = size
    column = np.minimum((points[:, 0] * across).astype(np.int64), across - 1)
    row = np.minimum(((1 - points[:, 1]) * rows).astype(np.int64), rows - 1)
    return row * across + column


def _gathered(pictures: Array, points: Array, minimum: int | None) -> Layout:
    """Gather near points into cells of about 25 pictures each, and put these on a full grid.

    There are 30 to 400 cells where that can be. Squares of a grid would cut through what lies
    together, and be mostly empty: benchmarks/atlas_of_photographs.py found cells of like pictures
    purer. Each cell is as near as can be to where its pictures were.

    Args:
        pictures: Place of each in the sweep, [M].
        points: Of UMAP's, 0..1, [M, 2].
        minimum: Pictures that a cell needs; by default 6, or fewer where so few cells have as many.
    """
    wanted = min(max(len(points) / PICTURES, FEWEST_CELLS), MOST_CELLS)
    found = _means(points, min(math.ceil(_SPARE * wanted), MOST_CELLS))
    for need in [minimum] if minimum else range(_ENOUGH, 0, -1):
        centres, of = _large_enough(points, found, need)
        if minimum or len(centres) >= FEWEST_CELLS:
            break
    across = math.ceil(math.sqrt(len(centres)))
    size = math.ceil(len(centres) / across), across
    ranks = centres.argsort(0, kind="stable").argsort(0, kind="stable") / max(len(centres) - 1, 1)
    middles = (np.indices(size)[::-1].reshape(2, -1).T + 0.5) / size[::-1]  # x, y downwards
    apart = ((ranks * (1, -1) + (0, 1))[:, None] - middles) ** 2
    place = linear_sum_assignment(apart.sum(2))[1]  # of each group on the grid
    shift = points - centres[of]
    reach = np.zeros(len(centres))
    np.maximum.at(reach, of, np.abs(shift).max(1))
    shift *= _FILLED / 2 / np.where(reach > 0, reach, 1)[of, None]
    inside = middles[place] * (1, -1) + (0, 1)
    return Layout(pictures, inside[of] + shift / size[::-1], place[of], size, need)


def _means(points: Array, count: int) -> Array:
    """Return the means of groups of near points, [count, 2], by Lloyd's algorithm.

    SciPy's `kmeans2` keeps all distances for its first means, gigabytes at a million points, and
    scikit-learn's `KMeans` differs in last bits with the number of threads.
    """
    random, different = np.random.default_rng(0), np.unique(points, axis=0)
    means = different[random.integers(len(different), size=1)]
    far = ((different - means) ** 2).sum(1)
    while len(means) < min(count, len(different)):  # each far from those before, mostly
        drawn = np.searchsorted(far.cumsum(), random.random() * far.sum(), side="right")
        means = np.concatenate([means, different[drawn : drawn + 1]])
        far = np.minimum(far, ((different - means[-1]) ** 2).sum(1))
    for _ in range(_ROUNDS):
        means, _ = _regrouped(points, means)
    return means


def _regrouped(points: Array, means: Array) -> tuple[Array, Array]:
    """Give each point to the nearest mean; return the new means, [K, 2], and each one's, [M]."""
    of = cKDTree(means).query(points)[1]
    _, of = np.unique(of, return_inverse=True)
    counts = np.bincount(of)
    sums = [np.bincount(of, points[:, axis]) for axis in range(2)]
    return np.stack(sums, 1) / counts[:, None], of


def _large_enough(points: Array, means: Array, need: int) -> tuple[Array, Array]:
    """Give the points of groups that are too small to others, the smallest group first."""
    while True:
        means, of = _regrouped(points, means)
        counts = np.bincount(of)
        if counts.min() >= need or len(means) == 1:
            return means, of
        means = np.delete(means, counts.argmin(), 0)


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
