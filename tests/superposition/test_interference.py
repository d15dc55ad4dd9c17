"""The interference index: by hand, against scipy, what must not change it, and on XOR toys."""

import pytest
import torch
from scipy.optimize import nnls
from torch import Tensor

from benchmarks.superposition import scores, train_best
from mti_lightning.errors import InputError
from mti_lightning.superposition.interference import (
    FeatureProfiles,
    explained,
    interference_index,
    profile_features,
    residual,
    share_against_rival,
    strength,
)
from mti_lightning.superposition.toys import ExclusiveOr

ALL = torch.tensor([True, True, True])


def orthogonal() -> FeatureProfiles:
    """Three features along the axes; the first has a second way to be expressed."""
    patterns = torch.zeros(3, 2, 4)
    patterns[0, 0, 0], patterns[0, 1, 3], patterns[1, 0, 1], patterns[2, 0, 2] = 2, 3, 1, 5
    return FeatureProfiles(torch.full((4,), 10.0), patterns.sum(1), patterns, ALL)


def drawn(pictures: int = 200, features: int = 5, channels: int = 12) -> tuple[Tensor, ...]:
    """Draw activations, attributions of a linear head, and responses."""
    activations = torch.randn(pictures, channels).relu()
    head = torch.randn(features, channels)
    head = head - head.mean(1, keepdim=True)  # about as many responses above 0 as below
    attributions = (activations - activations.mean(0))[:, None] * head
    return activations, attributions, activations @ head.T


def test_by_hand() -> None:
    features = orthogonal()
    vectors = torch.tensor([[2.0, 0, 0, 0], [0, 1, 0, 0], [2, 1, 0, 0], [0, 0, 0, 3]])
    activations = features.mean + vectors
    attributions = vectors[:, None] * torch.tensor([1.0, 1, -1])[:, None]  # [4, 3, 4]
    power = strength(attributions, features)
    assert power[:, 0].tolist() == [pytest.approx(x) for x in (4 / 13, 0, 4 / 13, 9 / 13)]
    assert power[:, 1].tolist() == [0, 1, 1, 0]
    assert not power[:, 2].any()  # it is only inhibited
    torch.testing.assert_close(
        explained(activations, features),
        torch.tensor([[2.0, 0, 0], [0, 1, 0], [2, 1, 0], [3, 0, 0]]),
    )
    left = residual(activations, features)
    torch.testing.assert_close(left[:2], torch.tensor([[0.0, 1, 1], [1, 0, 1]]))
    torch.testing.assert_close(left[2] ** 2, torch.tensor([1 / 5, 4 / 5, 1]))
    index = interference_index(activations, attributions, features)
    torch.testing.assert_close(
        index[[0, 1, 3]], torch.tensor([[0.0, 1, 1], [1, 0, 1], [0, 1, 1]]), atol=1e-5, rtol=0
    )
    own = torch.tensor([(4 / 13) / (17 / 13), 2 / 3, 2 / 3])  # in each of the three ways
    assert float(index[2, 0]) == pytest.approx(1 - float(own.mean()), abs=1e-5)
    other = torch.tensor([1 - 4 / 17, 1 / 3, 1 / 3])
    assert float(index[2, 1]) == pytest.approx(1 - float(other.mean()), abs=1e-5)


def test_share_against_a_rival() -> None:
    values = torch.tensor([[3.0, 1, 0], [2, 2, 2], [0, 0, 0], [-1, 4, 100]])
    expected = torch.tensor(
        [[0.75, 0.25, 0], [0.5, 0.5, 0.5], [0, 0, 0], [0, 0.04 / 1.04, 100 / 104]]
    )
    torch.testing.assert_close(share_against_rival(values, ALL), expected)
    silent = torch.tensor([True, True, False])  # what is never expressed is no rival
    assert share_against_rival(values[3:], silent).tolist() == [[0, 1, 0]]
    with pytest.raises(InputError, match="one feature has no rivals"):
        share_against_rival(values[:, :1], ALL[:1])


def test_least_squares_against_scipy() -> None:
    activations, attributions, responses = drawn()
    features = profile_features(activations, attributions, responses)
    part = explained(activations, features)
    left = residual(activations, features)
    values = (activations - features.mean).double()
    patterns = features.patterns.double()
    norms = patterns.norm(dim=2).flatten()
    for row, value in enumerate(values):
        amounts, _ = nnls(patterns.flatten(0, 1).T.numpy(), value.numpy())
        wanted = (torch.from_numpy(amounts) * norms).view(5, 2).sum(1)
        torch.testing.assert_close(part[row].double(), wanted, atol=2e-3, rtol=0)
        for feature in range(5):
            _, rest = nnls(patterns[feature].T.numpy(), value.numpy())
            assert float(left[row, feature]) == pytest.approx(rest / float(value.norm()), abs=1e-4)


