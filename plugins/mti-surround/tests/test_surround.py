"""Surrounds keep the patch, and do to the response what they are for."""

import torch
from mti_surround import PatchAndSurround, SuppressiveSurround

from mti_lightning import Backbone, VetoedShapesPictures, render
from mti_lightning.testing import check_objective

WORLD = "vetoed_shapes_resnet"


def test_it_keeps_its_word() -> None:
    check_objective(SuppressiveSurround)


def test_the_patch_stays_and_the_rest_is_noise() -> None:
    image, source = PatchAndSurround(0.3), torch.rand(2, 3, 64, 48)
    trained, fixed = image.start([1, 2], (64, 48), source)
    picture = image.decode({**trained, **fixed}, (64, 48))
    torch.testing.assert_close(picture[..., 32, 24], source[..., 32, 24], atol=1e-3, rtol=0)
    assert (picture[..., 0, 0] - source[..., 0, 0]).abs().max() > 0.01
    box = (10, 6, 40, 30)
    part = image.decode({**trained, **fixed}, (64, 48), box)
    torch.testing.assert_close(part, picture[..., 10:50, 6:36], atol=1e-4, rtol=0)


def test_a_surround_lowers_or_raises_the_response() -> None:
    found = {}
    for raises in (False, True):
        objective = SuppressiveSurround(
            *(Backbone(WORLD), ["fc:0"], "layer3"), raises=raises, steps_per_epoch=10
        )
        (made,) = render(
            objective, VetoedShapesPictures(1), 1, enable_progress_bar=False, accelerator="cpu"
        )
        assert made.entry.objective == "surround"
        found[raises] = made.measures["response"]
    assert found[False] < found[True] - 1
