"""Spectra of natural images: frequency grids, the colour matrix, encoding and decoding.

Pure functions on tensors.
"""

import torch
from torch import Tensor

# Square root of the colour covariance of ImageNet pictures, scaled to a largest column norm of 1
# (Olah et al., Feature Visualization, Distill 2017).
_COLOUR = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
_COLOUR = _COLOUR / torch.linalg.vector_norm(_COLOUR, dim=0).max()


def frequency_radius(height: int, width: int) -> Tensor:
    """Return the radius of each frequency of `rfft2`, [H, W // 2 + 1].

    In cycles per pixel, and at least one per picture.
    """
    rows, columns = torch.fft.fftfreq(height), torch.fft.rfftfreq(width)
    return torch.hypot(rows[:, None], columns).clamp(min=1 / max(height, width))


def natural_magnitude(height: int, width: int) -> Tensor:
    """Return the 1/f law, [3, H, W // 2 + 1], with a mean of 1."""
    magnitude = 1 / frequency_radius(height, width)
    return (magnitude / magnitude.mean()).expand(3, -1, -1)


def mix_colours(image: Tensor) -> Tensor:
    """Turn three decorrelated planes into RGB, [N, 3, H, W]."""
    return torch.einsum("rc,nchw->nrhw", _COLOUR.to(image), image)


def unmix_colours(image: Tensor) -> Tensor:
    """Undo `mix_colours`."""
    return torch.einsum("rc,nchw->nrhw", torch.linalg.inv(_COLOUR).to(image), image)


def encode(pictures: Tensor) -> Tensor:
    """Return the spectrum, [N, 3, H, W // 2 + 1] complex, of pictures [N, 3, H, W] in 0..1."""
    spectrum: Tensor = torch.fft.rfft2(unmix_colours(pictures.clamp(0.01, 0.99).logit()))
    return spectrum


def decode(spectrum: Tensor, width: int) -> Tensor:
    """Return unbounded RGB planes, [N, 3, H, W]; their sigmoid is a picture.

    `width` settles odd widths.
    """
    return mix_colours(torch.fft.irfft2(spectrum, s=(spectrum.shape[-2], width)))


def mean_magnitude(pictures: Tensor) -> Tensor:
    """Return the mean magnitude, [3, H, W // 2 + 1], of pictures [N, 3, H, W] in 0..1."""
    return encode(pictures).abs().mean(0)
