"""The inhibitors of a feature, as they are told."""

from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np

from mti_lightning.inhibitors.causal import CHANCE, Change, describe_change, switching_scale
from mti_lightning.inhibitors.ranking import Ranking
from mti_lightning.sweep.measures import Array

SCALES: Final = (0.0, 0.5, 1.0, 1.5, 2.0)
KINDS: Final = {"inhibitors": -1, "excitors": 1}  # and the sign of what they add


@final
@dataclass(frozen=True)
class Unit:
    """A unit that was named, and what silencing it does to pictures that did not name it.

    Attributes:
        unit: The channel of the attribution layer.
        contribution: Its mean contribution to the response.
        spread: The standard deviation of that over pictures.
        share: In what share of the pictures it has this sign.
        predicted: What silencing it changes by its contributions.
        real: What silencing it changes.
        to_mean: What setting it to its mean activation changes.
        resampled: What setting it to its activations in another picture changes.
        chance: How likely that is by chance, corrected for the number of units.
        with_above: What silencing it and all that were named before it changes.
    """

    unit: int
    contribution: float
    spread: float
    share: float
    predicted: float
    real: Change
    to_mean: Change
    resampled: Change
    chance: float
    with_above: Change

    @property
    def is_confirmed(self) -> bool:
        return self.chance <= CHANCE


@final
@dataclass(frozen=True)
class Inhibitors:
    """The units that inhibit (or excite) a feature most, tested by silencing them.

    Attributes:
        feature: As it is shown.
        layer: Whose channels the units are.
        kind: `inhibitors` or `excitors`.
        ranking: Of all units.
        units: Those that were named, the strongest first.
        response: r of the pictures that they were tested on, [N].
        doses: r with the named units scaled by each of `SCALES`, [D, N].
        predicted: What silencing all of them changes by their contributions.
        random: What silencing as many random active units changes.
        agreement: Correlation over units, named and random, of predicted and real changes.
    """

    feature: str
    layer: str
    kind: str
    ranking: Ranking
    units: list[Unit]
    response: Array
    doses: Array
    predicted: float
    random: Change
    agreement: float

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The table: a row for each unit, for all of them at each scale, and for random ones."""
        rows = [
            {
                "unit": str(unit.unit),
                "contribution": _number(unit.contribution),
                "spread": _number(unit.spread),
                "share": _number(unit.share),
                "predicted": _number(unit.predicted),
                **_told(unit.real),
                "flipped": _number(unit.with_above.flipped),
                "to_mean": _number(unit.to_mean.mean),
                "resampled": _number(unit.resampled.mean),
                "chance": _number(unit.chance),
                "confirmed": "yes" if unit.is_confirmed else "no",
            }
            for unit in self.units
        ]
        blank = dict.fromkeys(rows[0], "")
        count, way = len(self.units), -KINDS[self.kind]
        for scale, responses in zip(SCALES, self.doses, strict=True):
            if scale == 1:
                continue
            found = describe_change(self.response, responses, way if scale < 1 else -way)
            predicted = _number((1 - scale) * self.predicted)
            rows.append(
                blank | {"unit": f"all {count} x {scale:g}", "predicted": predicted} | _told(found)
            )
        return [*rows, blank | {"unit": f"{count} random x 0"} | _told(self.random)]

    @property
    def text(self) -> str:
        """What the terminal is told."""
        heads = [*self.rows[0]]
        lines = [heads, *([row[head] for head in heads] for row in self.rows)]
        wide = [max(len(line[place]) for line in lines) for place in range(len(heads))]
        table = [
            "  ".join(f"{cell:>{size}}" for cell, size in zip(line, wide, strict=True))
            for line in lines
        ]
        confirmed = sum(unit.is_confirmed for unit in self.units)
        ranked = (
            f"ranked on {self.ranking.pictures} pictures; between their halves the order of all "
            f"units agrees to {self.ranking.stability:.2f}"
        )
        tested = (
            f"tested on {len(self.response)} others: {confirmed} of {len(self.units)} confirmed; "
            f"predicted and real changes agree to {self.agreement:.2f}"
        )
        head = f"{self.feature}, {self.kind} among {len(self.ranking.mean)} units of {self.layer}"
        return "\n".join(filter(None, [head, *table, ranked, tested, self._switching]))

    @property
    def _switching(self) -> str:
        silent = self.response <= 0
        if self.kind != "inhibitors" or not silent.any():
            return ""
        scale = switching_scale(SCALES[:3], self.doses[:3, silent])
        on = np.isfinite(scale)
        median = f", at a scale of {np.median(scale[on]):.2f} in the middle" if on.any() else ""
        return f"of {silent.sum()} silent pictures {on.mean():.0%} switch on{median}"


def _told(change: Change) -> dict[str, str]:
    values = {"real": change.mean, "low": change.low, "high": change.high}
    return {name: _number(value) for name, value in (values | {"flipped": change.flipped}).items()}


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.4g}"
