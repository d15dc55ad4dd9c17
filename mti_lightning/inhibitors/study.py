"""From a sweep to its feature's inhibitors: ranked on some pictures, tested on others."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mti_lightning.backbone import Layer
from mti_lightning.errors import InputError, check_range, nearest
from mti_lightning.features.bound import BoundFeature
from mti_lightning.features.feature import Feature
from mti_lightning.inhibitors.causal import (
    CHANCE,
    chance_of,
    describe_change,
)
from mti_lightning.inhibitors.interventions import Intervention, respond_to
from mti_lightning.inhibitors.ranking import Ranking, rank_units
from mti_lightning.inhibitors.result import KINDS, SCALES, Inhibitors, Unit
from mti_lightning.log import log_warning
from mti_lightning.sweep.measures import Array
from mti_lightning.sweep.pictures import backbone_of, data_of
from mti_lightning.sweep.store import MEASURED, SweepStore

_DRAWS = 8  # of as many random units as are named
_CONTROLS, _SHOWN = 20, 64  # random units for each that is named, and in how many pictures
_DONORS = 32  # pictures whose activations stand in
_LEAST = 4  # pictures of either half
_TENSEST = 64  # pictures, or a tenth of all
_AT_ONCE = 2**22  # numbers of the store that are read together


def find_inhibitors(
    store: SweepStore,
    feature: str | None = None,
    count: int = 8,
    pictures: str = "all",
    kind: str = "inhibitors",
    most: int = 256,
    seed: int = 0,
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

    Raises:
        InputError: If the sweep has no such feature, picture or contributions, its network or
            pictures are gone, or there are too few.
    """
    check_range(1, count=count)
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
    ranking = rank_units(_contributions(store, place, np.sort(ranked), rng))
    named = ranking.top(count, KINDS[kind])
    if not len(named):
        raise InputError(f"no unit of {store.provenance['attribution_layer']} is one of {kind}")
    others = rng.permutation(ranking.others(named))
    draws = [rng.choice(others, min(len(named), len(others)), False) for _ in range(_DRAWS)]
    controls = others[: max(2, len(named)) * _CONTROLS]
    if CHANCE * (len(controls) + 1) < 1:
        log_warning(f"{len(controls)} other active units are too few to confirm any beside them")
    rest = rng.permutation(np.setdiff1d(np.flatnonzero(store.status == MEASURED), tested))
    return _test(store, place, kind, ranking, named, controls, draws, tested, rest[:_DONORS])


def _test(
    store: SweepStore,
    place: int,
    kind: str,
    ranking: Ranking,
    named: Array,
    controls: Array,
    draws: Sequence[Array],
    tested: Array,
    donors: Array,
) -> Inhibitors:
    """Silence units in pictures, and put together what it does."""
    network, every, way = _Network(store, place, donors), tuple(named.tolist()), -KINDS[kind]
    plans = {
        "intact": [Intervention()],
        "own": [Intervention((unit,)) for unit in every],
        "with above": [Intervention(every[: rank + 1]) for rank in range(len(every))],
        "mean": [Intervention((unit,), "mean") for unit in every],
        "resampled": [Intervention((unit,), "resampled") for unit in every],
        "doses": [Intervention(every, scale) for scale in SCALES],
        "drawn": [Intervention(tuple(draw.tolist())) for draw in draws],
    }
    done, tested = network.respond(tested, plans)
    alone = {"random": [Intervention((unit,)) for unit in controls.tolist()]}
    some, read = network.respond(tested[:_SHOWN], alone)
    intact = done["intact"][0]
    random = some["random"] - intact[: len(read)]
    contribution = store.contributions(place, tested).astype(np.float64)
    chances = chance_of(done["own"] - intact, random, way)
    predicted = -contribution.mean(0)
    shares = ranking.inhibits if way > 0 else ranking.excites
    units = [
        Unit(
            unit=unit,
            contribution=float(ranking.mean[unit]),
            spread=float(ranking.spread[unit]),
            share=float(shares[unit]),
            predicted=float(predicted[unit]),
            real=describe_change(intact, done["own"][rank], way),
            to_mean=describe_change(intact, done["mean"][rank], way),
            resampled=describe_change(intact, done["resampled"][rank], way),
            chance=float(chances[rank]),
            with_above=describe_change(intact, done["with above"][rank], way),
        )
        for rank, unit in enumerate(every)
    ]
    real = np.concatenate([(done["own"] - intact)[:, : len(read)].mean(1), random.mean(1)])
    pairs = np.stack([real, -contribution[: len(read), [*every, *controls]].mean(0)])
    return Inhibitors(
        feature=store.shown[place],
        layer=str(store.provenance["attribution_layer"]),
        kind=kind,
        ranking=ranking,
        units=units,
        response=intact,
        doses=done["doses"],
        predicted=float(predicted[named].sum()),
        random=describe_change(intact, done["drawn"], way),
        agreement=float(np.corrcoef(pairs)[0, 1]) if np.ptp(pairs, 1).all() else float("nan"),
    )


class _Network:
    """The network of a sweep, the feature, and the pictures to try it on."""

    def __init__(self, store: SweepStore, place: int, donors: Array) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.backends.cudnn.allow_tf32 = False  # E⁺ and E⁻ all but cancel
        self.backbone = backbone_of(store).to(self.device)
        feature = Feature.parse(store.features[place])
        self.feature = BoundFeature(feature, self.backbone).to(self.device)
        self.layer = Layer.parse(store.provenance["attribution_layer"])
        self.store, self.data = store, data_of(store)
        self.mean = torch.from_numpy(store.mean_activation).to(self.device)
        read: list[int] = []
        with torch.no_grad():
            found = [
                self.backbone.run(pictures, [self.layer])[self.layer]
                for pictures in self._load(donors, read)
            ]
        self.donors = torch.cat(found)

    def respond(
        self, rows: Array, plans: Mapping[str, Sequence[Intervention]]
    ) -> tuple[dict[str, Array], Array]:
        """Return responses under each plan's interventions, [I, N], and which could be read."""
        read: list[int] = []
        every = [intervention for plan in plans.values() for intervention in plan]
        of = (self.backbone, self.layer, self.feature, self._load(rows, read), every)
        responses = respond_to(*of, self.mean, self.donors).double().numpy()
        ends = np.cumsum([len(plan) for plan in plans.values()])[:-1]
        return dict(zip(plans, np.split(responses, ends), strict=True)), np.array(read)

    def _load(self, rows: Array, read: list[int]) -> Iterator[Tensor]:
        self.store.check_contents(self.data.pictures, rows)
        for batch in self.data.loader(rows.tolist()):
            if len(batch.indices):
                read.extend(batch.indices.tolist())
                yield batch.pictures.to(self.device)


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
        names = [line.strip() for line in Path(pictures).read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        near = nearest(pictures, ("all", "tensest"))
        raise InputError(
            f"pictures {pictures!r}: give all, tensest, or a text file of names, one a line{near}"
        ) from error
    keys = {key: index for index, key in enumerate(store.keys)}
    for name in filter(None, names):
        if name not in keys:
            raise InputError(f"{pictures}: {store.path} has no picture {name!r}")
    asked = np.array(sorted({keys[name] for name in filter(None, names)}), np.int64)
    return np.intersect1d(asked, measured)
