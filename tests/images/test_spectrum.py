"""Spectra: what is encoded can be decoded, and the statistics are numpy's."""

import numpy as np
import pytest
import torch

from mti_lightning.images.boxes import cut
from mti_lightning.images.spectrum import (
    decode,
    encode,
    enlarged,
    frequency_radius,
    mean_magnitude,
    mix_colours,
    natural_magnitude,
    phase_picture,
    unmix_colours,
)

SIZES = [(32, 32), (33, 47), (48, 33), (37, 64)]

sizes = pytest.mark.parametrize(("height", "width"), SIZES)


def unmixed(pictures: np.ndarray) -> np.ndarray:
    """Return decorrelated planes of pictures [N, 3, H, W], before the sigmoid, in numpy alone."""
    root = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
    root = root / np.linalg.norm(root, axis=0).max()
    clipped = np.clip(pictures.astype(np.float64), 0.01, 0.99)
    return np.einsum("rc,nchw->nrhw", np.linalg.inv(root), np.log(clipped / (1 - clipped)))


@sizes
def test_decoding_undoes_encoding(height: int, width: int) -> None:
    pictures = 0.02 + 0.96 * torch.rand(2, 3, height, width)
    decoded = decode(encode(pictures), width).sigmoid()
    torch.testing.assert_close(decoded, pictures, rtol=0, atol=1e-5)


def test_extremes_are_clipped_not_infinite() -> None:
    pictures = torch.rand(1, 3, 32, 32).round()
    decoded = decode(encode(pictures), 32).sigmoid()
    torch.testing.assert_close(decoded, pictures.clamp(0.01, 0.99), rtol=0, atol=1e-4)


@sizes
def test_encoding_against_numpy(height: int, width: int) -> None:
    pictures = torch.rand(3, 3, height, width)
    expected = np.fft.rfft2(unmixed(pictures.numpy()))
    scale = np.abs(expected).max()
    assert np.abs(encode(pictures).numpy() - expected).max() < 1e-5 * scale
    magnitude = np.abs(expected).mean(0)
    assert np.abs(mean_magnitude(pictures).numpy() - magnitude).max() < 1e-5 * scale


@sizes
def test_frequencies(height: int, width: int) -> None:
    radius = frequency_radius(height, width)
    for row in (0, 1, height // 2, height - 1):
        for column in (0, 1, width // 2):
            cycles = min(row, height - row) / height, column / width
            expected = max(np.hypot(*cycles), 1 / max(height, width))
            assert radius[row, column] == pytest.approx(expected, rel=1e-6)


@sizes
def test_natural_pictures_fall_off_with_frequency(height: int, width: int) -> None:
    magnitude = natural_magnitude(height, width)
    assert magnitude.mean() == pytest.approx(1, abs=1e-5)
    # m · f is the same number everywhere.
    product = magnitude * frequency_radius(height, width)
    torch.testing.assert_close(product, product[:1, :1, :1].expand_as(product))


def test_colours() -> None:
    pictures = torch.randn(2, 3, 5, 4)
    torch.testing.assert_close(unmix_colours(mix_colours(pictures)), pictures, rtol=0, atol=1e-4)
    # The first plane is brightness, the others are the colour opponents of natural pictures.
    red, green, blue = mix_colours(torch.eye(3)[:, :, None, None]).squeeze().unbind(1)
    assert min(red[0], green[0], blue[0]) > 0.5
    assert red[1] > 0 > blue[1]
    assert green[2] < 0 < min(red[2], blue[2])


def test_colours_are_mixed_without_mixing_places() -> None:
    planes = torch.zeros(1, 3, 4, 6)
    planes[0, 0, 1, 5] = 1
    mixed = mix_colours(planes)
    assert mixed.abs().sum((0, 1)).nonzero().tolist() == [[1, 5]]


@pytest.mark.parametrize("size", [(40, 36), (33, 35), (32, 47)])
def test_a_box_of_a_phase_picture_is_that_of_the_whole(size: tuple[int, int]) -> None:
    height, width = size
    shape = (2, 3, height, width // 2 + 1)
    random = torch.Generator().manual_seed(0)
    magnitude = natural_magnitude(*size) * torch.rand(shape, generator=random)
    phase = (7 * torch.rand(shape, generator=random)).double().requires_grad_()
    box = (5, 7, 20, 21)
    part = phase_picture(magnitude.double(), phase, width, box)
    whole = cut(phase_picture(magnitude.double(), phase, width), box)
    torch.testing.assert_close(part, whole, rtol=0, atol=1e-6)
    weights = torch.randn(part.shape, generator=random, dtype=torch.double)
    gradients = [torch.autograd.grad(picture, phase, weights)[0] for picture in (part, whole)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("small", "large"), [((20, 24), (47, 64)), ((20, 33), (30, 33)), ((21, 24), (21, 51))]
)
def test_enlarged_waves_are_the_same_between_the_pixels(
    small: tuple[int, int], large: tuple[int, int]
) -> None:
    magnitude, phase = torch.rand(2, 2, 3, small[0], small[1] // 2 + 1, dtype=torch.float64)
    for axis in (0, 1):  # what a real picture shows but one phase of
        if small[axis] < large[axis]:
            magnitude.select(2 + axis, small[axis] // 2).zero_()
    finer = enlarged(magnitude, 6 * phase, large)
    pictures = [
        torch.fft.irfft2(torch.polar(*waves), s=size)
        for waves, size in (((magnitude, 6 * phase), small), (finer, large))
    ]
    # The larger one, evaluated in the middles of the smaller one's pixels.
    found = torch.fft.fft2(pictures[1])
    for axis in (0, 1):
        middles = (torch.arange(small[axis]).double() + 0.5) / small[axis] - 0.5 / large[axis]
        frequency = torch.fft.fftfreq(large[axis], 1 / large[axis], dtype=torch.float64)
        turns = torch.exp(2j * torch.pi * middles[:, None] * frequency) / small[axis]
        found = torch.einsum("sf,...f->...s", turns, found.movedim(2 + axis, -1))
        found = found.movedim(-1, 2 + axis)
    torch.testing.assert_close(found.real, pictures[0])
