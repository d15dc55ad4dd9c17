"""Shapes cover what they should, and look different."""

import numpy as np
import pytest

from mti_lightning.vetoed_shapes.shapes import KINDS, Shape


@pytest.mark.parametrize("kind", range(8), ids=KINDS)
def test_coverage_is_of_a_turned_and_scaled_shape(kind: int) -> None:
    placed = Shape(kind, 47.5, 47.5, 16.0, 0.0, (1, 1, 1)).coverage()
    assert 0.15 < placed.sum() / (np.pi * 16**2) < 0.9
    rows, columns = np.mgrid[:96, :96] - 47.5
    assert placed[np.hypot(rows, columns) > 1.15 * 16].max() == 0
    turned = Shape(kind, 47.5, 47.5, 16.0, np.pi / 2, (1, 1, 1)).coverage()
    assert any(np.abs(np.rot90(placed, turns) - turned).max() < 1e-6 for turns in (1, 3))
    moved = Shape(kind, 40.5, 52.5, 16.0, 0.0, (1, 1, 1)).coverage()
    np.testing.assert_allclose(np.roll(placed, (-7, 5), (0, 1)), moved, atol=1e-9)
    larger = Shape(kind, 47.5, 47.5, 32.0, 0.0, (1, 1, 1)).coverage()
    assert larger.sum() / placed.sum() == pytest.approx(4, rel=0.03)


def test_no_two_kinds_look_alike() -> None:
    drawn = [Shape(kind, 47.5, 47.5, 16.0, 0.0, (1, 1, 1)).coverage() > 0.5 for kind in range(8)]
    for kind, one in enumerate(drawn):
        for other in drawn[:kind]:
            assert (one ^ other).sum() > 0.15 * (one | other).sum()
