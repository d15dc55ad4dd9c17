"""The measures' names: whatever reports one finds its meaning in one place."""

import pytest

from mti_lightning.atlas.columns import COLUMNS as OF_MAPS
from mti_lightning.attribution.measures import MEANING
from mti_lightning.objectives.metrics import MEASURES as OF_RESULTS
from mti_lightning.sweep.measures import MEASURES as OF_SWEEPS


@pytest.mark.parametrize("names", [OF_RESULTS, OF_SWEEPS, OF_MAPS], ids=["run", "sweep", "map"])
def test_every_measure_has_a_meaning(names: object) -> None:
    assert {*names} <= MEANING.keys()


def test_no_meaning_is_of_a_measure_that_nothing_reports() -> None:
    assert MEANING.keys() == {*OF_RESULTS, *OF_SWEEPS}
