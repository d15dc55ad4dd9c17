"""Signs, against numpy and against what must not change them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mti_lightning import ActivationLayout
from mti_lightning.attribution.signs import (
    at_scale,
    balance,
    cosine,
    excitation,
    inhibition,
    signed_map,
    split_target,
    support_mask,
)
from mti_lightning.attribution.tension import Tension, combine
from tests.attribution.layouts import layout_of

LAYOUTS = {  # shape and channel dimension
    "map": ((5, 6, 4, 3), 1),
    "map, channels last": ((5, 4, 3, 6), -1),
    "tokens": ((5, 7, 6), -1),
    "vector": ((5, 6), 1),
    "vector, channels last": ((5, 6), -1),
}
MEASURES = ["geometric", "minimum", "harmonic", "l2"]
SUMMED = ["nothing", "channels", "positions"]

layouts = pytest.mark.parametrize(("shape", "channel_dim"), LAYOUTS.values(), ids=LAYOUTS)
attributions = hnp.arrays(
    np.float32,
    st.sampled_from([(2, 3, 2, 2), (1, 4, 3), (3, 4)]),
    elements=st.floats(-100, 100, width=32).filter(lambda x: x == 0 or abs(x) > 1e-6),
)


def expected_tension(a: np.ndarray, channel_dim: int, measure: str, summed: str) -> list[float]:
    """Compute each image's tension on its own, in double precision, with loops over its columns."""
    result = []
    for image in a.astype(np.float64):
        columns = np.moveaxis(image, channel_dim - (channel_dim > 0), -1)  # [..., C]
        columns = columns.reshape(-1, columns.shape[-1])  # [positions, C]
        if measure == "l2":
            result.append(sum(np.sqrt((column**2).sum()) for column in columns))
            continue
        vector = image.ndim == 1
        terms = {
            "nothing": columns,
            "channels": columns if vector else columns.sum(1),
            "positions": columns.sum(0),
        }[summed].ravel()
        plus = sum(term for term in terms if term > 0)
        minus = -sum(term for term in terms if term < 0)
        result.append(
            {
                "geometric": np.sqrt(plus * minus),
                "minimum": min(plus, minus),
                "harmonic": plus * minus / (plus + minus),
            }[measure]
        )
    return result


@layouts
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("summed", SUMMED)
def test_tension_against_numpy(
    shape: tuple[int, ...], channel_dim: int, measure: str, summed: str
) -> None:
    a = torch.randn(shape)
    tension, layout = Tension(measure, summed, scale=0, norm=1), layout_of(shape, channel_dim)
    expected = torch.tensor(expected_tension(a.numpy(), channel_dim, measure, summed))
    torch.testing.assert_close(tension(a, layout).double(), expected, rtol=1e-5, atol=1e-6)
    alone = torch.cat([tension(image[None], layout) for image in a])
    torch.testing.assert_close(tension(a, layout), alone, rtol=1e-6, atol=0)


@layouts
def test_reported_signs_are_those_of_the_tension(shape: tuple[int, ...], channel_dim: int) -> None:
    a, layout = torch.randn(shape), layout_of(shape, channel_dim)
    for summed in SUMMED:
        plus, minus = Tension(summed=summed).split(a, layout)
        geometric = Tension("geometric", summed, norm=1)(a, layout)
        torch.testing.assert_close((plus * minus).sqrt(), geometric)
        # Whatever is summed first, both together still are ΣA.
        torch.testing.assert_close(plus - minus, a.flatten(1).sum(1), rtol=1e-5, atol=1e-5)


@given(attributions)
def test_signs_add_up(a: np.ndarray) -> None:
    a = torch.from_numpy(a)
    plus, minus = (split_target(a, sign, False, layout_of(a.shape, 1), 0) for sign in "+-")
    assert torch.equal(plus - minus, a)
    assert plus.min() >= 0
    assert minus.min() >= 0
    assert torch.equal(excitation(a), plus.flatten(1).sum(1))
    assert torch.equal(inhibition(a), minus.flatten(1).sum(1))
    torch.testing.assert_close(
        (excitation(a) - inhibition(a)).double(),
        a.double().flatten(1).sum(1),
        rtol=1e-5,
        atol=1e-5 * float(a.abs().sum()) + 1e-12,
    )


@given(attributions, st.sampled_from(MEASURES), st.sampled_from(SUMMED), st.randoms())
def test_tension_ignores_place_and_flipped_sign(
    a: np.ndarray, measure: str, summed: str, random: object
) -> None:
    a = torch.from_numpy(a)
    tension = Tension(measure, summed, scale=0)
    close = {"rtol": 1e-4, "atol": 1e-5 * float(a.abs().max()) + 1e-12}
    torch.testing.assert_close(tension(-a), tension(a), **close)
    if a.ndim > 2 and summed != "channels":  # there rounding can turn a position's sum about 0
        columns = a.flatten(2)[..., None]  # a map of one column
        order = list(range(columns.shape[2]))
        random.shuffle(order)
        torch.testing.assert_close(tension(columns[:, :, order]), tension(columns), **close)


