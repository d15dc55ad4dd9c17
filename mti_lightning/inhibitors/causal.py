"""What silencing units does: beside what was predicted, beside random units, and by the dose."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import numpy as np
from scipy.stats import false_discovery_control, ttest_1samp

from mti_lightning.sweep.measures import Array

CHANCE: Final = 0.05  # at most, of what is confirmed
_RESAMPLED: Final = 2000  # of a bootstrap


@final
@dataclass(frozen=True)
class Change:
    """How the response changed over pictures.

    Attributes:
        mean: Its mean.
        low: The lower end of its 95% confidence interval.
        high: The upper end.
        flipped: Of the pictures that were silent (r ≤ 0) the share that got r > 0; where the change
            is meant to be downward, of those with r > 0 the share that got r ≤ 0.
    """

    mean: float
    low: float
    high: float
    flipped: float


def describe_change(intact: Array, changed: Array, way: int = 1, seed: int = 0) -> Change:
    """Describe how responses change.

    Args:
        intact: r, [N].
        changed: The same after an intervention, [N], or [G, N] of several, whose mean is taken.
        way: 1 where it is meant to rise, −1 where to fall.
        seed: Of the bootstrap over pictures.
    """
    changed = np.atleast_2d(changed)
    change = (changed - intact).mean(0)
    low, high = bootstrap(change, seed)
    before = intact <= 0 if way > 0 else intact > 0
    after = changed > 0 if way > 0 else changed <= 0
    flipped = float(after[:, before].mean()) if before.any() else float("nan")
    return Change(float(change.mean()), low, high, flipped)


def bootstrap(values: Array, seed: int = 0) -> tuple[float, float]:
    """Return the 95% confidence interval of a mean over pictures, [N], by resampling them."""
    rows = np.random.default_rng(seed).integers(0, len(values), (_RESAMPLED, len(values)))
    low, high = np.quantile(values[rows].mean(1), [0.025, 0.975])
    return float(low), float(high)


def chance_of(changes: Array, controls: Array, way: int = 1) -> Array:
    """Return for each unit how likely its change is by chance, [K], corrected for their number.

    It is the larger of two, each of a one-sided test. Paired over pictures (Student's t): that
    silencing the unit does not change the response, corrected by Holm. Over units, by rank: that
    it was drawn at random and does no more than others do; corrected by Benjamini and Hochberg, so
    that of the units called at a level no more than that share are expected to be such.

    Args:
        changes: What silencing each unit changes in each picture, [K, N].
        controls: The same of random active units in the first of the pictures, [R, N'].
        way: 1 where it is meant to rise, −1 where to fall.
    """
    changes, random = way * changes, way * controls
    with np.errstate(invalid="ignore", divide="ignore"):
        paired = ttest_1samp(changes, 0, axis=1, alternative="greater").pvalue
    steady = np.ptp(changes, axis=1) == 0  # no spread to test with
    paired = np.where(steady, np.where(changes.mean(1) > 0, 0.0, 1.0), paired)
    own = changes[:, : random.shape[1]].mean(1)
    among = (1 + (random.mean(1) >= own[:, None]).sum(1)) / (1 + len(random))
    corrected: Array = np.maximum(holm(paired), false_discovery_control(among))
    return corrected


def holm(chances: Array) -> Array:
    """Correct the p-values of several tests, [K], by Holm's step-down method."""
    order, count = np.argsort(chances, kind="stable"), len(chances)
    stepped = np.maximum.accumulate(chances[order] * (count - np.arange(count)))
    corrected = np.empty(count)
    corrected[order] = stepped.clip(max=1)
    return corrected


def switching_scale(scales: Sequence[float], responses: Array) -> Array:
    """Return at which scale of its units a feature switches on in each picture, [N].

    That is where r passes 0, in a straight line between two scales, the one next to 1; NaN where
    it does not.

    Args:
        scales: In ascending order, [D].
        responses: r at each, [D, N].
    """
    found = np.full(responses.shape[1], np.nan)
    for low, high, first, second in zip(
        scales[:-1], scales[1:], responses[:-1], responses[1:], strict=True
    ):
        crosses = (first > 0) != (second > 0)
        share = first / np.where(crosses, first - second, 1)
        at = low + share * (high - low)
        nearer = np.isnan(found) | (abs(at - 1) < abs(found - 1))
        found = np.where(crosses & nearer, at, found)
    return found
