"""Units on trial: named by what they are said to add, silenced, and compared with others."""

from typing import Final

import numpy as np

from mti_lightning.errors import InputError
from mti_lightning.inhibitors.causal import CHANCE, chance_of, describe_change
from mti_lightning.inhibitors.interventions import Intervention
from mti_lightning.inhibitors.network import Network
from mti_lightning.inhibitors.ranking import Ranking
from mti_lightning.inhibitors.result import KINDS, SCALES, Inhibitors, Unit
from mti_lightning.log import log_warning
from mti_lightning.sweep.measures import Array

_DRAWS: Final = 8  # of as many random units as are named
CONTROLS, SHOWN = 20, 64  # random units for each that is named, and in how many pictures


def try_units(
    network: Network,
    kind: str,
    ranking: Ranking,
    count: int,
    tested: Array,
    rng: np.random.Generator,
) -> Inhibitors:
    """Name the units that inhibit (or excite) most, and silence them in other pictures.

    Args:
        network: The network, and the pictures.
        kind: `inhibitors` or `excitors`.
        ranking: Of all units.
        count: How many are named, at most.
        tested: The pictures they are silenced in, [N]; they had no part in the ranking.
        rng: Of random units.

    Raises:
        InputError: If no unit is one of that kind.
    """
    way, named = -KINDS[kind], ranking.top(count, KINDS[kind])
    if not len(named):
        raise InputError(f"no unit of {network.layer} is one of {kind}")
    every, others = tuple(named.tolist()), rng.permutation(ranking.others(named))
    draws = [rng.choice(others, min(len(named), len(others)), False) for _ in range(_DRAWS)]
    controls = others[: max(2, len(named)) * CONTROLS]
    if CHANCE * (len(controls) + 1) < 1:
        log_warning(f"{len(controls)} other active units are too few to confirm any beside them")
    plans = {
        "intact": [Intervention()],
        "with above": [Intervention(every[: rank + 1]) for rank in range(len(every))],
        "mean": [Intervention((unit,), "mean") for unit in every],
        "resampled": [Intervention((unit,), "resampled") for unit in every],
        "drawn": [Intervention(tuple(draw.tolist())) for draw in draws],
        "doses": [
            Intervention(units, scale)
            for units in (every, *((unit,) for unit in every))
            for scale in SCALES
            if scale != 1
        ],
    }
    done, tested = network.respond(tested, plans)
    silenced = {"random": [Intervention((unit,)) for unit in controls.tolist()]}
    some, read = network.respond(tested[:SHOWN], silenced)
    intact = done["intact"][0]
    scaled = done["doses"].reshape(1 + len(every), len(SCALES) - 1, -1)
    together, *alone = np.insert(scaled, SCALES.index(1), intact, axis=1)
    own, random = scaled[1:, 0] - intact, some["random"] - intact[: len(read)]
    predicted = network.predict(tested)
    chances = chance_of(own, random, way)
    shares = ranking.inhibits if way > 0 else ranking.excites
    units = [
        Unit(
            unit=unit,
            contribution=float(ranking.mean[unit]),
            spread=float(ranking.spread[unit]),
            share=float(shares[unit]),
            predicted=float(predicted[:, unit].mean()),
            real=describe_change(intact, alone[rank][0], way),
            to_mean=describe_change(intact, done["mean"][rank], way),
            resampled=describe_change(intact, done["resampled"][rank], way),
            chance=float(chances[rank]),
            with_above=describe_change(intact, done["with above"][rank], way),
            doses=alone[rank],
        )
        for rank, unit in enumerate(every)
    ]
    real = np.concatenate([own[:, : len(read)].mean(1), random.mean(1)])
    pairs = np.stack([real, predicted[: len(read), [*every, *controls]].mean(0)])
    return Inhibitors(
        feature=network.feature.shown,
        layer=str(network.layer),
        kind=kind,
        ranking=ranking,
        units=units,
        response=intact,
        doses=together,
        predicted=float(predicted[:, named].sum(1).mean()),
        random=describe_change(intact, done["drawn"], way),
        agreement=float(np.corrcoef(pairs)[0, 1]) if np.ptp(pairs, 1).all() else float("nan"),
    )