def test_tension_is_large_only_where_both_signs_are() -> None:
    both, one = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)
    both[0, 0, 0, 0], both[0, 0, 3, 3] = 5, -5
    one[0, 0, 0, 0], one[0, 0, 3, 3] = 9.9, -0.1
    for measure in ("geometric", "minimum", "harmonic"):
        assert Tension(measure)(both) > 2.4 * Tension(measure)(one)
    assert Tension("l2")(both) == Tension("l2")(one)  # what the authors' criterion cannot tell
    # Signs that cancel within a position are no tension of the signed map.
    within = torch.zeros(1, 2, 4, 4)
    within[0, :, 0, 0] = torch.tensor([5.0, -5.0])
    assert Tension("minimum", "channels")(within) == 0
    assert Tension("minimum", "positions")(within) == 5
    assert Tension("minimum", "nothing")(within) == 5


@layouts
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("summed", SUMMED)
def test_tension_of_nothing_has_a_finite_gradient(
    shape: tuple[int, ...], channel_dim: int, measure: str, summed: str
) -> None:
    for a in (torch.zeros(shape), torch.rand(shape), -torch.rand(shape)):  # dead, or of one sign
        a.requires_grad_()
        tension = Tension(measure, summed)(a, layout_of(shape, channel_dim))
        if measure != "l2":
            assert tension.abs().max() <= 1e-12
        tension.sum().backward()
        assert a.grad.isfinite().all()


@pytest.mark.parametrize("norm", [1, 2])
def test_tension_gradient_against_differences(norm: int) -> None:
    a = torch.randn(2, 3, 2, 2, dtype=torch.double, requires_grad=True)
    for measure in MEASURES:
        for summed in SUMMED:
            torch.autograd.gradcheck(Tension(measure, summed, 0.3, norm), (a,))


GRIDS = {
    "map": ActivationLayout((6, 5, 8), 1, (5, 8)),
    "map, channels last": ActivationLayout((5, 8, 6), -1, (5, 8)),
    "tokens": ActivationLayout((40, 6), -1, (5, 8)),
    "tokens behind others": ActivationLayout((43, 6), -1, (5, 8), 3),
}
grids = pytest.mark.parametrize("layout", GRIDS.values(), ids=GRIDS)


@grids
def test_smoothing_against_loops_over_positions(layout: ActivationLayout) -> None:
    prefix, (rows, columns) = layout.prefix_tokens, layout.grid
    signed = torch.randn(2, *layout.shape).sum(layout.channel_dim, keepdim=True)
    flat = signed.flatten(1).double()
    weights = np.zeros((rows * columns, rows * columns))  # to, from
    for y, x, v, u in np.ndindex(rows, columns, rows, columns):
        far = ((y - v) / rows) ** 2 + ((x - u) / columns) ** 2
        weights[y * columns + x, v * columns + u] = np.exp(-far / (2 * 0.2**2))
    weights = torch.from_numpy(weights / weights.sum(0))
    smooth = torch.cat([flat[:, :prefix], flat[:, prefix:] @ weights.T], 1)
    found = at_scale(signed, 0.2, layout)
    assert found.shape == signed.shape
    torch.testing.assert_close(found.flatten(1).double(), smooth, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.sum(), signed.sum())  # nothing is lost at the edge
    torch.testing.assert_close(at_scale(signed, 1e-6, layout), signed)
    assert torch.equal(at_scale(signed, 0, layout), signed)


@grids
@pytest.mark.parametrize("norm", [1, 2])
def test_signs_are_split_at_the_scale_of_things(layout: ActivationLayout, norm: int) -> None:
    a = torch.randn(3, *layout.shape)
    terms = at_scale(signed_map(a, layout.channel_dim), 0.1, layout).flatten(1)
    plus, minus = Tension().split(a, layout)
    torch.testing.assert_close(plus, terms.clamp(min=0).sum(1))
    torch.testing.assert_close(plus - minus, a.flatten(1).sum(1), rtol=1e-4, atol=1e-4)
    assert (plus < Tension(scale=0).split(a, layout)[0]).all()
    strengths = [
        (part.clamp(min=0) ** norm).mean(1) ** (1 / norm) * terms.shape[1]
        for part in (terms, -terms)
    ]
    for measure in ("geometric", "minimum", "harmonic"):
        found = Tension(measure, norm=norm)(a, layout)
        torch.testing.assert_close(found, combine(measure, *strengths))
    plus, minus = (split_target(a, sign, True, layout, 0.1) for sign in "+-")
    there = at_scale(signed_map(a, layout.channel_dim), 0.1, layout)
    assert torch.equal(plus, a.clamp(min=0) * (there > 0))
    assert torch.equal(minus, (-a).clamp(min=0) * (there < 0))


