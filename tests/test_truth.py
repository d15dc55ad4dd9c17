"""The pictures tell the truth, by a judge that had no part in making them; so do the rankings."""

from pathlib import Path

import pytest

from mti_lightning import FourierPhase
from mti_lightning.vetoed_shapes.shapes import KINDS
from tests.tools.verdicts import judge_atlas, judge_inversions, judge_tense, rank_tense

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("layer", "plus_named", "minus_named"),
    [
        ("layer4", 0.85, 0.85),
        # Act × grad had 0.75 here. On a real network it is noise before the last stage, and the
        # default was chosen there (docs/evidence.md): 0.72 and 0.71 of 192 pictures.
        ("layer3", 0.65, 0.65),
    ],
)
def test_inversions_show_the_shape_and_its_veto(
    layer: str, plus_named: float, minus_named: float
) -> None:
    # The default image parameters were chosen on a real network (docs/evidence.md).
    plus, minus = judge_inversions(layer, sources=128, image=FourierPhase()).values()
    assert plus.moved >= 0.95
    assert minus.moved >= 0.95
    assert plus.named >= plus_named
    assert minus.named >= minus_named


def test_maximally_tense_images_are_tense_and_balanced() -> None:
    verdict = judge_tense("layer4")
    assert verdict.both_found >= 0.8
    assert (verdict.tension >= verdict.natural).all()
    assert verdict.balance.min() >= 0.8


def test_an_atlas_shows_the_shape_and_its_veto_where_pictures_are_tense(tmp_path: Path) -> None:
    """In the issue's words the judge finds a shape: it says that the shape is there."""
    verdicts = [judge_atlas(kind, tmp_path / f"{kind}.zarr") for kind in range(len(KINDS))]
    for sign in ("+", "-"):
        faces = [verdict[sign] for verdict in verdicts]
        cells = sum(face.cells for face in faces)
        assert cells >= 3 * len(KINDS)
        assert sum(face.found for face in faces) >= 0.8 * cells


@pytest.mark.parametrize(("layer", "least"), [("layer4", 0.98), ("layer3", 0.95)])
def test_sweeps_rank_the_truly_tense_pictures_first(
    layer: str, least: float, tmp_path: Path
) -> None:
    ranked = rank_tense(layer, tmp_path / "sweep.zarr")
    assert ranked["tension"] >= least
    assert ranked["tension"] > ranked["tension_l2"] + 0.05
