"""The map of a sweep's pictures for one feature: how it is made, what it holds, opening it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np

from mti_lightning.atlas.embedding import kept_points
from mti_lightning.atlas.layout import Cell, Layout, find_cells, lay_out
from mti_lightning.atlas.selection import Pooled, columns_of, read_store, select_pictures
from mti_lightning.attribution.signs import Sign
from mti_lightning.errors import InputError, check_range
from mti_lightning.sweep.measures import Array, check_measure
from mti_lightning.sweep.store import SweepStore

_NAMED: Final = 3  # features that a title tells
INSTEAD: Final = "give the same, or another chart.sweep"  # where a sweep is not what is asked for


@final
@dataclass(frozen=True)
class Chart:
    """How a map is made of a sweep's pictures.

    Args:
        sweep: The sweep's folder, such as `tb_logs/NAME/sweep.zarr`; maps of its pictures'
            attributions must have been kept. `AtlasInversion` makes it of `--data` where it does
            not exist; by default `tb_logs/NAME/sweep.zarr`.
        top: Take this many top pictures by each measure of `by`; by default all that were kept.
        by: Measures by which pictures are top; `-` before one means its low end.
        apart: Make a map for each sign: of the pictures in which something excites, by what that
            is, and of those in which something inhibits. In photographs what excites and what
            inhibits go together as they please, and one map of both has no room for all pairs.
        quiet: Leave pictures out in which less excites and inhibits than this share of what does in
            others, those that 5% surpass: an atlas is of pictures in which something happens. By
            default 0.1, of a map for a sign 0.3.
        size: Rows and columns of cells that UMAP's map is cut into; by default near pictures are
            gathered into as many cells as suit them, about 25 in each and 30 to 400 of them where
            that can be, on a full grid.
        minimum: Pictures that a cell needs for an icon; by default 6, or fewer where too few cells
            would have one.
        exemplars: Pictures shown of a cell, those nearest its mean.
        neighbours: Of a picture, that UMAP keeps near it.
        min_dist: Between two points of UMAP's.
        trim: The percentile, from either end, beyond which points are moved to the border.
        seed: Of UMAP.

    Raises:
        InputError: If a number is out of range, or there is no such measure.
    """

    sweep: str | None = None
    top: int | None = None
    by: tuple[str, ...] = ("tension", "excitation", "inhibition")
    apart: bool = False
    quiet: float | None = None
    size: tuple[int, int] | None = None
    minimum: int | None = None
    exemplars: int = 5
    neighbours: int = 15
    min_dist: float = 0.5
    trim: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        given = {} if self.minimum is None else {"minimum": self.minimum}
        check_range(1, **given, size=1 if self.size is None else min(self.size))
        check_range(0, 1, quiet=self.quiet or 0)
        check_range(0, exemplars=self.exemplars)
        check_range(0, 2**32 - 1, seed=self.seed)  # which UMAP takes
        check_range(0, 1, min_dist=self.min_dist)
        check_range(2, neighbours=self.neighbours)
        check_range(0, 49, trim=self.trim)
        if self.top is not None:
            check_range(1, top=self.top)
        for measure in self.by:
            check_measure(measure)


@final
@dataclass(frozen=True)
class Map:
    """The pictures of a sweep by how they excite and inhibit one feature or several.

    Of several features a point is a picture and one of them: a picture may be there more than once.

    Attributes:
        store: The sweep.
        features: The features' columns in it.
        of: The column of each point's feature, [M].
        rows: Where the points' attribution maps are in the store, [M].
        pooled: What is known of their maps.
        columns: Their numbers by name, [M] each.
        layout: Where they lie.
        cells: Those that have enough pictures.
        sign: `+` or `-` of a map by what excites or by what inhibits alone.
    """

    store: SweepStore
    features: tuple[int, ...]
    of: Array
    rows: Array
    pooled: Pooled
    columns: dict[str, Array]
    layout: Layout
    cells: list[Cell]
    sign: Sign | None = None

    @property
    def vectors(self) -> Array:
        """What it was made from, [M, D]."""
        return self.pooled.vectors

    @property
    def selected(self) -> str:
        """Which pictures it is of, in words."""
        count, swept = len(self.rows), self.store.size * len(self.features)
        what = "pictures" if len(self.features) == 1 else "pairs of a picture and a feature"
        if count == swept:
            return f"all {swept:,} {what}"
        does = {"+": "excites", "-": "inhibits", None: "excites or inhibits"}[self.sign]
        return f"the {count:,} of {swept:,} {what} in which most {does}"

    @property
    def name(self) -> str:
        """What it is of, as people are shown it: some of its features."""
        shown = [self.store.shown[column] for column in self.features]
        more = len(shown) - _NAMED
        return ", ".join(shown[:_NAMED]) + (f" and {more} more" if more > 0 else "")

    @property
    def feature_names(self) -> list[str] | None:
        """The feature of each point, as people are shown it; None where there is only one."""
        if len(self.features) == 1:
            return None
        shown = self.store.shown
        return [shown[column] for column in self.of.tolist()]


def open_map(
    chart: Chart,
    features: str | Sequence[str],
    provenance: Mapping[str, Any] | None = None,
    sign: Sign | None = None,
) -> Map:
    """Read or fit the map of a feature, or of several together.

    It is fitted once and kept beside the sweep: it stays the same for every run.

    Args:
        chart: How to map which sweep's pictures.
        features: One of the sweep's, or several.
        provenance: How the sweep has to have been made, as `attributed` tells.
        sign: `+` or `-` for a map by what excites or by what inhibits alone.

    Raises:
        InputError: If the sweep is not there, not complete, made otherwise, has not a feature or
            none of its attribution maps, or no cell has enough pictures.
    """
    if chart.sweep is None:
        raise InputError("name the sweep whose pictures the map is of: sweep")
    store = SweepStore(chart.sweep)
    if not store.complete:
        raise InputError(f"{store.path} is not complete; run mti predict again to go on with it")
    store.check_provenance(provenance or {}, INSTEAD)
    names = [features] if isinstance(features, str) else features
    places = tuple(map(store.feature_index, names))
    quiet = (0.3 if sign else 0.1) if chart.quiet is None else chart.quiet
    chosen = [select_pictures(store, p, chart.top, chart.by, quiet, sign) for p in places]
    rows, pictures = map(np.concatenate, zip(*chosen, strict=True))
    of = np.repeat(places, [len(own) for own, _ in chosen])
    pooled = read_store(store, rows, sign)
    vectors = pooled.vectors
    points = kept_points(store.path, vectors, chart.seed, chart.neighbours, chart.min_dist)
    layout = lay_out(pictures, points, chart.size, chart.trim, chart.minimum)
    columns = columns_of(store, of, pictures)
    cells = find_cells(layout, vectors, columns, layout.minimum, chart.exemplars)
    if not cells:
        raise InputError(
            f"no cell of the map of {len(pictures)} pictures has {layout.minimum}; give a smaller "
            "chart.size or chart.minimum, or sweep more pictures"
        )
    return Map(store, places, of, rows, pooled, columns, layout, cells, sign)
