"""Image parameters: what is decoded, where they start, and what they keep."""

import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from mti_lightning.errors import InputError
from mti_lightning.images.parameters import FourierPhase, ImageParameters, Pixels, Pyramid
from mti_lightning.images.spectrum import mean_magnitude, natural_magnitude, unmix_colours
from mti_lightning.images.views import whole
from mti_lightning.vetoed_shapes.world import VetoedShapes

SIZES = [(96, 96), (65, 96), (96, 65), (51, 33)]
KEYS = [3, -2, 2**40, 7]
PARAMETERS = [FourierPhase, Pyramid, Pixels]

sizes = pytest.mark.parametrize("size", SIZES)
parameters = pytest.mark.parametrize("kind", PARAMETERS)


def world(count: int, size: tuple[int, int]) -> Tensor:
    pictures = VetoedShapes(count, seed=5)
    return whole(torch.stack([pictures[i]["picture"] for i in range(count)]), size)


def psnr(a: Tensor, b: Tensor) -> float:
    return -10 * (a - b).square().mean().log10().item()


def decoded(
    image: ImageParameters, keys: list[int], size: tuple[int, int], sources: Tensor | None = None
) -> Tensor:
    trained, fixed = image.start(keys, size, sources)
    return image.decode({**trained, **fixed}, size)


@sizes
@parameters
def test_a_source_is_where_it_starts(kind: type[ImageParameters], size: tuple[int, int]) -> None:
    sources = world(2, size).clamp(0.02, 0.98)
    assert psnr(decoded(kind(), KEYS[:2], size, sources), sources) > 35


@sizes
@parameters
def test_extreme_sources_are_kept_up_to_the_clipping(
    kind: type[ImageParameters], size: tuple[int, int]
) -> None:
    sources = (torch.rand(1, 3, *size) * 2 - 0.5).clamp(0, 1)
    assert psnr(decoded(kind(), [0], size, sources), sources.clamp(0.01, 0.99)) > 35


@sizes
@parameters
def test_a_start_from_noise_depends_on_the_key_alone(
    kind: type[ImageParameters], size: tuple[int, int]
) -> None:
    image = kind()
    together = image.start(KEYS, size, None)
    for index, key in enumerate(KEYS):
        torch.rand(5)  # nor on what else was drawn
        alone = image.start([key], size, None)
        for values, value in zip(together, alone, strict=True):
            assert values.keys() == value.keys()
            for name in value:
                assert torch.equal(values[name][index : index + 1], value[name])


@sizes
@parameters
def test_a_start_from_a_source_depends_on_the_source_alone(
    kind: type[ImageParameters], size: tuple[int, int]
) -> None:
    sources = world(len(KEYS), size)
    together = decoded(kind(), KEYS, size, sources)
    for index in range(len(KEYS)):
        alone = decoded(kind(), [99], size, sources[index : index + 1])
        assert psnr(alone, together[index : index + 1]) > 90


@parameters
def test_other_keys_start_elsewhere(kind: type[ImageParameters]) -> None:
    pictures = decoded(kind(), KEYS, (48, 40))
    assert all(psnr(a, b) < 30 for a, b in pairwise(pictures))


