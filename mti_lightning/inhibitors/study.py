"""From a sweep to its feature's inhibitors: ranked on some pictures, tested on others."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mti_lightning.errors import InputError, check_range, nearest
from mti_lightning.files import at_home, read_text
from mti_lightning.inhibitors.examples import find_examples
from mti_lightning.inhibitors.icons import draw_icons
from mti_lightning.inhibitors.network import Network, method_of
from mti_lightning.inhibitors.pieces import Pieces
from mti_lightning.inhibitors.ranking import rank_units
from mti_lightning.inhibitors.result import KINDS, Inhibitors
from mti_lightning.inhibitors.tree import grow, stages_before
from mti_lightning.inhibitors.trial import try_units
from mti_lightning.sweep.measures import Array
from mti_lightning.sweep.store import MEASURED, SweepStore

_DONORS = 32  # pictures whose activations stand in
_LEAST = 4  # pictures of either half
_TENSEST = 64  # pictures, or a tenth of all
_AT_ONCE = 2**19  # numbers of the store that are read together


def find_inhibitors(
    store: SweepStore,
    feature: str | None = None,
    count: int = 8,
    pictures: str = "all",
    kind: str = "inhibitors",
    most: int = 256,
    seed: int = 0,
    *,
    examples: int = 0,
    icons: int = 0,
    depth: int = 1,
    unfinished: Path | None = None,
) -> Inhibitors:
    """Name the units that inhibit a feature of a sweep most, and test them.

    Args:
        store: The sweep, with contributions of units.
        feature: One of its features.
        count: How many units are named.
        pictures: `all`; `tensest`: the tenth with the most tension, 64 or more; or a file with the
            names of pictures, one a line. On half of them units are ranked.
        kind: `inhibitors` or `excitors`.
        most: On how many pictures of the other half they are tested, at most.
        seed: Of the halves and of random units.
        examples: In how many pictures it is shown where each unit inhibits (excites) most.
        icons: In how many steps an image is made of each unit; 0 for none.
        depth: Layers of the tree: at 2 the units that drive the strongest ones are named, too.
        unfinished: A folder that keeps what has been found, from where the same call goes on if it
            was stopped; to be deleted once the result is safe.

    Raises:
        InputError: If the sweep has no such feature, picture or contributions, its network or
            pictures are gone, there are too few, or there is no earlier layer.
    """
    check_range(1, count=count, depth=depth)
    check_range(0, examples=examples, icons=icons, seed=seed)
    if kind not in KINDS:
        raise InputError(f"{kind!r} is neither of {', '.join(KINDS)}")
    place = store.feature_index(feature)
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(_choose(store, place, pictures))
    tested, ranked = np.split(chosen, [min(len(chosen) // 2, most)])
    if len(tested) < _LEAST:
        raise InputError(
            f"{len(chosen)} pictures are too few: units are named on one half and tested on the "
            f"other; give {2 * _LEAST} or more"
        )
    of = [place, count, kind, seed, examples, icons, depth, version("mti-lightning")]
    rows = hashlib.sha256(ranked.tobytes() + tested.tobytes()).hexdigest()
    pieces = Pieces(unfinished, [of, rows, store.provenance, torch.cuda.is_available()])
    ranking = rank_units(_contributions(store, place, np.sort(ranked), rng))
    rest = rng.permutation(np.setdiff1d(np.flatnonzero(store.status == MEASURED), tested))
    network = Network.of(store, place, rest[:_DONORS], pieces)
    stages = stages_before(network.backbone, network.layer, depth - 1) if depth > 1 else []
    found = try_units(network, kind, ranking, count, tested, rng)
    if examples or icons:
        found = _illustrated(network, store, place, found, chosen, max(examples, 1), icons, seed)
    if stages:
        found = replace(found, tree=grow(network, found, ranked, tested, stages, rng))
    return found


def _illustrated(
    network: Network,
    store: SweepStore,
    place: int,
    found: Inhibitors,
    pictures: Array,
    examples: int,
    icons: int,
    seed: int,
) -> Inhibitors:
    """Return the same units with pictures of what they are."""
    method, units = method_of(store), [one.unit for one in found.units]
    of = (store, place, units, pictures, KINDS[found.kind], examples)
    shown, made = find_examples(network, method, *of), dict[int, Image.Image]()
    if icons:
        active = {unit: sum(one.activation for one in shown[unit]) for unit in units}
        signs = {unit: -1 if active[unit] < 0 else 1 for unit in units}
        made = draw_icons(network, method, signs, icons, seed)
    drawn = [replace(one, examples=shown[one.unit], icon=made.get(one.unit)) for one in found.units]
    return replace(found, units=drawn)


def _contributions(
    store: SweepStore, place: int, rows: Array, rng: np.random.Generator
) -> Iterator[tuple[Array, Array]]:
    """Yield contributions [P, U] of pictures, and in which half each is, [P]."""
    half = rng.permutation(np.arange(len(rows)) % 2)
    step = max(store.block, _AT_ONCE // max(store.units, 1))
    for start in range(0, len(rows), step):
        yield store.contributions(place, rows[start : start + step]), half[start : start + step]


def _choose(store: SweepStore, place: int, pictures: str) -> Array:
    """Return the measured pictures that are asked for."""
    store.check_units()
    measured = np.flatnonzero(store.status == MEASURED)
    if pictures == "all":
        return measured
    if pictures == "tensest":
        return np.array(store.top(place, "tension", max(_TENSEST, len(measured) // 10)), np.int64)
    try:
        names = [line.strip() for line in read_text(at_home(pictures)).split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        near = nearest(pictures, ("all", "tensest"))
        why = f" ({error.strerror})" if isinstance(error, OSError) else ""
        raise InputError(
            f"pictures {pictures!r}{why}: give all, tensest, or a text file of names, one a "
            f"line{near}"
        ) from error
    keys = {key: index for index, key in enumerate(store.keys)}
    for name in filter(None, names):
        if name not in keys:
            raise InputError(f"{pictures}: {store.path} has no picture {name!r}")
    asked = np.array(sorted({keys[name] for name in filter(None, names)}), np.int64)
    return np.intersect1d(asked, measured)
