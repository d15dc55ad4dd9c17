"""Image parameters: what is optimised, and the picture it stands for."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal, final

import torch
from scipy.fft import next_fast_len
from torch import Tensor, nn

from mti_lightning.errors import InputError
from mti_lightning.images import spectrum
from mti_lightning.images.boxes import Box, cut
from mti_lightning.images.seeds import START, generator_at
from mti_lightning.images.views import whole

Values = dict[str, Tensor]
_SMALLEST_CANVAS = 32
# Of the pyramid: how small its coarsest plane may be, and how much less a plane moves the picture
# than the one before it.
_COARSEST, _FINER = 6, 0.7


class ImageParameters(ABC):
    """A way to write pictures as trainable values; each value's first dimension is the image.

    Args:
        canvas: Height and width of the pictures in pixels, apart from the backbone's input size;
            None for that size.
    """

    def __init__(self, canvas: tuple[int, int] | None = None) -> None:
        if canvas is not None and min(canvas) < _SMALLEST_CANVAS:
            raise InputError(
                f"canvas {list(canvas)}: give each side {_SMALLEST_CANVAS} pixels or more"
            )
        self.canvas = canvas

    def grid(self, canvas: tuple[int, int], finest: tuple[int, int]) -> tuple[int, int]:
        """Return the height and width at which pictures are optimised.

        Args:
            canvas: Of the finished pictures.
            finest: Of the smallest pictures that hold all the detail that any view shows.
        """
        return canvas

    @abstractmethod
    def start(
        self, keys: Sequence[int], size: tuple[int, int], sources: Tensor | None
    ) -> tuple[Values, Values]:
        """Return what is trained and what stays fixed, for one image per key, on the CPU.

        An image so starts as the same on all devices.

        Args:
            keys: The images' random streams.
            size: Height and width of the canvas.
            sources: Pictures to start from, [N, 3, H, W] in 0..1; None to start from noise.
        """

    @abstractmethod
    def decode(
        self,
        values: Mapping[str, Tensor],
        size: tuple[int, int],
        box: Box | None = None,
    ) -> Tensor:
        """Return pictures, [N, 3, H, W] in 0..1, for the trained and fixed values together.

        Args:
            values: Trained and fixed values.
            size: Height and width of the canvas.
            box: What is returned of each; None for the whole.
        """


def _check_contrast(contrast: float) -> float:
    if not 0 < contrast < math.inf:
        raise InputError(
            f"contrast {contrast}: leaves nothing to see; give a number above 0, such as 0.6"
        )
    return contrast


@final
class FourierPhase(ImageParameters):
    """Trainable phases, fixed magnitudes (MAgnitude Constrained Optimisation, Fel et al. 2023).

    The picture is σ(standardise(colour · irfft2(m e^{iφ}))): only where things are can change,
    never how much of each frequency there is, which keeps adversarial high frequencies out. Started
    from a source picture, m and φ are the source's, and a trainable attenuation σ(α) lets each
    frequency fade.

    On a canvas that is larger than views can show only the frequencies that they do show are there:
    nothing would move the others from where they happened to start.

    Spectra are kept by column, [N, 3, W // 2 + 1, H], as the first of the two transforms runs along
    columns.

    Args:
        canvas: Height and width of the pictures in pixels; None for the backbone's input size.
        magnitude: `1/f`, or `measured` on the run's own pictures.
        contrast: Standard deviation before the sigmoid, of images that start from noise. Less
            leaves too little to make shapes of, more drowns them in the background.
    """

    def __init__(
        self,
        canvas: tuple[int, int] | None = None,
        magnitude: Literal["1/f", "measured"] = "1/f",
        contrast: float = 1.25,
    ) -> None:
        super().__init__(canvas)
        self.contrast = _check_contrast(contrast)
        self.magnitude = magnitude
        self.measured: Tensor | None = (
            None  # [3, H, W // 2 + 1]; set at set-up where `magnitude` asks for it
        )

    def grid(self, canvas: tuple[int, int], finest: tuple[int, int]) -> tuple[int, int]:
        height, width = (
            min(whole, 2 * next_fast_len(-(-fine // 2), real=True))  # even
            for whole, fine in zip(canvas, finest, strict=True)
        )
        return height, width

    def start(
        self, keys: Sequence[int], size: tuple[int, int], sources: Tensor | None
    ) -> tuple[Values, Values]:
        height, width = size
        if sources is not None:
            encoded = spectrum.encode(sources)
            planes = spectrum.decode(encoded, width).flatten(1)
            source = encoded.mT.contiguous()
            trained = {"phase": source.angle(), "attenuation": torch.full_like(source.abs(), 5.0)}
            return trained, {
                "magnitude": source.abs(),
                "mean": planes.mean(1)[:, None, None, None],
                "deviation": planes.std(1, correction=0)[:, None, None, None],
            }
        shape = (3, height, width // 2 + 1)
        phase = torch.stack(
            [torch.rand(shape, generator=generator_at(key, START)).mT for key in keys]
        )
        magnitude = (
            self.measured
            if self.measured is not None
            else spectrum.natural_magnitude(height, width)
        )
        ones = torch.ones(len(keys), 1, 1, 1)
        return {"phase": (2 * phase - 1) * math.pi}, {
            "magnitude": magnitude.mT.contiguous().expand(len(keys), -1, -1, -1),
            "mean": 0 * ones,
            "deviation": self.contrast * ones,
        }

    def decode(
        self,
        values: Mapping[str, Tensor],
        size: tuple[int, int],
        box: Box | None = None,
    ) -> Tensor:
        magnitude = values["magnitude"]
        if "attenuation" in values:
            magnitude = magnitude * values["attenuation"].sigmoid()
        whole = None if magnitude.requires_grad else box
        magnitude, phase = spectrum.enlarged(magnitude.mT, values["phase"].mT, size)
        planes = spectrum.phase_picture(magnitude, phase, size[1], whole)
        if box is not None and whole is None:
            planes = cut(planes, box)
        return torch.addcmul(values["mean"], planes, values["deviation"]).sigmoid()


@final
class Pyramid(ImageParameters):
    """Trainable planes of all sizes, each half as fine as the next; the picture is their sum.

    The picture is σ(contrast · standardise(colour · Σ wₗ up(pₗ))), where up doubles planes by
    linear interpolation until they have the picture's size, and w falls by 0.7 from a plane to one
    that is finer. A step of an optimizer moves things as well as their texture, so what is large
    forms first, and nothing has to fill the places that the objective leaves empty. Started from a
    source picture, planes are added to its own.

    Args:
        canvas: Height and width of the pictures in pixels; None for the backbone's input size.
        contrast: Standard deviation before the sigmoid, of images that start from noise.
    """

    def __init__(self, canvas: tuple[int, int] | None = None, contrast: float = 1.25) -> None:
        super().__init__(canvas)
        self.contrast = _check_contrast(contrast)

    def grid(self, canvas: tuple[int, int], finest: tuple[int, int]) -> tuple[int, int]:
        return min(canvas[0], finest[0]), min(canvas[1], finest[1])

    def start(
        self, keys: Sequence[int], size: tuple[int, int], sources: Tensor | None
    ) -> tuple[Values, Values]:
        sizes = _halved(size)
        if sources is not None:
            planes = {str(n): sources.new_zeros(len(keys), 3, *s) for n, s in enumerate(sizes)}
            return planes, {"source": sources.clamp(0.01, 0.99).logit()}
        generators = [generator_at(key, START) for key in keys]
        return {
            str(number): torch.stack([torch.randn(3, *s, generator=g) for g in generators])
            for number, s in enumerate(sizes)
        }, {}

    def decode(
        self,
        values: Mapping[str, Tensor],
        size: tuple[int, int],
        box: Box | None = None,
    ) -> Tensor:
        names = sorted((name for name in values if name != "source"), key=int)
        planes, *finer = (values[name] for name in names)
        for number, plane in enumerate(finer, 1):
            planes = torch.add(_doubled(planes, plane.shape[2:]), plane, alpha=_FINER**number)
        planes = spectrum.mix_colours(planes)
        if "source" in values:
            planes = planes + values["source"]
        else:
            planes = self.contrast * nn.functional.layer_norm(planes, planes.shape[1:], eps=1e-12)
        return cut(whole(planes, size), box or (0, 0, *size)).sigmoid()


def _halved(size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the sizes of a pyramid's planes, the coarsest first."""
    sizes = [size]
    while min(sizes[0]) >= 2 * _COARSEST:
        sizes.insert(0, (-(-sizes[0][0] // 2), -(-sizes[0][1] // 2)))
    return sizes


def _doubled(planes: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolate planes to twice their size, or one pixel less, [N, C, *size].

    Not by PyTorch's own function, whose gradient on a GPU adds in any order.
    """
    for dim in (2, 3):
        count = planes.shape[dim]
        near = planes.narrow(dim, 0, 1), planes, planes.narrow(dim, count - 1, 1)
        padded = torch.cat(near, dim)
        pairs = [torch.lerp(planes, padded.narrow(dim, at, count), 0.25) for at in (0, 2)]
        planes = torch.stack(pairs, dim + 1).flatten(dim, dim + 1).narrow(dim, 0, size[dim - 2])
    return planes


@final
class Pixels(ImageParameters):
    """One trainable value per pixel and channel; the picture is its sigmoid.

    Nothing keeps adversarial patterns out.

    Args:
        canvas: Height and width of the pictures in pixels; None for the backbone's input size.
    """

    def start(
        self, keys: Sequence[int], size: tuple[int, int], sources: Tensor | None
    ) -> tuple[Values, Values]:
        if sources is not None:
            return {"logit": sources.clamp(0.01, 0.99).logit()}, {}
        noise = [torch.randn(3, *size, generator=generator_at(key, START)) for key in keys]
        return {"logit": 0.1 * torch.stack(noise)}, {}

    def decode(
        self,
        values: Mapping[str, Tensor],
        size: tuple[int, int],
        box: Box | None = None,
    ) -> Tensor:
        return cut(values["logit"], box or (0, 0, *size)).sigmoid()
