"""The atlas's map: which pictures, where they lie, in which cell. Pure functions on arrays."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast, final

import numpy as np
import torch
from numpy.typing import NDArray

from mti_lightning.attribution.signs import Sign, split_target
from mti_lightning.errors import InputError
from mti_lightning.sweep.measures import check_measure, select
from mti_lightning.sweep.store import SweepStore

Array = NDArray[Any]
Face = Literal["positive", "negative", "both"]
# What a map can be coloured by, and what it means; a map has those of them that its sweep holds.
COLUMNS: Final = {
    "response": "The feature's value before its activation function. Zero is grey.",
    "excitation": "E⁺, the sum of what adds to the response.",
    "inhibition": "E⁻, the sum of what takes from the response.",
    "tension": "Large only where excitation and inhibition are both large.",
    "interference": (
        "0: the feature's own inputs excite it. 1: another feature's do. Means nothing where there "
        "is no tension."
    ),
}
_ALWAYS: Final = ("response", "excitation", "inhibition", "tension")  # of every sweep
MOST_DOTS: Final = 20_000  # that are drawn of a map: more take long, and cover each other
_SIGNS: Final[tuple[Sign, ...]] = ("+", "-")
_FEWEST = 4  # pictures that UMAP can lay out; fewer stand in a line
_MOST_SPECTRAL = 20_000  # UMAP's usual start takes minutes for them, and ever longer for more
_AT_ONCE = 256  # maps read from the store at once
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
    """

    pictures: Array
    points: Array
    cell: Array
    size: tuple[int, int]


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


def select_pictures(
    store: SweepStore,
    feature: int,
    top: int | None = None,
    measures: tuple[str, ...] = ("tension", "response", "-response"),
) -> tuple[Array, Array]:
    """Choose pictures for an atlas among those whose attribution maps were kept.

    Args:
        store: The sweep.
        feature: Its column.
        top: How many of the top pictures by each measure; None takes all that were kept.
        measures: By what they are top; `-` before one means its low end.

    Returns:
        Where their maps are, [M], for `SweepStore.maps`, and the pictures, [M], in the sweep's
        order, each once. Those with a number that is not finite are left out.

    Raises:
        InputError: If no maps were kept of the feature, there is no such measure, or no picture
            is left.
    """
    if top is not None and top < 1:
        raise InputError(f"top {top}: give 1 or more")
    rows, pictures = store.kept(feature)
    order = np.argsort(pictures, kind="stable")
    rows, pictures = rows[order], pictures[order]
    columns = columns_of(store, feature, pictures)
    finite = np.isfinite([columns[name] for name in _ALWAYS]).all(0)
    rows, pictures = rows[finite], pictures[finite]
    if top is not None:
        chosen: set[int] = set()
        for measure in measures:
            name, low = check_measure(measure)
            chosen |= {int(i) for i in select(store.values(name, feature)[pictures], top, low)}
        places = sorted(chosen)
        rows, pictures = rows[places], pictures[places]
    if not len(pictures):
        raise InputError(
            f"{store.path} has no picture left to map for {store.features[feature]}: the numbers "
            "of all that were kept are not finite"
        )
    return rows, pictures


def columns_of(store: SweepStore, feature: int, pictures: Array) -> dict[str, Array]:
    """Return the columns of some pictures, [M] each, that the sweep has measured."""
    held = {name: store.values(name, feature, pictures) for name in COLUMNS}
    return {n: v for n, v in held.items() if n in _ALWAYS or np.isfinite(v).any()}


def scale(name: str, values: Array) -> tuple[str, float, float]:
    """Return how a column is coloured: Matplotlib's colour map, and the numbers at its two ends.

    A hundredth of the pictures may lie beyond an end. The colours can be told apart by people with
    colour-blindness; a response's are grey at zero, and on white all of them are seen.
    """
    finite = values[np.isfinite(values)]
    if name == "response":
        end = float(np.quantile(np.abs(finite), 0.99)) if finite.size else 0
        return "coolwarm", -(end or 1), end or 1
    low, high = np.quantile(finite, [0.01, 0.99]).tolist() if finite.size else (0.0, 1.0)
    return "viridis_r", low, high if high > low else low + 1


