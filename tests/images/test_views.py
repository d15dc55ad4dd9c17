"""Views: resampling against PyTorch's own, and boxes and noise from each picture's own stream."""

import re

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mti_lightning.errors import InputError
from mti_lightning.images.boxes import cut
from mti_lightning.images.seeds import derive_seed
from mti_lightning.images.views import Views, resample, whole

KEYS = [derive_seed("picture", index) for index in range(200)]


def reference(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(pictures, size, mode="bilinear", antialias=True, align_corners=False)


def coordinates(height: int, width: int, count: int = 1) -> Tensor:
    """Return pictures that tell where each pixel came from: row and column in shares, and 0.

    Where they are only enlarged, they are read exactly.
    """
    rows = (torch.arange(height) + 0.5)[:, None].expand(height, width) / height
    columns = (torch.arange(width) + 0.5).expand(height, width) / width
    return torch.stack([rows, columns, 0 * rows]).expand(count, 3, -1, -1)


def boxes_of(views: Tensor) -> Tensor:
    """Read top, left, height and width off views of `coordinates`, [N, 4], from their middles."""
    size = views.shape[2]
    low, high = size // 4, size - size // 4 - 1
    axes = views[:, 0, :, size // 2], views[:, 1, size // 2]  # [N, size] each
    extents = [(axis[:, high] - axis[:, low]) / (high - low) * size for axis in axes]
    starts = [
        axis[:, low] - (low + 0.5) * extent / size
        for axis, extent in zip(axes, extents, strict=True)
    ]
    return torch.stack([*starts, *extents], 1)


@pytest.mark.parametrize("source", [(40, 40), (41, 64), (64, 33)])
@pytest.mark.parametrize("target", [(40, 40), (96, 80), (17, 24), (33, 100)])
def test_whole_against_pytorch(source: tuple[int, int], target: tuple[int, int]) -> None:
    pictures = torch.rand(2, 3, *source)
    expected = reference(pictures, target)
    torch.testing.assert_close(whole(pictures, target), expected, rtol=0, atol=1e-5)
    assert torch.equal(whole(pictures, source), pictures)


@pytest.mark.parametrize("target", [(20, 32), (64, 96), (9, 11), (5, 90)])
@pytest.mark.parametrize(
    "box", [(0, 0, 20, 32), (20, 32, 20, 32), (7, 5, 20, 32), (0, 5, 40, 32), (3, 0, 15, 64)]
)
def test_boxes_against_pytorch(box: tuple[int, int, int, int], target: tuple[int, int]) -> None:
    pictures = torch.rand(2, 3, 40, 64)
    top, left, height, width = box
    expected = reference(pictures[:, :, top : top + height, left : left + width], target)
    shares = torch.tensor(box) / torch.tensor([40, 64, 40, 64])
    given = resample(pictures, shares.expand(2, 4), target)
    # At a border inside the picture PyTorch lacks the pixels beside the box; ours has them.
    rows = -(-target[0] // height) + 1
    columns = -(-target[1] // width) + 1
    inner = (
        slice(rows if top else 0, -rows if top + height < 40 else None),
        slice(columns if left else 0, -columns if left + width < 64 else None),
    )
    assert expected[0, 0][inner].numel() > 0
    torch.testing.assert_close(given[..., *inner], expected[..., *inner], rtol=0, atol=1e-5)


def test_each_picture_has_its_own_box() -> None:
    pictures = coordinates(40, 60, 3)
    boxes = torch.tensor([[0.1, 0.2, 0.5, 0.5], [0.0, 0.0, 1.0, 1.0], [0.33, 0.05, 0.6, 0.9]])
    views = resample(pictures, boxes, (64, 64))
    torch.testing.assert_close(boxes_of(views), boxes, rtol=0, atol=1e-4)
    for index in range(3):
        alone = resample(pictures[index : index + 1], boxes[index : index + 1], (64, 64))
        torch.testing.assert_close(alone[0], views[index], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.double])
def test_places_are_as_exact_in_any_precision(dtype: torch.dtype) -> None:
    pictures, box = torch.rand(2, 3, 200, 300), torch.tensor([[0.301, 0.403, 0.503, 0.497]] * 2)
    expected = resample(pictures, box, (180, 200))
    given = resample(pictures.to(dtype), box, (180, 200))
    assert given.dtype == dtype
    assert (given.float() - expected).abs().max() < 0.01
    assert whole(pictures.to(dtype), (50, 60)).dtype == dtype


def test_gradient_of_resampling() -> None:
    pictures = torch.rand(2, 1, 7, 6, dtype=torch.double, requires_grad=True)
    boxes = torch.tensor([[0.1, 0.05, 0.8, 0.9], [0.0, 0.1, 0.95, 0.85]], dtype=torch.double)
    torch.autograd.gradcheck(lambda pictures: resample(pictures, boxes, (5, 9)), pictures)
    (gradient,) = torch.autograd.grad(whole(pictures, (4, 9)).sum(), pictures)
    assert gradient.min() > 0  # no pixel is skipped, unlike in point sampling
    # Brightness is neither made nor lost.
    torch.testing.assert_close(gradient.sum(), torch.tensor(2 * 4 * 9.0, dtype=torch.double))


@pytest.mark.parametrize("count", [1, 3])
def test_a_view_depends_on_key_and_step_alone(count: int) -> None:
    views = Views(count)
    pictures = torch.rand(5, 3, 48, 40)
    together = views(pictures, KEYS[:5], 7, (32, 36))
    assert len(together) == 5 * count
    for index, key in enumerate(KEYS[:5]):
        torch.rand(3)
        alone = views(pictures[index : index + 1], [key], 7, (32, 36))
        own = together[index * count : (index + 1) * count]
        torch.testing.assert_close(alone, own, rtol=0, atol=1e-6)
    first = views(pictures[:1], KEYS[:1], 7, (32, 36))
    for other in (
        views(pictures[:1], KEYS[:1], 8, (32, 36)),
        views(pictures[:1], KEYS[1:2], 7, (32, 36)),
    ):
        assert (other - first).abs().mean() > 0.01
    if count > 1:
        assert (first[0] - first[1]).abs().mean() > 0.01


def test_views_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    Views()(torch.rand(1, 3, 32, 32, generator=torch.Generator()), KEYS[:1], 0, (32, 32))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("low", "high"), [(0.9, 0.99), (0.5, 0.7), (0.8, 0.8)])
def test_boxes_lie_on_the_canvas_and_in_range(low: float, high: float) -> None:
    views = Views(2, (low, high), noise=0)(coordinates(40, 60, 200), KEYS, 3, (64, 64))
    boxes = boxes_of(views)  # [400, 4]
    top_left, extent = boxes[:, :2], boxes[:, 2:]
    assert top_left.min() > -1e-3
    assert (top_left + extent).max() < 1 + 1e-3
    torch.testing.assert_close(extent[:, 0], extent[:, 1], rtol=0, atol=1e-3)  # not distorted
    assert extent.min() > low - 1e-3
    assert extent.max() < high + 1e-3
    if low < high:  # uniform between the two
        shares = (extent[:, 0] - low) / (high - low)
        assert shares.mean() == pytest.approx(0.5, abs=0.06)
        assert shares.std() == pytest.approx(12**-0.5, abs=0.04)


def test_jitter_moves_the_centre() -> None:
    # Boxes this small seldom meet the border.
    views = Views(2, (0.3, 0.4), jitter=0.08, noise=0)(coordinates(40, 60, 200), KEYS, 0, (64, 64))
    boxes = boxes_of(views)
    centres = boxes[:, :2] + boxes[:, 2:] / 2
    assert centres.mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.015)
    assert centres.std(0).tolist() == pytest.approx([0.08, 0.08], rel=0.12)
    assert abs(torch.corrcoef(centres.T)[0, 1]) < 0.15  # rows and columns on their own
    still = boxes_of(Views(1, (0.5, 0.5), 0, 0)(coordinates(40, 60, 4), KEYS[:4], 0, (64, 64)))
    torch.testing.assert_close(
        still, torch.tensor([0.25, 0.25, 0.5, 0.5]).expand(4, 4), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("noise", [0.02, 0.1])
def test_noise_is_uniform_and_gaussian(noise: float) -> None:
    views = Views(noise=noise)(torch.full((60, 3, 40, 40), 0.4), KEYS[:60], 0, (48, 56))
    noises = (views - 0.4).double() / noise
    assert noises.mean() == pytest.approx(0, abs=0.01)
    assert noises.var() == pytest.approx(2, rel=0.01)  # of both, a standard deviation of 1 each
    # Of their fourth moments, 3 and 1.8, and twice the product of the variances, 6.
    assert noises.pow(4).mean() == pytest.approx(3 + 1.8 + 6, rel=0.02)
    assert (noises[:, 0] * noises[:, 1]).mean() == pytest.approx(0, abs=0.02)  # each channel's own
    assert (noises[:30] * noises[30:]).mean() == pytest.approx(0, abs=0.02)  # each picture's own


def test_noise_has_no_gradient_and_the_picture_all_of_it() -> None:
    pictures = torch.rand(3, 3, 40, 40, requires_grad=True)
    views = Views(2)(pictures, KEYS[:3], 0, (32, 32))
    views[2:4].sum().backward()
    assert pictures.grad[[0, 2]].count_nonzero() == 0
    expected = torch.tensor(2 * 3 * 32 * 32.0)
    torch.testing.assert_close(pictures.grad[1].sum(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    "given",
    [
        {"count": 0},
        {"box": (0.0, 0.5)},
        {"box": (0.9, 0.8)},
        {"box": (0.9, 1.1)},
        {"jitter": -0.1},
        {"noise": -0.1},
    ],
    ids=str,
)
def test_views_that_cannot_be(given: dict[str, object]) -> None:
    ((name, value),) = given.items()
    shown = list(value) if isinstance(value, tuple) else value
    with pytest.raises(InputError, match=re.escape(f"{name} {shown}: give ")):
        Views(**given)


@pytest.mark.parametrize("canvas", [(64, 64), (300, 211)])
def test_a_part_of_a_view_needs_only_its_reach(canvas: tuple[int, int]) -> None:
    pictures = torch.rand(3, 3, *canvas, generator=torch.Generator().manual_seed(0))
    views, size, part = Views(box=(0.8, 0.99), jitter=0.3), (96, 80), (30, 8, 24, 40)
    box = views.covered_box(part, size, canvas)
    for step in range(8):
        wanted = views(pictures, [1, 2, 3], step, size, part)
        given = views(cut(pictures, box), [1, 2, 3], step, size, part, (box, canvas))
        torch.testing.assert_close(given, wanted, rtol=0, atol=1e-6)
    assert box[2] * box[3] < 0.6 * canvas[0] * canvas[1]


def test_few_taps_are_the_product_with_all_pixels() -> None:
    generator = torch.manual_seed(0)
    for source, target in ((41, 17), (17, 41), (30, 28)):
        pictures = torch.rand(3, 2, source, source + 3, generator=generator).requires_grad_()
        sides = 0.5 + torch.rand(3, 2, generator=generator) / 2
        boxes = torch.cat([(1 - sides) * torch.rand(3, 2, generator=generator), sides], 1)
        part, within = (3, 2, 9, 11), ((1, 2, source - 4, source - 2), (source, source + 3))
        given = cut(pictures, within[0])
        found = resample(given, boxes, (target, target + 1), part, within)
        of_half = resample(given.double(), boxes, (target, target + 1), part, within)
        assert found.shape == (3, 2, 9, 11)
        torch.testing.assert_close(found.double(), of_half, rtol=1e-6, atol=1e-6)
        slopes = torch.rand(found.shape, generator=generator)
        of_both = [
            torch.autograd.grad((values * slopes).sum(), pictures, retain_graph=True)[0]
            for values in (found, of_half)
        ]
        torch.testing.assert_close(*of_both, rtol=1e-5, atol=1e-6)
