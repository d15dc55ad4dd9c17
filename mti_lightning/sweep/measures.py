"""The measures of a sweep: those it holds, those that follow, and the top pictures by them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast, final

import numpy as np
import torch
from numpy.typing import NDArray

from mti_lightning.attribution import tension
from mti_lightning.attribution.signs import balance
from mti_lightning.errors import InputError

Array = NDArray[Any]
# What is measured, a column of numbers on the disk each; what they mean is in attribution.measures.
COLUMNS: Final = (
    "response",
    "excitation",
    "inhibition",
    "tension",
    "tension_centred",
    "tension_l2",
    "interference",
)
# Of composites, from what their parts do: by intervention, not by attribution.
TRUTH: Final = ("true_excitation", "true_inhibition", "true_tension")
OF_PARTS: Final = ("effect", "part_attribution")  # of each part
# A summed over positions, of each unit: a channel of the attribution layer.
OF_UNITS: Final = "contribution"
MEASURES: Final = (*COLUMNS, "balance", "minimum", "harmonic")  # the last follow from E⁺ and E⁻


def columns_of(parts: int) -> tuple[str, ...]:
    """Return what is measured of pictures of so many known parts, a number for each feature."""
    return (*COLUMNS, *TRUTH) if parts else COLUMNS


@dataclass(frozen=True)
class Measured:
    """An array of what is measured of each picture and feature.

    Attributes:
        shape: Of one picture: features, and parts or units of each.
        dimensions: What they are called.
    """

    shape: tuple[int, ...]
    dimensions: tuple[str, ...]


def arrays_of(features: int, parts: int, units: int) -> dict[str, Measured]:
    """Return all arrays of a sweep's measurements.

    Args:
        features: How many there are.
        parts: Of how many known parts a picture is put together; 0 where none are known.
        units: Of how many units contributions are kept; 0 where they are not.
    """
    column = Measured((features,), ("feature",))
    found = dict.fromkeys(columns_of(parts), column)
    if parts:
        of_parts = Measured((features, parts), ("feature", "part"))
        found |= dict.fromkeys(OF_PARTS, of_parts)
    if units:
        found[OF_UNITS] = Measured((features, units), ("feature", "unit"))
    return found


def check_measure(measure: str) -> tuple[str, bool]:
    """Return a measure's name and whether its low end is meant, which a leading `-` says.

    Raises:
        InputError: If there is no such measure.
    """
    name = measure.removeprefix("-")
    if name not in (*MEASURES, *TRUTH):
        raise InputError(
            f"there is no measure {measure!r}; there are {', '.join(MEASURES)}, of composites "
            f"{', '.join(TRUTH)}, and each with - before it for its low end"
        )
    return name, measure.startswith("-")


def derive(measure: str, column: Callable[[str], Array]) -> Array:
    """Return a measure, for either end, from what `column` gives for a name of `COLUMNS`."""
    name, _ = check_measure(measure)
    if name in (*COLUMNS, *TRUTH):
        return column(name)
    excited, inhibited = (torch.from_numpy(column(of)) for of in ("excitation", "inhibition"))
    if name == "balance":
        return balance(excited, inhibited).numpy()
    return tension.combine(name, excited, inhibited).numpy()


def select(values: Array, count: int, low: bool = False) -> Array:
    """Return where the `count` highest (lowest) of `values` [P] are, best first.

    Equals go by place, and NaN is never selected.
    """
    ordered = np.argsort(values if low else -values, kind="stable")  # NaN comes last
    return cast("Array", ordered[: min(count, int(np.isfinite(values).sum()))])


@final
class Tops:
    """The top pictures so far: for each of some features, by each of some measures.

    Args:
        features: Columns of the sweep.
        measures: By what pictures are top; `-` before one means its low end.
        count: Pictures per feature and measure.
    """

    def __init__(self, features: Sequence[int], measures: Sequence[str], count: int) -> None:
        self.features, self.measures, self.count = features, measures, count
        none = np.empty(0, np.int64), np.empty(0, np.float32)
        self._best = {(f, m): none for f in features for m in measures}

    def add(self, index: Array, column: Callable[[str], Array]) -> None:
        """Take pictures in, [N]; `column` gives their values for a name of `COLUMNS`, [N, F]."""
        for measure in self.measures:
            _, low = check_measure(measure)
            for feature, found in zip(self.features, derive(measure, column).T, strict=True):
                known, best = self._best[feature, measure]
                places, values = np.append(known, index), np.append(best, found)
                order = np.argsort(places)  # equals go by place
                chosen = order[select(values[order], self.count, low)]
                self._best[feature, measure] = places[chosen], values[chosen]

    def of(self, feature: int) -> set[int]:
        """Return those of a feature."""
        return {i for m in self.measures for i in self._best[feature, m][0].tolist()}
