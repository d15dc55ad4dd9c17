"""The inhibitors of a feature, as they are told."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
from PIL import Image

from mti_lightning.images.boxes import Box
from mti_lightning.inhibitors.causal import CHANCE, Change, describe_change, switching_scale
from mti_lightning.inhibitors.ranking import Ranking
from mti_lightning.sweep.measures import Array

SCALES: Final = (0.0, 0.5, 1.0, 1.5, 2.0)
KINDS: Final = {"inhibitors": -1, "excitors": 1}  # and the sign of what they add


@final
@dataclass(frozen=True)
class Example:
    """Where in a picture a unit adds most of its sign.

    Attributes:
        key: What the picture is called.
        contribution: What the unit adds to the response in all of the picture.
        activation: Its activation at that place.
        field: The part of the picture that it depends on there: its receptive field, in pixels.
        image: What lies around that, outlined.
    """

    key: str
    contribution: float
    activation: float
    field: Box
    image: Image.Image


@final
@dataclass(frozen=True)
class Branch:
    """A unit that drives what stands above it, as silencing it confirms.

    Attributes:
        layer: Whose channel it is.
        unit: The channel.
        kind: `inhibitors` or `excitors` of what stands above.
        real: What silencing it changes of that.
        below: The units that drive it.
    """

    layer: str
    unit: int
    kind: str
    real: Change
    below: tuple["Branch", ...] = ()

    def lines(self, depth: int = 0) -> Iterator[str]:
        """Yield a line for it, and for each below it."""
        sign = "-" if KINDS[self.kind] < 0 else "+"
        change = (
            f"{_number(self.real.mean)} ({_number(self.real.low)} to {_number(self.real.high)})"
        )
        yield f"{'    ' * depth}{sign} {self.layer}:{self.unit}, silenced: {change}"
        for branch in self.below:
            yield from branch.lines(depth + 1)


@final
@dataclass(frozen=True)
class Unit:
    """A unit that was named, and what silencing it does to pictures that did not name it.

    Attributes:
        unit: The channel of the attribution layer.
        contribution: Its mean contribution to the response.
        spread: The standard deviation of that over pictures.
        share: In what share of the pictures it has this sign.
        predicted: What silencing it changes by the gradient at the pictures.
        real: What silencing it changes.
        to_mean: What setting it to its mean activation changes.
        resampled: What setting it to its activations in another picture changes.
        chance: How likely that is by chance, corrected for the number of units.
        with_above: What silencing it and all that were named before it changes.
        doses: r with it scaled by each of `SCALES`, [D, N].
        examples: Pictures in which it adds most of its sign.
        icon: An image that makes it active alone.
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
    doses: Array
    examples: tuple[Example, ...] = ()
    icon: Image.Image | None = None

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
        predicted: What silencing all of them changes by the gradient at the pictures.
        random: What silencing as many random active units changes.
        agreement: Correlation over units, named and random, of predicted and real changes.
        tree: The strongest of the units, with what drives them.
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
    tree: tuple[Branch, ...] = ()

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
                **{
                    f"x{scale:g}": _number(float((responses - self.response).mean()))
                    for scale, responses in zip(SCALES, unit.doses, strict=True)
                    if scale not in (0, 1)
                },
                "switch": self._switch(unit.doses),
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
            row = {"unit": f"all {count} x {scale:g}", "predicted": predicted} | _told(found)
            row["switch"] = "" if scale else self._switch(self.doses)
            rows.append(blank | row)
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
        head = f"{self.feature}, {self.kind} among {len(self.ranking.mean)} units of {self.layer}"
        tree = [line for branch in self.tree for line in branch.lines()]
        return "\n".join([head, *table, *self.summary, *tree])

    @property
    def summary(self) -> list[str]:
        """What they were ranked and tested on, and how that went, in lines."""
        confirmed = sum(unit.is_confirmed for unit in self.units)
        ranked = (
            f"ranked on {self.ranking.pictures} pictures; between their halves the order of all "
            f"units agrees to {self.ranking.stability:.2f}"
        )
        tested = (
            f"tested on {len(self.response)} others: {confirmed} of {len(self.units)} confirmed; "
            f"predicted and real changes agree to {self.agreement:.2f}"
        )
        return [*filter(None, (ranked, tested, self._switching))]

    @property
    def _switching(self) -> str:
        silent, (on, median) = int((self.response <= 0).sum()), self.switching(self.doses)
        if np.isnan(on):
            return ""
        at = f", at a scale of {median:.2f} in the middle" if on else ""
        return f"{on * silent:.0f} of {silent} silent pictures switch on{at}"

    def switching(self, doses: Array) -> tuple[float, float]:
        """Return the share of the silent pictures that switch on, and at which scale: the median.

        Both are NaN where units are to excite, or no picture is silent (r ≤ 0).

        Args:
            doses: r at each of `SCALES`, [D, N].
        """
        silent = self.response <= 0
        if self.kind != "inhibitors" or not silent.any():
            return float("nan"), float("nan")
        scale = switching_scale(SCALES[:3], doses[:3, silent])
        on = np.isfinite(scale)
        return float(on.mean()), float(np.median(scale[on])) if on.any() else float("nan")

    def _switch(self, doses: Array) -> str:
        return _number(self.switching(doses)[1])


def _told(change: Change) -> dict[str, str]:
    values = {"real": change.mean, "low": change.low, "high": change.high}
    return {name: _number(value) for name, value in (values | {"flipped": change.flipped}).items()}


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.4g}"
