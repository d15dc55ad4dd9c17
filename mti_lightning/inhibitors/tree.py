"""The units behind units: a small signed tree of edges that silencing confirms."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final

import numpy as np

from mti_lightning.attribution.checks import check_path
from mti_lightning.attribution.methods import ActGrad, IntGrad, attribute
from mti_lightning.attribution.steps import CHOSEN_ON, choose_steps
from mti_lightning.backbone import Backbone, Layer
from mti_lightning.backbone.layers import usable_layers
from mti_lightning.errors import InputError
from mti_lightning.features.bound import BoundFeature
from mti_lightning.features.feature import Feature
from mti_lightning.inhibitors.causal import CHANCE, Change, chance_of, describe_change
from mti_lightning.inhibitors.interventions import Intervention
from mti_lightning.inhibitors.network import Network
from mti_lightning.inhibitors.ranking import rank_units
from mti_lightning.inhibitors.result import KINDS, Branch, Inhibitors
from mti_lightning.inhibitors.trial import CONTROLS
from mti_lightning.sweep.measures import Array

_BRANCHES: Final = 3  # of each unit, at most
_RANKED, _TESTED, _ROUGHLY = 64, 32, 16  # pictures; the last of random units
_DONORS: Final = 8


def grow(
    network: Network,
    found: Inhibitors,
    ranked: Array,
    tested: Array,
    stages: Sequence[Layer],
    rng: np.random.Generator,
) -> tuple[Branch, ...]:
    """Return the strongest confirmed units, each with the confirmed ones that drive it.

    Args:
        network: That they were tried in.
        found: The units.
        ranked: Pictures to rank units on.
        tested: Others, to silence them in.
        stages: The layers to go back through, as of `stages_before`.
        rng: Of random units.
    """
    grower = _Grower(network, ranked[:_RANKED], tested[:_TESTED], rng)
    confirmed = [one for one in found.units if one.is_confirmed]
    strongest = sorted(confirmed, key=lambda one: -abs(one.real.mean))[:_BRANCHES]
    return tuple(
        Branch(
            *(found.layer, one.unit, found.kind, one.real),
            grower.below(one.unit, network.layer, stages),
        )
        for one in strongest
    )


def stages_before(backbone: Backbone, layer: Layer, count: int) -> list[Layer]:
    """Return the ends of as many stages before a layer, the nearest first.

    Raises:
        InputError: If fewer feed the layer.
    """
    told: object = getattr(backbone.network, "feature_info", None)
    named = [Layer(str(one["module"])) for one in told] if isinstance(told, list) else []
    usable = usable_layers(backbone)
    order = [one.layer for one in usable]
    unit = BoundFeature(Feature.parse(_feature(backbone, layer, 0)), backbone)
    found: list[Layer] = []
    if layer in order:
        before = order[: order.index(layer)]
        for candidate in reversed([one for one in before if one in named] or before):
            with suppress(InputError):
                check_path(backbone, unit, candidate)
                found.append(candidate)
            if len(found) == count:
                return found
    raise InputError(
        f"depth {count + 1}: {len(found)} stages before {layer} feed it"
        + "".join(f", {one}" for one in found)
    )


def _feature(backbone: Backbone, layer: Layer, unit: int) -> str:
    return f"{layer}:{unit}{'@mean' if backbone.layout(layer).position_dims else ''}"


class _Grower:
    """Finds what drives units."""

    def __init__(
        self, network: Network, ranked: Array, tested: Array, rng: np.random.Generator
    ) -> None:
        self.network, self.ranked, self.tested, self.rng = network, ranked, tested, rng
        self._steps_of: dict[Layer, dict[str, Array]] = {}

    def below(self, unit: int, layer: Layer, earlier: Sequence[Layer]) -> tuple[Branch, ...]:
        """Return the units of earlier layers that drive a unit."""
        if not earlier:
            return ()
        return tuple(
            Branch(str(earlier[0]), one, kind, real, self.below(one, earlier[0], earlier[1:]))
            for one, kind, real in self._drivers(unit, layer, earlier[0])
        )

    def _drivers(self, unit: int, layer: Layer, earlier: Layer) -> list[tuple[int, str, Change]]:
        """Return the confirmed units that drive a unit most, the strongest first."""
        network, backbone = self.network, self.network.backbone
        feature = BoundFeature(Feature.parse(_feature(backbone, layer, unit)), backbone)
        contribution = self._contributions(feature, earlier)
        half = self.rng.permutation(np.arange(len(contribution)) % 2)
        ranking = rank_units([(contribution, half)])
        named = {kind: ranking.top(_BRANCHES, sign) for kind, sign in KINDS.items()}
        every = np.concatenate([*named.values()]).astype(np.int64)
        others = self.rng.permutation(ranking.others(every))[: max(2, len(every)) * CONTROLS]
        of = (backbone, feature, earlier, network.load, self.ranked[:_DONORS])
        trial = Network(*of, pieces=network.pieces)
        plans = {
            "intact": [Intervention()],
            "own": [Intervention((one,)) for one in every.tolist()],
        }
        silenced = {"random": [Intervention((one,)) for one in others.tolist()]}
        done, tested = trial.respond(self.tested, plans)
        some, read = trial.respond(tested[:_ROUGHLY], silenced)
        intact = done["intact"][0]
        random, confirmed = some["random"] - intact[: len(read)], list[tuple[int, str, Change]]()
        for kind, units in named.items():
            rows = np.isin(every, units)
            if not rows.any():
                continue
            way, silent = -KINDS[kind], done["own"][rows]
            chances = chance_of(silent - intact, random, way)
            for one, responses, chance in zip(every[rows].tolist(), silent, chances, strict=True):
                if chance <= CHANCE:
                    confirmed.append((one, kind, describe_change(intact, responses, way)))
        return sorted(confirmed, key=lambda one: -abs(one[2].mean))[:_BRANCHES]

    def _contributions(self, feature: BoundFeature, earlier: Layer) -> Array:
        """Return what each unit of a layer adds to a unit's mean activation, [P, U]."""
        network, backbone = self.network, self.network.backbone
        if earlier not in self._steps_of:
            self._steps_of[earlier] = network.pieces.next(
                lambda: self._choose_steps(feature, earlier)
            )
        steps = int(self._steps_of[earlier]["steps"])
        method = IntGrad(steps) if steps else ActGrad()

        def attributed() -> Iterator[Array]:
            for pictures in network.load(self.ranked, []):
                asked = (pictures, [feature] * len(pictures), earlier, method)
                found = attribute(backbone, *asked)[1]
                yield backbone.layout(earlier).pool_sum(found).detach().cpu().numpy()

        found = network.pieces.next(lambda: {"added": np.concatenate([*attributed()])})
        return found["added"]

    def _choose_steps(self, feature: BoundFeature, earlier: Layer) -> dict[str, Array]:
        """Return how many steps attribution takes, as for the first unit that is asked about."""
        pictures = self.network.load(self.ranked[:CHOSEN_ON], [])
        of = (self.network.backbone, earlier, [feature], pictures)
        chosen = choose_steps(IntGrad(), *of, ground=False)  # a unit is silenced, not a thing
        return {"steps": np.array(chosen.steps if isinstance(chosen, IntGrad) else 0)}
