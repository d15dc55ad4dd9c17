"""The pictures tell the truth, by a judge that had no part in making them."""

import pytest

from tests.tools.verdicts import judge_inversions, judge_tense


@pytest.mark.parametrize(("layer", "named"), [("layer4", 0.85), ("layer3", 0.75)])
def test_inversions_show_the_shape_and_its_veto(layer: str, named: float) -> None:
    plus, minus = judge_inversions(layer, sources=64).values()
    assert plus.moved >= 0.95
    assert minus.moved >= 0.95
    assert plus.named >= named
    assert minus.named >= named


@pytest.mark.parametrize("layer", ["layer4", "layer3"])
def test_maximally_tense_images_are_tense_and_show_both_shapes(layer: str) -> None:
    verdict = judge_tense(layer, seeds=4)
    assert (verdict.tension >= verdict.natural).all()
    assert verdict.balance.min() >= 0.8
    assert verdict.both_found >= 0.8