def test_canonical_is_of_pictures_that_clearly_express() -> None:
    # Each feature is on in 30 pictures, at 1 or, too faint to count, at 0.4; the first in two ways.
    activations = torch.zeros(200, 4)
    activations[:15, 0], activations[15:30, 3] = 1, 1
    activations[30:60, 1], activations[60:90, 1] = 1, 0.4
    activations[90:120, 2] = 1
    head = torch.tensor([[1.0, 0, -1, 1], [-2, 1, 0, 0], [0, 0, -1, 0]])
    mean = activations.mean(0)
    attributions = (activations - mean)[:, None] * head
    features = profile_features(activations, attributions, activations @ head.T)
    assert features.expressed.tolist() == [True, True, False]  # the third is inhibited only
    first = (attributions[:15, 0].clamp(min=0) + attributions[15:30, 0].clamp(min=0)).mean(0) / 2
    torch.testing.assert_close(features.excitation[0], first)
    assert float(features.excitation[0, 2]) == pytest.approx(float(mean[2]))  # what is not there
    ways = {tuple((way + mean).round(decimals=5).tolist()) for way in features.patterns[0]}
    assert ways == {(1, 0, 0, 0), (0, 0, 0, 1)}
    for way in features.patterns[1]:  # two groups of one direction: one of them may be empty
        if way.any():
            torch.testing.assert_close(way + mean, torch.tensor([0.0, 1, 0, 0]))
    index = interference_index(activations, attributions, features)
    assert index[:, 2].isnan().all()
    assert index[:30, 0].max() < 0.2 < 0.8 < index[30:60, 0].min()
    assert index[30:90, 1].max() < 0.2 < 0.8 < index[:30, 1].min()


def test_what_must_not_change_it() -> None:
    activations, attributions, responses = drawn()
    index = interference_index(
        activations, attributions, profile_features(activations, attributions, responses)
    )
    assert index.isfinite().all()
    assert 0 <= index.min() < 0.3 < 0.7 < index.max() <= 1
    close = {"atol": 2e-3, "rtol": 0}
    # The response's and the activations' unit, the order of the features, and the neighbours.
    scale = torch.tensor([1.0, 5, 0.5, 2, 0.3])
    scaled = attributions * scale[:, None]
    features = profile_features(activations * 3, scaled, responses * scale)
    torch.testing.assert_close(
        interference_index(activations * 3, scaled, features), index, **close
    )
    order = torch.tensor([3, 1, 4, 0, 2])
    features = profile_features(activations, attributions[:, order], responses[:, order])
    found = interference_index(activations, attributions[:, order], features)
    torch.testing.assert_close(found, index[:, order], **close)
    features = profile_features(activations, attributions, responses)
    alone = [
        interference_index(activations[i : i + 1], attributions[i : i + 1], features)
        for i in range(5)
    ]
    torch.testing.assert_close(torch.cat(alone), index[:5], atol=1e-5, rtol=0)


def test_a_silent_picture_and_a_silent_network() -> None:
    activations, attributions, responses = drawn()
    features = profile_features(activations, attributions, responses)
    rest = interference_index(features.mean[None], torch.zeros(1, 5, 12), features)
    assert rest.isfinite().all()
    never = profile_features(activations, attributions, -responses.abs() - 1)
    assert not never.expressed.any()
    assert interference_index(activations, attributions, never).isnan().all()


def test_what_is_refused() -> None:
    activations, attributions, responses = drawn()
    features = profile_features(activations, attributions, responses)
    with pytest.raises(InputError, match=r"give \[N, C\] and \[N, F, C\], pooled over space"):
        interference_index(activations[:, :, None, None], attributions, features)
    with pytest.raises(InputError, match="give the same features and layer"):
        interference_index(activations, attributions[:, :3], features)
    with pytest.raises(InputError, match=r"responses \[200, 4\] .* give \[200, 5\]"):
        profile_features(activations, attributions, responses[:, :4])


@pytest.mark.slow
def test_toys_with_fewer_units_than_needed() -> None:
    toy, networks = train_best(ExclusiveOr, 5, 6, 0.05, groups=2, seed=7)
    for network in networks:
        found = scores(toy, network, 10_000, seed=7)
        assert found["index"] > 0.85
        assert found["index"] > found["tension"] + 0.2
        assert found["index"] > max(found["response"], found["cosine"], found["tension_centred"])
