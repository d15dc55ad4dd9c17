"""SmoothGrad keeps its word, and without noise it is act×grad."""

import pytest
import torch
from mti_smoothgrad import SmoothGrad

from mti_lightning import ActGrad, Backbone, BoundFeature, Feature, InputError, Layer, attribute
from mti_lightning.testing import check_attribution


def test_it_keeps_its_word() -> None:
    check_attribution(SmoothGrad())


def test_without_noise_it_is_act_times_grad() -> None:
    backbone = Backbone("test_vit", "random")
    pictures = torch.rand(2, 3, 160, 160)
    bound_features = [BoundFeature(Feature("head", 3), backbone)] * 2
    expected, still, noisy = (
        attribute(backbone, pictures, bound_features, Layer("blocks.1"), method)[1]
        for method in (ActGrad(), SmoothGrad(noise=0), SmoothGrad(noise=0.5))
    )
    torch.testing.assert_close(still, expected, rtol=1e-4, atol=1e-6)
    assert (noisy - expected).norm() > 0.01 * expected.norm()


def test_no_samples_are_refused() -> None:
    with pytest.raises(InputError, match="samples 0: give 1 or more"):
        SmoothGrad(samples=0)
