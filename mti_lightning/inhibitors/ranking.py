"""Units by what they add to a feature over pictures."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, final

import numpy as np
from scipy.stats import spearmanr

from mti_lightning.errors import InputError
from mti_lightning.sweep.measures import Array

_ACTIVE: Final = 0.1  # in what share of the pictures an active unit contributes


@final
@dataclass(frozen=True)
class Ranking:
    """What units contribute to a feature over pictures.

    Attributes:
        pictures: How many there are.
        mean: The mean contribution of each unit, [U].
        spread: Its standard deviation over the pictures, [U].
        inhibits: The share of the pictures in which it is below 0, [U].
        excites: The share in which it is above 0, [U].
        stability: Spearman's correlation, over the units, between the means of two halves of the
            pictures.
    """

    pictures: int
    mean: Array
    spread: Array
    inhibits: Array
    excites: Array
    stability: float

    def top(self, count: int, sign: int) -> Array:
        """Return the units that inhibit most (sign −1), or excite most (1), at most `count`."""
        order = np.argsort(-sign * self.mean, kind="stable")[:count]
        return order[sign * self.mean[order] > 0]

    def others(self, named: Array) -> Array:
        """Return the active units that are not among the named ones."""
        active = np.flatnonzero(self.inhibits + self.excites >= _ACTIVE)
        return np.setdiff1d(active, named)


def rank_units(batches: Iterable[tuple[Array, Array]]) -> Ranking:
    """Measure what units contribute, over pictures that need not fit into the memory together.

    Args:
        batches: Contributions, [P, U], and in which half each picture is, [P] of 0 or 1.

    Raises:
        InputError: If there are fewer than two pictures in a half.
    """
    count, signs = np.zeros(2), [np.zeros(0), np.zeros(0)]
    total, squares = np.zeros(0), np.zeros(0)
    for contribution, half in batches:
        values = contribution.astype(np.float64)
        if not total.size:
            total, squares = np.zeros((2, values.shape[1])), np.zeros(values.shape[1])
            signs = [np.zeros(values.shape[1]) for _ in signs]
        for place in (0, 1):
            total[place] += values[half == place].sum(0)
            count[place] += np.count_nonzero(half == place)
        squares += np.square(values).sum(0)
        signs = [signs[0] + (values < 0).sum(0), signs[1] + (values > 0).sum(0)]
    if count.min() < 2:
        raise InputError(
            f"{int(count.sum())} pictures are too few to rank units by; give 4 or more"
        )
    pictures, mean = count.sum(), total.sum(0) / count.sum()
    variance = (squares / pictures - mean**2).clip(0) * pictures / (pictures - 1)
    first, second = total / count[:, None]
    varies = np.ptp(first) > 0 and np.ptp(second) > 0
    stability = float(spearmanr(first, second).statistic) if varies else float("nan")
    inhibits, excites = (found / pictures for found in signs)
    return Ranking(int(pictures), mean, np.sqrt(variance), inhibits, excites, stability)