def thinned(count: int, most: int) -> range:
    """Return at most `most` of `count` places, evenly spread."""
    return range(0, count, -(-count // most) or 1)


def pool_store(store: SweepStore, rows: Array) -> Array:
    """Pool kept maps, a few at a time, [M, D]."""
    channel_dim = store.map_dimensions.index("channel")
    parts = range(0, len(rows), _AT_ONCE)
    return np.concatenate(
        [pool(store.maps(rows[start : start + _AT_ONCE]), channel_dim) for start in parts]
    )


def pool(maps: Array, channel_dim: int) -> Array:
    """Pool attribution maps [M, C, ...] over space: what the map is made from, [M, 2 · C].

    T⁺ of the positions that excite beside T⁻ of those that inhibit, as inversions show them: shape
    and veto do not cancel. In the vetoed shapes the worst group of 16 maps, measured as in `embed`
    with UMAP's 10 neighbours and 0.1, kept 0.961 so, 0.951 with A or with T of all positions.
    """
    given = torch.from_numpy(np.ascontiguousarray(maps))
    halves = []
    for sign in _SIGNS:
        target = split_target(given, sign, coherent=True, channel_dim=channel_dim)
        target = target.movedim(channel_dim, 1)
        halves.append(target.reshape(*target.shape[:2], -1).sum(2))
    return torch.cat(halves, 1).numpy()


def embed(vectors: Array, seed: int = 0, neighbours: int = 15, min_dist: float = 0.5) -> Array:
    """Lay vectors [M, D] out in two dimensions by UMAP on cosine distance, [M, 2].

    Equal vectors share a point, and the map does not depend on the order of the pictures. Equal
    inputs give equal points. In the vetoed shapes, 2,000 pictures, every class at layer4 and
    layer3, groups by shape and veto kept 0.965 to 1 of their pictures' 10 nearest to themselves;
    with two other seeds 0.959 in one of 32 maps, else 0.965 or more, too. With 0.1 for `min_dist`
    the map was as faithful, but filled a quarter fewer cells.

    Args:
        vectors: As `pool` makes them.
        seed: Of UMAP.
        neighbours: How many of its nearest a picture is drawn to.
        min_dist: How close together UMAP may put pictures.

    Raises:
        InputError: If a vector is not finite, or a number is out of range.
    """
    if neighbours < 2:
        raise InputError(f"neighbours {neighbours}: give 2 or more")
    if not np.isfinite(vectors).all():
        raise InputError("some attributions are not finite; leave those pictures out of the atlas")
    unique, back = np.unique(vectors.astype(np.float32), axis=0, return_inverse=True)
    if len(unique) < _FEWEST:
        line = np.arange(len(unique), dtype=np.float32)
        return np.stack([line, np.zeros_like(line)], 1)[back]
    from umap import UMAP  # noqa: PLC0415  takes seconds; most runs do without

    threads = torch.get_num_threads()
    try:
        points = UMAP(
            n_neighbors=min(neighbours, len(unique) - 1),
            min_dist=min_dist,
            metric="cosine",
            disconnection_distance=float("inf"),  # else it warns of opposites and lets them drift
            init="spectral" if len(unique) <= _MOST_SPECTRAL else "pca",
            random_state=seed,
            n_jobs=1,
        ).fit_transform(unique)
    finally:
        torch.set_num_threads(threads)  # Numba sets its own number for all that use OpenMP
    return cast("Array", points[back])


def lay_out(
    pictures: Array, points: Array, size: tuple[int, int] = (20, 20), trim: float = 1.0
) -> Layout:
    """Trim points, scale them to 0..1, and put each picture into exactly one cell.

    Args:
        pictures: Place of each in the sweep, [M].
        points: [M, 2].
        size: Rows and columns.
        trim: From this percentile to its counterpart, with equal margins, the map reaches; what
            lies farther out is moved to the border. 0 to 50.

    Raises:
        InputError: If a number is out of range.
    """
    rows, across = size
    if min(size) < 1:
        raise InputError(f"a map of {rows} rows and {across} columns: give 1 or more of each")
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
    column = np.minimum((points[:, 0] * across).astype(np.int64), across - 1)
    row = np.minimum(((1 - points[:, 1]) * rows).astype(np.int64), rows - 1)
    return Layout(np.asarray(pictures), points, row * across + column, (rows, across))


def cells(
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


def save(points: Array, path: Path) -> None:
    """Write the points of a map as .npy, whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        np.save(file, points)
    part.replace(path)


def load(path: Path, count: int) -> Array:
    """Read the points of a map, [M, 2].

    Args:
        path: Where `save` wrote them.
        count: M.

    Raises:
        InputError: If they are not there.
    """
    try:
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False).reshape(count, 2)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} holds no map of {count} pictures; delete it to have it made again"
        ) from error
