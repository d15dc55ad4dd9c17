"""The vetoed shapes as source pictures."""

import pytest
import torch

from mti_lightning.backbone import Preprocessing
from mti_lightning.data.shapes import VetoedShapesPictures
from mti_lightning.errors import InputError
from mti_lightning.vetoed_shapes.world import VetoedShapes


def test_world_passes_through_with_its_truth():
    data = VetoedShapesPictures(4, seed=3, contents="tense")
    data.use(Preprocessing((96, 96), 1.0, "center", "bilinear"))
    world = VetoedShapes(4, 3, "test", "tense")
    for index, read in enumerate(data.samples()):
        sample, expected = data.pictures[index], world[index]
        assert sample["key"] == read["key"] == data.pictures.keys[index] == expected["key"]
        torch.testing.assert_close(read["picture"], expected["picture"], atol=0, rtol=0)
        for name in ("picture", "present", "label", "tense"):
            torch.testing.assert_close(sample[name], expected[name], atol=0, rtol=0)


def test_world_is_resized_whole():
    data = VetoedShapesPictures(2)
    data.use(Preprocessing((48, 192), 0.5, "center", "bicubic"))
    (first, second) = data.samples()
    assert first["picture"].shape == second["picture"].shape == (3, 48, 192)
    original = VetoedShapes(2, contents="tense")[0]["picture"]
    # Averaged down to a common size both say the same, border to border: nothing was cropped.
    reduced = torch.nn.functional.adaptive_avg_pool2d(first["picture"], 12)
    expected = torch.nn.functional.adaptive_avg_pool2d(original, 12)
    assert (reduced - expected).abs().max() < 0.05


def test_world_that_cannot_be():
    with pytest.raises(InputError, match="a world of 0 pictures"):
        VetoedShapesPictures(0)
    with pytest.raises(InputError, match="contents 'calm' is none of random, tense, overlap"):
        VetoedShapesPictures(contents="calm")
