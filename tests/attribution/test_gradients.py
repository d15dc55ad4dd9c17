"""Gradients of many features, against autograd one by one; centring, against plain arithmetic."""

import pytest
import torch

from mti_lightning.attribution.gradients import centre, gradients
from mti_lightning.backbone import ActivationLayout


@pytest.mark.parametrize("at_once", [1, 2, 3, 5, 99])
def test_features_at_once_equal_one_by_one(at_once: int) -> None:
    generator = torch.Generator().manual_seed(0)
    activations = torch.randn(4, 3, 2, 2, generator=generator).requires_grad_()
    weights = torch.randn(12, 5, generator=generator)
    responses = (activations.flatten(1) @ weights).tanh()  # [N, F]
    found = torch.full((5, *activations.shape), torch.nan)
    for features, gradient in gradients(responses, activations, at_once):
        assert len(gradient) <= at_once
        found[features] = gradient
    for feature in range(5):
        for picture in range(4):
            (wanted,) = torch.autograd.grad(
                responses[picture, feature], activations, retain_graph=True
            )
            torch.testing.assert_close(found[feature, picture], wanted[picture])


@pytest.mark.parametrize(
    ("shape", "channel_dim"), [((3, 4, 5), 1), ((4, 5, 3), -1), ((7, 3), -1), ((3,), -1)]
)
def test_centring_subtracts_each_channel_s_mean(shape: tuple[int, ...], channel_dim: int) -> None:
    values, mean = torch.randn(2, *shape), torch.tensor([1.0, -2.0, 0.5])
    found = centre(values, mean, ActivationLayout(shape, channel_dim, None))
    for channel in range(3):
        own, before = (x.movedim(channel_dim, 0)[channel] for x in (found, values))
        torch.testing.assert_close(own, before - mean[channel])
