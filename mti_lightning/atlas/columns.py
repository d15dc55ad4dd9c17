"""The numbers that a map can be coloured by: which there are, and in what colours."""

from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np

from mti_lightning.attribution.measures import MEANING
from mti_lightning.sweep.measures import Array

ALWAYS: Final = ("response", "excitation", "inhibition", "tension")  # of every sweep
# By name what each means; a map has those of them that its sweep has measured.
COLUMNS: Final = {name: MEANING[name] for name in (*ALWAYS, "interference")}
COLUMNS["response"] += " Zero is grey."
# Of the commonest kinds: Okabe and Ito's, which people with colour-blindness can tell apart.
KINDS: Final = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#f0e442")
OTHER: Final = "#bdbdbd"  # of the rarer ones


def scale(name: str, values: Array) -> tuple[str, float, float]:
    """Return how a column is coloured: Matplotlib's colour map, and the numbers at its two ends.

    A hundredth of the pictures may lie beyond an end. The colours can be told apart by people with
    colour-blindness; a response's are grey at zero, and on white all of them are seen.
    """
    finite = values[np.isfinite(values)]
    if name == "response":
        end = float(np.quantile(np.abs(finite), 0.99)) if finite.size else 0
        return "coolwarm", -(end or 1), end or 1
    low, high = np.quantile(finite, [0.01, 0.99]).tolist() if finite.size else (0.0, 1.0)
    return "viridis_r", low, high if high > low else low + 1


def ranked(kinds: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return the kinds there are, the commonest first, and for each item its place among them."""
    counts = Counter(map(str, kinds))
    found = sorted(counts, key=lambda text: (-counts[text], text))
    places = {text: place for place, text in enumerate(found)}
    return found, [places[str(kind)] for kind in kinds]


def commonest(places: Sequence[int]) -> list[tuple[int, int]]:
    """Return the three kinds that most of some items are, and how many are of each."""
    return sorted(Counter(places).items(), key=lambda item: (-item[1], item[0]))[:3]
