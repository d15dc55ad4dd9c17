"""Spectra of natural images: frequency grids, the colour matrix, encoding and decoding.

Pure functions on tensors.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mti_lightning.images.boxes import Box

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
    return torch.einsum("rc,nchw->nrhw", _COLOUR.to(image, non_blocking=True), image)


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


def enlarged(magnitude: Tensor, phase: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the same waves on a grid that is finer, with no others than they.

    The highest frequency, of which the picture shows but one phase, is left out.

    Args:
        magnitude: m of even numbers of rows and columns where the new ones are more,
            [N, 3, h, w // 2 + 1].
        phase: φ, of the same shape.
        size: New height and width.
    """
    (rows, columns), (height, wide) = phase.shape[2:], (size[0], size[1] // 2 + 1)
    if columns < wide:
        magnitude, phase = (
            nn.functional.pad(v[..., :-1], (0, wide - columns + 1)) for v in (magnitude, phase)
        )
        # The middle of the first pixel stays where it is.
        shift = math.pi * (1 / size[1] - 0.5 / (columns - 1))
        phase = phase + shift * torch.arange(wide, device=phase.device)
    if rows < height:
        up = rows // 2  # rows of frequencies from 0 up, then from the lowest to -1
        gap = phase.new_zeros(*phase.shape[:2], height - 2 * up + 1, wide)
        magnitude, phase = (
            torch.cat([v[:, :, :up], gap, v[:, :, up + 1 :]], 2) for v in (magnitude, phase)
        )
        frequency = torch.fft.fftfreq(height, 1 / height)[:, None]
        phase = phase + math.pi * (1 / height - 1 / rows) * frequency.to(phase, non_blocking=True)
    return magnitude, phase


class _PhasePicture(torch.autograd.Function):
    """A box of the standardised planes of m e^{iφ}, with a gradient in φ only.

    Only the first of the two transforms is of the whole; mean and deviation come by Parseval's
    theorem. Written out because autograd passes several times as often over memory. Nothing is
    copied where the rows of a column of m and φ lie side by side in memory.
    """

    @staticmethod
    def forward(ctx: Any, magnitude: Tensor, phase: Tensor, width: int, box: Box) -> Tensor:
        top, left, rows, columns = box
        height = phase.shape[2]
        magnitude, phase = magnitude.mT.contiguous(), phase.mT.contiguous()  # [N, 3, W // 2 + 1, H]
        waves = torch.complex(magnitude * phase.cos(), magnitude * phase.sin())
        lines = torch.fft.ifft(waves)
        real = torch.view_as_real(lines).flatten(2)
        # Each frequency stands for two, but for the edges, whose imaginary part has no effect.
        gram = 2 * (real @ real.mT)  # [N, 3, 3]
        for edge in _edges(width):
            pair = torch.view_as_real(lines[:, :, edge])
            weighted = torch.stack([pair[..., 0], 2 * pair[..., 1]], -1)
            gram -= (pair[:, :, None] * weighted[:, None]).sum((3, 4))
        colour = _COLOUR.to(real, non_blocking=True)
        mean = lines[:, :, 0].real.mean(2) / width @ colour.mean(0)
        power = (gram * (colour.T @ colour)).sum((1, 2)) / (3 * height * width**2)
        mean, deviation = (
            value[:, None, None] for value in (mean, (power - mean**2).clamp(1e-12).sqrt())
        )
        planes = torch.fft.irfft(lines[..., top : top + rows].mT, n=width)
        planes = planes[..., left : left + columns].flatten(2)
        flat = torch.baddbmm(-mean / deviation, colour / deviation, planes)
        standardised = flat.view(-1, 3, rows, columns)
        ctx.save_for_backward(waves, lines, standardised, mean, deviation)
        ctx.width, ctx.box = width, box
        return standardised

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None, None]:
        waves, lines, standardised, mean, deviation = ctx.saved_tensors
        (top, left, rows, columns), width, height = ctx.box, ctx.width, lines.shape[3]
        colour = _COLOUR.to(gradient, non_blocking=True)
        of_deviation = -(gradient * standardised).sum((1, 2, 3)) / deviation.flatten()
        of_mean = -gradient.sum((1, 2, 3)) / deviation.flatten()
        of_mean -= of_deviation * (mean / deviation).flatten()
        of_power = of_deviation / (deviation.flatten() * 6 * height * width**2)
        # Through the power, of all frequencies ...
        mixing = 4 * of_power[:, None, None] * (colour.T @ colour)
        of_lines = (mixing @ torch.view_as_real(lines).flatten(2)).view(*lines.shape, 2)
        for edge in _edges(width):
            of_lines[:, :, edge, :, 0] /= 2
            of_lines[:, :, edge, :, 1] = 0
        # ... through the mean ...
        of_lines[:, :, 0, :, 0] += (of_mean[:, None] * colour.mean(0) / (height * width))[..., None]
        # ... and through the pixels of the box.
        padded = gradient.new_zeros(*gradient.shape[:3], width)
        unmixed = colour.T * (2 / width) / deviation @ gradient.flatten(2)
        padded[..., left : left + columns] = unmixed.view(-1, 3, rows, columns)
        of_rows = torch.fft.rfft(padded)
        for edge in _edges(width):
            of_rows[..., edge] /= 2
        of_lines = torch.view_as_complex(of_lines)
        of_lines[..., top : top + rows] += of_rows.mT
        turned = torch.fft.fft(of_lines, norm="forward")
        turning = turned.imag * waves.real
        return None, turning.addcmul_(turned.real, waves.imag, value=-1).mT, None, None


def _edges(width: int) -> tuple[int, ...]:
    """Return the columns of a half spectrum that stand for themselves only."""
    return (0, width // 2) if width % 2 == 0 else (0,)


def phase_picture(magnitude: Tensor, phase: Tensor, width: int, box: Box | None = None) -> Tensor:
    """Return the RGB planes of m e^{iφ}, of mean 0 and deviation 1 over each picture, [N, 3, H, W].

    Args:
        magnitude: m, [N, 3, H, W // 2 + 1].
        phase: φ, of the same shape.
        width: W.
        box: What is returned of the picture, whose other pixels are then not computed; the
            gradient can be taken once, and of a fixed magnitude only. None for the whole.
    """
    if box is not None:
        part: Tensor = _PhasePicture.apply(magnitude, phase, width, box)
        return part
    # Both are several times quicker than torch.polar and a standard deviation, forward and
    # backward.
    waves = torch.complex(magnitude * phase.cos(), magnitude * phase.sin())
    planes = decode(waves, width)
    return nn.functional.layer_norm(planes, planes.shape[1:], eps=1e-12)


def mean_magnitude(pictures: Tensor) -> Tensor:
    """Return the mean magnitude, [3, H, W // 2 + 1], of pictures [N, 3, H, W] in 0..1."""
    return encode(pictures).abs().mean(0)