@pytest.mark.parametrize("measure", MEASURES)
def test_a_part_of_the_map_measures_what_the_whole_does(measure: str) -> None:
    layout, box = GRIDS["map"], (1, 2, 3, 4)
    part, whole = torch.randn(2, 6, 3, 4), torch.zeros(2, 6, 5, 8)
    whole[:, :, 1:4, 2:6] = part
    for scale in (0, 0.1):
        tension = Tension(measure, scale=scale)
        torch.testing.assert_close(tension(part, layout, box), tension(whole, layout))
        for one, other in zip(
            tension.split(part, layout, box), tension.split(whole, layout), strict=True
        ):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("side", [3, 28])
def test_what_depends_on_few_positions_keeps_both_signs(side: int) -> None:
    """At the scale of a whole map the nine inputs of a convolution would all have one sign."""
    whole = torch.zeros(1, 1, 28, 28)
    whole[..., :side, :side] = 1
    whole[..., :side, side // 2 :] *= -1.1
    strong = side * (side // 2)
    split = Tension(norm=1).split(whole, layout_of((1, 1, 28, 28), 1))
    assert split[0].item() > 0.7 * strong
    assert (split[0] - split[1]).item() == pytest.approx(whole.sum().item(), abs=1e-3)
    kept = split_target(whole, "+", coherent=True, layout=layout_of((1, 1, 28, 28), 1), scale=0.1)
    assert torch.equal(kept, whole.clamp(min=0))


def test_balance() -> None:
    plus, minus = torch.tensor([2.0, 1.0, 3.0, 0.0, 0.0]), torch.tensor([1.0, 2.0, 3.0, 4.0, 0.0])
    assert balance(plus, minus).tolist() == [0.5, 0.5, 1, 0, 0]


@pytest.mark.parametrize("name", ["map", "map, channels last", "tokens"])
def test_coherent_target(name: str) -> None:
    shape, channel_dim = LAYOUTS[name]
    a = torch.randn(shape)
    layout = layout_of(shape, channel_dim)
    plus, minus = (split_target(a, sign, True, layout, 0) for sign in "+-")
    columns = a.movedim(channel_dim, -1)
    for index in np.ndindex(columns.shape[:-1]):
        column = columns[index]
        for target, signed in ((plus, column), (minus, -column)):
            expected = signed.clamp(min=0) if signed.sum() > 0 else torch.zeros_like(signed)
            assert torch.equal(target.movedim(channel_dim, -1)[index], expected)
    assert torch.equal(
        split_target(a, "-", True, layout, 0), split_target(-a, "+", True, layout, 0)
    )
    assert torch.equal(signed_map(a, channel_dim).squeeze(channel_dim), a.sum(channel_dim))


def test_coherence_needs_positions() -> None:
    a = torch.tensor([[3.0, -5.0]])
    assert split_target(a, "+", True, layout_of((1, 2), 1), 0.1).tolist() == [[3, 0]]
    assert split_target(a, "-", True, layout_of((1, 2), 1), 0.1).tolist() == [[0, 5]]


@pytest.mark.parametrize("name", ["map", "map, channels last", "tokens"])
@pytest.mark.parametrize("threshold", [0.01, 0.5])
def test_support_mask_is_of_each_image_alone(name: str, threshold: float) -> None:
    shape, channel_dim = LAYOUTS[name]
    a = torch.randn(shape) ** 5
    # A loud image must not silence the others.
    scaled = a * (10.0 ** torch.arange(-4, 4, 2)[: len(a)].repeat(2)[: len(a)]).view(
        -1, *[1] * (a.ndim - 1)
    )
    windows = support_mask(scaled, threshold, channel_dim)
    for image, of_image in zip(a.numpy(), windows.numpy(), strict=True):
        strength = np.abs(image).sum(channel_dim - (channel_dim > 0), keepdims=True)
        assert np.array_equal(of_image, strength > threshold * strength.max())
    assert 0 < windows.mean() < 1


def test_support_mask_edge_cases() -> None:
    assert support_mask(torch.zeros(2, 3, 4, 4)).sum() == 0
    assert torch.equal(support_mask(torch.zeros(2, 3)), torch.ones(2, 3))


@layouts
def test_cosine(shape: tuple[int, ...], channel_dim: int) -> None:
    a, b = torch.randn(shape), torch.randn(shape)
    expected = []
    for x, y in zip(a.double().numpy(), b.double().numpy(), strict=True):
        expected.append((x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum()))
    torch.testing.assert_close(cosine(a, b).double(), torch.tensor(expected), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(cosine(a, a), torch.ones(len(a)))
    torch.testing.assert_close(cosine(a, -a), -torch.ones(len(a)))


@pytest.mark.parametrize("scale", [1e-9, 1e-7, 1e-3, 1e9])
def test_cosine_does_not_depend_on_scale(scale: float) -> None:
    a, b = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(cosine(scale * a, scale * b), cosine(a, b))


@pytest.mark.parametrize("dead", ["a", "b", "both"])
def test_cosine_of_nothing(dead: str) -> None:
    a, b = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    if dead != "b":
        a[1] = 0
    if dead != "a":
        b[1] = 0
    a.requires_grad_()
    value = cosine(a, b)
    assert value[1] == 0
    assert value[0] != 0
    value.sum().backward()
    assert a.grad.isfinite().all()