@sizes
@pytest.mark.parametrize("magnitude", ["1/f", "measured"])
def test_fourier_phase_keeps_the_magnitude(size: tuple[int, int], magnitude: str) -> None:
    image = FourierPhase(magnitude=magnitude)
    wanted = natural_magnitude(*size)
    if magnitude == "measured":
        image.measured = wanted = mean_magnitude(world(8, size))
    trained, fixed = image.start(KEYS, size, None)
    trained["phase"] = trained["phase"] + torch.randn_like(trained["phase"])  # as if trained
    planes = unmix_colours(image.decode({**trained, **fixed}, size).double().logit())
    shown = np.abs(np.fft.rfft2(planes.numpy()))
    # A real picture ties the phases of a column's two halves where the horizontal frequency is 0 or
    # the highest, so there the magnitude is an upper bound. A picture's mean is not a pattern.
    free = slice(1, (size[1] + 1) // 2)
    ratio = shown[..., free] / wanted[..., free].numpy()
    scale = np.median(ratio, axis=(1, 2, 3), keepdims=True)
    assert np.abs(ratio / scale - 1).max() < 0.01
    bound = shown[:, :, 1:] / wanted[:, 1:].numpy()
    assert (bound / scale).max() < 1.01


@pytest.mark.parametrize("kind", [FourierPhase, Pyramid])
@pytest.mark.parametrize("contrast", [0.3, 0.6, 2.0])
def test_contrast(contrast: float, kind: type[FourierPhase | Pyramid]) -> None:
    planes = decoded(kind(contrast=contrast), KEYS, (64, 48)).logit()
    assert planes.std((1, 2, 3)).tolist() == pytest.approx([contrast] * 4, rel=1e-3)
    assert planes.mean((1, 2, 3)).abs().max() < 1e-3


def test_a_pyramid_has_planes_of_all_sizes_that_are_doubled_in_place() -> None:
    image = Pyramid()
    trained, fixed = image.start([0], (65, 48), None)
    sizes = [(*plane.shape[2:],) for plane in trained.values()]
    assert sizes == [(9, 6), (17, 12), (33, 24), (65, 48)]
    assert not fixed
    for plane in trained.values():
        plane.zero_()
    trained["1"][:, 0, 5, 3] = 1
    shown = image.decode(trained, (65, 48))[0, 0]
    bright = (shown > shown.median()).nonzero()
    # A linear interpolation reaches from the middle of the pixel to those of its neighbours.
    assert bright.amin(0).tolist() == [4 * 5 - 3, 4 * 3 - 3]
    assert bright.amax(0).tolist() == [4 * 5 + 6, 4 * 3 + 6]


def test_a_pyramid_on_a_larger_canvas_shows_what_was_optimised() -> None:
    image = Pyramid((400, 300))
    grid = image.grid((400, 300), (107, 320))
    assert grid == (107, 300)
    trained, fixed = image.start(KEYS, grid, None)
    small, large = (image.decode({**trained, **fixed}, size) for size in (grid, (400, 300)))
    assert large.shape[2:] == (400, 300)
    assert psnr(whole(large, grid), small) > 25
    part = image.decode({**trained, **fixed}, (400, 300), (30, 20, 50, 60))
    torch.testing.assert_close(part, large[..., 30:80, 20:80])


def test_attenuation_fades_a_frequency() -> None:
    rows = torch.arange(64)[:, None] / 64 * 2 * torch.pi
    coarse, fine = 0.2 * (3 * rows).cos(), 0.2 * (20 * rows).cos()
    source = (0.5 + coarse + fine).expand(1, 3, 64, 48)
    image = FourierPhase()
    trained, fixed = image.start([0], (64, 48), source)
    trained["attenuation"][..., 15:50] = -20  # rows of high frequency
    shown = image.decode({**trained, **fixed}, (64, 48))
    spectrum = torch.fft.rfft2(shown[0, 0])[:, 0].abs()
    before = torch.fft.rfft2(source[0, 0])[:, 0].abs()
    assert spectrum[20] < 0.1 * before[20]
    assert spectrum[3] > 0.9 * before[3]


@sizes
@parameters
@pytest.mark.parametrize("from_source", [False, True])
def test_what_is_trained_reaches_every_pixel_of_its_own_image(
    kind: type[ImageParameters], size: tuple[int, int], from_source: bool
) -> None:
    image = kind()
    trained, fixed = image.start(KEYS, size, world(len(KEYS), size) if from_source else None)
    assert trained.keys().isdisjoint(fixed)
    for value in trained.values():
        value.requires_grad_()
    picture = image.decode({**trained, **fixed}, size)
    assert 0 < picture.min() < picture.max() < 1
    gradients = torch.autograd.grad(
        (picture[1] * torch.randn_like(picture[1])).sum(), list(trained.values())
    )
    for gradient in gradients:
        assert gradient.isfinite().all()
        assert gradient[1].count_nonzero() > 0.9 * gradient[1].numel()
        assert gradient[[0, 2, 3]].count_nonzero() == 0


def test_a_flat_source_stays_flat() -> None:
    source = torch.full((1, 3, 40, 36), 0.3)
    image = FourierPhase()
    trained, fixed = image.start([0], (40, 36), source)
    for value in trained.values():
        value.requires_grad_()
    picture = image.decode({**trained, **fixed}, (40, 36))
    torch.testing.assert_close(picture, source, rtol=0, atol=0.01)
    picture.square().sum().backward()
    assert all(value.grad.isfinite().all() for value in trained.values())


@parameters
@pytest.mark.parametrize("canvas", [(31, 96), (96, 31), (0, 40), (-5, 64)])
def test_a_canvas_too_small(kind: type[ImageParameters], canvas: tuple[int, int]) -> None:
    message = f"canvas {list(canvas)}: give each side 32 pixels or more"
    with pytest.raises(InputError, match=re.escape(message)):
        kind(canvas)
    assert kind((32, 32)).canvas == (32, 32)


@pytest.mark.parametrize("kind", [FourierPhase, Pyramid])
@pytest.mark.parametrize("contrast", [0.0, -1.0])
def test_no_contrast(contrast: float, kind: type[FourierPhase | Pyramid]) -> None:
    with pytest.raises(InputError, match=f"contrast {contrast}: leaves nothing .*such as 0.6"):
        kind(contrast=contrast)
