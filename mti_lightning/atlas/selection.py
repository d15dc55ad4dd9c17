"""Which pictures of a sweep a map is of, their numbers, and the vectors that it is made from."""

import math
from dataclasses import dataclass
from typing import Final, final

import numpy as np
import torch

from mti_lightning.atlas.columns import ALWAYS, COLUMNS
from mti_lightning.atlas.placing import near_strongest, strongest
from mti_lightning.attribution.signs import Sign, split_target
from mti_lightning.backbone import ActivationLayout
from mti_lightning.errors import InputError
from mti_lightning.sweep.measures import Array, check_measure, select
from mti_lightning.sweep.store import SweepStore

_SIGNS: Final[tuple[Sign, ...]] = ("+", "-")
STRENGTH: Final[dict[Sign, str]] = {"+": "excitation", "-": "inhibition"}
_LOUDEST = 60  # pictures that a map is of at least, where there are as many
_LEAST_SPREAD = 0.1  # of the mean channel's: one that hardly varies is not blown up to noise
_AT_ONCE: Final = 2**23  # numbers of maps that are read from the store at once


def select_pictures(
    store: SweepStore,
    feature: int,
    top: int | None = None,
    measures: tuple[str, ...] = ("tension", "response", "-response"),
    quiet: float = 0,
    sign: Sign | None = None,
) -> tuple[Array, Array]:
    """Choose pictures for an atlas among those whose attribution maps were kept.

    Args:
        store: The sweep.
        feature: Its column.
        top: How many of the top pictures by each measure; None takes all that were kept.
        measures: By what they are top; `-` before one means its low end.
        quiet: Leave those out whose E⁺ and E⁻ are both below this share of what is strong in the
            sweep, the 95th percentile; but not of the 60 in which most happens.
        sign: `+` or `-` where only E⁺ or only E⁻ is to count.

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
    finite = np.isfinite([columns[name] for name in ALWAYS]).all(0)
    rows, pictures = rows[finite], pictures[finite]
    if quiet:
        loud = np.zeros(len(pictures))  # as shares of what is strong
        for name in STRENGTH.values() if sign is None else [STRENGTH[sign]]:
            strong = np.nanpercentile(store.values(name, feature), 95)
            loud = np.maximum(loud, columns[name][finite] / max(strong, 1e-12))
        least = np.sort(loud)[-_LOUDEST:].min(initial=quiet)
        rows, pictures = rows[loud >= least], pictures[loud >= least]
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


def columns_of(store: SweepStore, features: int | Array, pictures: Array) -> dict[str, Array]:
    """Return the columns of some pictures, [M] each, that the sweep has measured.

    Args:
        store: The sweep.
        features: The feature's column, or that of each picture's, [M].
        pictures: Their places in the sweep, [M].
    """
    of = np.broadcast_to(features, pictures.shape)
    held = {name: np.full(len(pictures), np.nan, np.float32) for name in COLUMNS}
    for feature in np.unique(of).tolist():
        own = of == feature
        for name, values in held.items():
            values[own] = store.values(name, feature, pictures[own])
    return {n: v for n, v in held.items() if n in ALWAYS or np.isfinite(v).any()}


@final
@dataclass(frozen=True)
class Pooled:
    """What is known of kept maps.

    Attributes:
        vectors: What the map is made from, [M, D]; see `pool`.
        added: What each unit adds to the response and takes from it, [M, 2, C].
        places: Where in the picture most excites and where most inhibits, y and x in 0..1,
            [M, 2, 2]; the middle for a layer without a grid.
    """

    vectors: Array
    added: Array
    places: Array


def read_store(store: SweepStore, rows: Array, sign: Sign | None = None) -> Pooled:
    """Read kept maps, a few at a time."""
    layout, scale = store.map_layout, scale_of(store)
    parts, step = [], maps_at_once(layout)
    for start in range(0, len(rows), step):
        maps = store.maps(rows[start : start + step])
        added = pool(maps, layout, scale)
        vectors = added if sign is None else pool(maps, layout, scale, sign)
        parts.append((vectors, added, _places(maps, layout, scale)))
    vectors, added, places = map(np.concatenate, zip(*parts, strict=True))
    if sign is not None:
        vectors = _weighted(vectors)
    return Pooled(vectors, added.reshape(len(rows), len(_SIGNS), -1), places)


def maps_at_once(layout: ActivationLayout) -> int:
    """Return how many maps are read from a store at once."""
    return max(1, min(256, _AT_ONCE // math.prod(layout.shape)))


def _weighted(vectors: Array) -> Array:
    """Divide each channel by how much it varies, so that what all pictures share counts less.

    benchmarks/atlas_of_photographs.py finds cells of more alike pictures by it.
    """
    spread = vectors.std(0)
    least = _LEAST_SPREAD * spread.mean()
    weighted: Array = vectors / (spread + least) if least > 0 else vectors
    return weighted


def _places(maps: Array, layout: ActivationLayout, scale: float) -> Array:
    if layout.grid is None:
        return np.full((len(maps), len(_SIGNS), 2), 0.5)
    found = []
    for side in _SIGNS:
        target = split_target(torch.from_numpy(maps), side, True, layout, scale)
        found.append((strongest(target, layout, scale) + 0.5) / torch.tensor(layout.grid))
    return torch.stack(found, 1).numpy()


def pool_store(store: SweepStore, rows: Array) -> Array:
    """Pool kept maps of both signs, a few at a time, [M, 2 · C]."""
    return read_store(store, rows).vectors


def scale_of(store: SweepStore) -> float:
    """Return the scale at which a sweep's signs were split."""
    return float(store.provenance.get("tension", {}).get("scale", 0.0))


def pool(maps: Array, layout: ActivationLayout, scale: float, sign: Sign | None = None) -> Array:
    """Pool attribution maps [M, C, ...] over space: what the map is made from, [M, 2 · C].

    T⁺ of the positions that excite, at a scale as `split_target` takes it, beside T⁻ of those that
    inhibit, as inversions show them: shape and veto do not cancel. In the vetoed shapes the worst
    group of 16 maps, measured as in `embed` with UMAP's 10 neighbours and 0.1, kept 0.961 so, with
    a scale of 0; 0.951 with A or with T of all positions.

    Of one sign, [M, C], it is the square root of T⁺ (T⁻) around the place where most of it is: of a
    photograph much else excites a little. benchmarks/atlas_of_photographs.py compares.
    """
    given = torch.from_numpy(np.ascontiguousarray(maps))
    if sign is not None:
        return layout.pool_sum(near_strongest(given, sign, layout, scale)).sqrt().numpy()
    halves = []
    for side in _SIGNS:
        target = split_target(given, side, coherent=True, layout=layout, scale=scale)
        halves.append(layout.pool_sum(target))
    return torch.cat(halves, 1).numpy()
