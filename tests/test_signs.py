"""Signs and tension, against numpy and the identities of the method."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from mti_lightning import signs
from mti_lightning.signs import Tension

LAYOUTS = [((3, 5, 4, 6), 1), ((3, 4, 6, 5), -1), ((3, 7, 5), -1), ((3, 5), -1)]


def attribution(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@given(arrays(np.float64, (2, 3, 2, 2), elements=st.floats(-1e3, 1e3)))
def test_targets_and_sums_add_up(values: np.ndarray) -> None:
    a = torch.from_numpy(values)
    plus, minus = signs.split_target(a, "+", coherent=False), signs.split_target(a, "-", coherent=False)
    assert torch.equal(plus - minus, a)
    assert (plus >= 0).all()
    assert not (plus * minus).any()
    torch.testing.assert_close(signs.excitation(a) - signs.inhibition(a), a.flatten(1).sum(1))


@pytest.mark.parametrize("summed", ["nothing", "channels", "positions"])
@pytest.mark.parametrize("measure", ["geometric", "minimum", "harmonic", "l2"])
@pytest.mark.parametrize(("shape", "channel_dim"), LAYOUTS)
def test_tension_equals_numpy(measure: str, summed: str, shape: tuple[int, ...], channel_dim: int) -> None:
    a = attribution(shape)
    got = Tension(measure, summed)(a, channel_dim)
    for image, number in zip(a.numpy(), got.numpy(), strict=True):
        flat = np.moveaxis(image, channel_dim - (channel_dim > 0), 0).reshape(5, -1)  # channels, positions
        if measure == "l2":
            expected = np.sqrt((flat**2).sum(0)).sum()
        else:
            axis = {"channels": 0, "positions": 1}.get(summed) if len(shape) > 2 else None
            terms = flat if axis is None else flat.sum(axis)
            plus, minus = terms[terms > 0].sum(), -terms[terms < 0].sum()
            expected = {
                "geometric": np.sqrt(plus * minus),
                "minimum": min(plus, minus),
                "harmonic": plus * minus / (plus + minus),
            }[measure]
        assert number == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("measure", ["geometric", "minimum", "harmonic"])
def test_tension_needs_both_signs_and_does_not_know_which_is_which(measure: str) -> None:
    a = attribution((2, 5, 4, 6))
    tension = Tension(measure)
    torch.testing.assert_close(tension(-a), tension(a))
    torch.testing.assert_close(tension(a.flip(2).roll(1, 3)), tension(a))
    assert tension(a.abs()).max() < 1e-9
    assert Tension("l2")(a.abs()).min() > 1  # the authors' criterion is large all the same


def test_the_slope_of_the_tension_is_finite_at_zero() -> None:
    a = torch.zeros(1, 3, 2, 2, requires_grad=True)
    Tension()(a).sum().backward()
    assert a.grad is not None
    assert a.grad.isfinite().all()


def test_balance_is_one_where_both_cancel_and_zero_where_one_or_both_are_absent() -> None:
    got = signs.balance(torch.tensor([2.0, 4.0, 3.0, 0.0]), torch.tensor([2.0, 1.0, 0.0, 0.0]))
    assert got.tolist() == [1, 0.25, 0, 0]


@pytest.mark.parametrize(("shape", "channel_dim"), LAYOUTS[:3])
def test_coherent_targets_share_no_position(shape: tuple[int, ...], channel_dim: int) -> None:
    a = attribution(shape)
    plus, minus = (signs.split_target(a, sign, True, channel_dim).sum(channel_dim) for sign in "+-")
    assert plus.any()
    assert minus.any()
    assert not (plus * minus).any()
    total = a.sum(channel_dim)
    assert torch.equal(plus > 0, (total > 0) & ((a > 0).any(channel_dim)))


def test_the_window_is_each_pictures_own() -> None:
    a = attribution((2, 5, 4, 6))
    a[1] *= 1e-6
    a[:, :, :2] *= 1e-3
    together = signs.window(a)
    assert torch.equal(together, torch.cat([signs.window(a[:1]), signs.window(a[1:])]))
    assert torch.equal(together[:, 0].sum((1, 2)), torch.tensor([12.0, 12.0], dtype=a.dtype))
    assert torch.equal(signs.window(a.movedim(1, -1), channel_dim=-1).movedim(-1, 1), together)


def test_cosine_of_silence_is_zero_with_a_finite_slope() -> None:
    silent = torch.zeros(1, 3, 2, requires_grad=True)
    value = signs.cosine(silent, torch.ones(1, 3, 2))
    value.sum().backward()
    assert value.item() == 0
    assert silent.grad is not None
    assert silent.grad.isfinite().all()
    a, b = attribution((3, 5, 4)), attribution((3, 5, 4)).flip(1)
    expected = torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1))
    torch.testing.assert_close(signs.cosine(a, b), expected)
