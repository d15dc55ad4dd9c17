"""Which pictures of a sweep a map is of, their numbers, and the vectors that it is made from."""

from typing import Final

import numpy as np
import torch

from mti_lightning.atlas.columns import ALWAYS, COLUMNS
from mti_lightning.attribution.signs import Sign, split_target
from mti_lightning.backbone import ActivationLayout
from mti_lightning.errors import InputError
from mti_lightning.sweep.measures import Array, check_measure, select
from mti_lightning.sweep.store import SweepStore

_SIGNS: Final[tuple[Sign, ...]] = ("+", "-")
_AT_ONCE = 256  # maps read from the store at once


def select_pictures(
    store: SweepStore,
    feature: int,
    top: int | None = None,
    measures: tuple[str, ...] = ("tension", "response", "-response"),
    quiet: float = 0,
) -> tuple[Array, Array]:
    """Choose pictures for an atlas among those whose attribution maps were kept.

    Args:
        store: The sweep.
        feature: Its column.
        top: How many of the top pictures by each measure; None takes all that were kept.
        measures: By what they are top; `-` before one means its low end.
        quiet: Leave those out whose E⁺ and E⁻ are both below this share of what is strong in the
            sweep, the 95th percentile.

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
        happens = np.zeros(len(pictures), bool)
        for name in ("excitation", "inhibition"):
            strong = np.nanpercentile(store.values(name, feature), 95)
            happens |= columns[name][finite] >= quiet * strong
        rows, pictures = rows[happens], pictures[happens]
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
    return {n: v for n, v in held.items() if n in ALWAYS or np.isfinite(v).any()}


def pool_store(store: SweepStore, rows: Array) -> Array:
    """Pool kept maps, a few at a time, [M, D]."""
    layout, scale = store.map_layout, store.provenance.get("tension", {}).get("scale", 0.0)
    parts = range(0, len(rows), _AT_ONCE)
    return np.concatenate(
        [pool(store.maps(rows[start : start + _AT_ONCE]), layout, scale) for start in parts]
    )


def pool(maps: Array, layout: ActivationLayout, scale: float) -> Array:
    """Pool attribution maps [M, C, ...] over space: what the map is made from, [M, 2 · C].

    T⁺ of the positions that excite, at a scale as `split_target` takes it, beside T⁻ of those that
    inhibit, as inversions show them: shape and veto do not cancel. In the vetoed shapes the worst
    group of 16 maps, measured as in `embed` with UMAP's 10 neighbours and 0.1, kept 0.961 so, with
    a scale of 0; 0.951 with A or with T of all positions.
    """
    given = torch.from_numpy(np.ascontiguousarray(maps))
    halves = []
    for sign in _SIGNS:
        target = split_target(given, sign, coherent=True, layout=layout, scale=scale)
        halves.append(layout.pool_sum(target))
    return torch.cat(halves, 1).numpy()
