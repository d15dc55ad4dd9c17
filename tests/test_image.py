"""Image parameters and spectra."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mti_lightning import InputError, spectrum
from mti_lightning.image import FourierPhase, ImageParameters, Pixels

SIZES = [(32, 32), (33, 47), (40, 61)]
PARAMETERS = [FourierPhase(), Pixels()]


def pictures(size: tuple[int, int]) -> Tensor:
    coarse = torch.rand(2, 3, 5, 6, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0.05, 0.95)


@pytest.mark.parametrize("size", SIZES)
def test_decoding_undoes_encoding(size: tuple[int, int]) -> None:
    given = pictures(size)
    torch.testing.assert_close(spectrum.decode(spectrum.encode(given), size[1]).sigmoid(), given, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("image", PARAMETERS)
def test_started_from_a_picture_it_is_that_picture(image: ImageParameters, size: tuple[int, int]) -> None:
    given = pictures(size)
    trained, fixed = image.start([1, 2], size, given)
    error = (image.decode({**trained, **fixed}, size) - given).square().mean((1, 2, 3))
    assert (-10 * error.log10()).min() > 40


@pytest.mark.parametrize("size", SIZES)
def test_the_magnitude_of_each_frequency_stays_fixed_whatever_the_phases(size: tuple[int, int]) -> None:
    image = FourierPhase(contrast=0.5)
    trained, fixed = image.start([5], size, None)
    planes = image.decode({**trained, **fixed}, size).double().logit()
    assert planes.std(correction=0).item() == pytest.approx(0.5, rel=1e-3)
    waves = torch.fft.rfft2(spectrum.unmix_colours(planes))[0].abs()
    expected = fixed["magnitude"][0].double()
    # Frequency 0 and the highest ones have no free phase; the columns at either end are their own mirror images.
    inner = (slice(None), slice(1, None), slice(1, (size[1] - 1) // 2))
    ratio = waves[inner] / expected[inner]
    assert (ratio.std() / ratio.mean()).item() < 1e-2


@pytest.mark.parametrize("image", PARAMETERS)
def test_the_start_is_the_keys_own(image: ImageParameters) -> None:
    alone, _ = image.start([7], (32, 40), None)
    among, _ = image.start([3, 7, 9], (32, 40), None)
    for name, value in alone.items():
        assert torch.equal(value[0], among[name][1])
        assert not torch.equal(among[name][0], among[name][1])


def test_the_measured_magnitude_is_numpys() -> None:
    given = pictures((33, 40))
    logit = np.log(given.numpy() / (1 - given.numpy()))
    inverse = np.linalg.inv(spectrum.mix_colours(torch.eye(3)[None, :, :, None])[0, :, :, 0].numpy())
    expected = np.abs(np.fft.rfft2(np.einsum("rc,nchw->nrhw", inverse, logit))).mean(0)
    np.testing.assert_allclose(spectrum.mean_magnitude(given).numpy(), expected, rtol=1e-3, atol=1e-3)


def test_the_natural_magnitude_falls_as_one_over_frequency() -> None:
    magnitude = spectrum.natural_magnitude(64, 64)[0]
    assert magnitude[0, 4] / magnitude[0, 16] == pytest.approx(4)
    assert magnitude[8, 0] / magnitude[16, 0] == pytest.approx(2)


@pytest.mark.parametrize("image", [FourierPhase, Pixels])
def test_a_canvas_too_small_is_refused(image: type[ImageParameters]) -> None:
    with pytest.raises(InputError, match="a canvas of 16x200 pixels is too small; each side takes 32 or more"):
        image((16, 200))
    with pytest.raises(InputError, match="a contrast of 0"):
        FourierPhase(contrast=0)
