"""Rankings, tests and doses of units where the truth is known by construction."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from mti_lightning import InputError
from mti_lightning.inhibitors.causal import (
    bootstrap,
    chance_of,
    describe_change,
    holm,
    switching_scale,
)
from mti_lightning.inhibitors.ranking import rank_units


def test_units_are_ranked_over_batches_as_over_all_at_once() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(rng.normal(0, 1, 30), 1, (50, 30)).astype(np.float32)
    values[:, 4] = 0
    half = rng.integers(0, 2, 50)
    found = rank_units((values[rows], half[rows]) for rows in np.split(np.arange(50), [7, 20]))
    assert found.pictures == 50
    np.testing.assert_allclose(found.mean, values.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.spread, values.std(0, ddof=1), atol=1e-5)
    np.testing.assert_allclose(found.inhibits, (values < 0).mean(0))
    halves = (values[half == place].mean(0) for place in (0, 1))
    assert found.stability == pytest.approx(spearmanr(*halves).statistic)
    lowest = np.argsort(values.mean(0))
    assert found.top(5, -1).tolist() == lowest[:5].tolist()
    assert found.top(5, 1).tolist() == lowest[::-1][:5].tolist()
    assert len(found.top(30, -1)) == np.count_nonzero(values.mean(0) < 0)  # of its sign alone
    assert 4 not in found.others(lowest[:5])
    with pytest.raises(InputError, match="2 pictures are too few"):
        rank_units([(values[:2], np.array([0, 1]))])


def test_holm_by_hand() -> None:
    corrected = holm(np.array([0.03, 0.01, 0.04, 0.5]))
    np.testing.assert_allclose(corrected, [0.09, 0.04, 0.09, 0.5])


def test_a_bootstrap_covers_the_mean() -> None:
    rng = np.random.default_rng(1)
    samples = (bootstrap(rng.normal(1, 2, 60)) for _ in range(100))
    assert 88 <= sum(low <= 1 <= high for low, high in samples) <= 100


def test_units_that_do_more_than_random_ones_are_confirmed() -> None:
    rng = np.random.default_rng(2)
    controls = rng.normal(rng.normal(0, 0.1, (100, 1)), 0.3, (100, 40))
    changes = np.stack([rng.normal(1, 0.3, 60), rng.normal(0, 0.3, 60), rng.normal(-1, 0.3, 60)])
    chances = chance_of(changes, controls)
    assert chances[0] < 0.05 < chances[1:].min()
    np.testing.assert_allclose(chance_of(-changes, -controls, -1), chances)
    few = chance_of(changes, controls[:10])  # beside which nothing stands out
    assert few.min() > 0.05


@pytest.mark.parametrize("heavy", [False, True])
def test_units_named_by_permuted_contributions_are_not_confirmed(heavy: bool) -> None:
    rng = np.random.default_rng(3)
    called = []
    for _ in range(200):  # every unit does something, so that a test against 0 would call half
        effect = rng.standard_t(2, 168) if heavy else rng.normal(0, 1, 168)
        changes = rng.normal(effect[:, None], 0.5, (168, 40))
        called.append((chance_of(changes[:8], changes[8:]) <= 0.05).mean())
    assert np.mean(called) <= 0.05


def test_a_dose_switches_a_feature_on() -> None:
    scales = [0.0, 0.5, 1.0, 2.0]
    responses = np.array([[3.0, 1.0, -1.0], [1.0, -1.0, -1.0], [-1.0, -2.0, -1.0], [-5, -3, 1]])
    np.testing.assert_allclose(switching_scale(scales, responses), [0.75, 0.25, 1.5])
    assert np.isnan(switching_scale(scales[:3], responses[:3, 2:])).all()


def test_changes_are_described_by_what_flips() -> None:
    intact = np.array([-1.0, -1.0, -1.0, 2.0])
    found = describe_change(intact, intact + np.array([2.0, 0.5, 2.0, 1.0]))
    assert found.mean == pytest.approx(1.375)
    assert found.low < found.mean < found.high
    assert found.flipped == pytest.approx(2 / 3)
    assert describe_change(intact, intact - 3, -1).flipped == 1
    assert np.isnan(describe_change(intact[3:], intact[3:]).flipped)
