"""Source pictures: reading them, their spectrum, and their attributions, each made once."""

import hashlib
import math
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from tempfile import SpooledTemporaryFile
from typing import final

import numpy as np
import torch
from torch import Tensor

from mti_lightning.attribution.methods import attribute
from mti_lightning.attribution.module import AttributionModule
from mti_lightning.backbone import Layer, Preprocessing
from mti_lightning.data.base import PictureData
from mti_lightning.errors import InputError
from mti_lightning.images import spectrum
from mti_lightning.images.parameters import FourierPhase, ImageParameters
from mti_lightning.images.views import whole
from mti_lightning.sweep.pictures import SweepPictures

_SPECTRUM_PICTURES = 256
_IN_MEMORY = 2**27  # bytes of attributions; what is more goes to the disk
Pair = tuple[int, int]  # places of a source and a feature


@final
@dataclass(frozen=True)
class Sources:
    """Source pictures.

    Attributes:
        pictures: As the backbone sees them, [S, 3, h, w] in 0..1.
        detailed: As detailed as the canvas, where that was asked for, [S, 3, H, W].
        keys: What they are called.
    """

    pictures: Tensor
    detailed: Tensor
    keys: list[str]


def check_source_data(data: object, needed_by: str | None) -> PictureData | None:
    """Return the data, if it gives pictures.

    Args:
        data: A data module, or None.
        needed_by: What needs pictures; None where nothing does.

    Raises:
        InputError: If it gives none, or there is none and pictures are needed.
    """
    if data is not None and not isinstance(data, PictureData):
        raise InputError(
            f"--data {type(data).__name__} gives no source pictures; PictureFile, "
            "PictureFolder, ImageFolder, PictureShards or VetoedShapesPictures do"
        )
    if data is None and needed_by:
        raise InputError(
            f"{needed_by} needs source pictures; give --data PictureFolder "
            "--data.path FOLDER, for example"
        )
    return data


def read_sources(
    data: PictureData, preprocessing: Preprocessing, canvas: tuple[int, int], detailed: bool
) -> Sources:
    """Read all pictures.

    Args:
        data: The pictures.
        preprocessing: What the backbone expects.
        canvas: Height and width of the pictures that are made of them.
        detailed: Whether to read them as detailed as the canvas, too.

    Raises:
        InputError: If none can be read.
    """
    larger = max(side / own for side, own in zip(canvas, preprocessing.size, strict=True))
    finer = _read(data, preprocessing, larger)[0] if detailed and larger > 1 else None
    pictures, keys = _read(data, preprocessing)
    return Sources(pictures, pictures if finer is None else finer, keys)


def _read(
    data: PictureData, preprocessing: Preprocessing, larger: float = 1.0
) -> tuple[Tensor, list[str]]:
    """Return the pictures as the backbone sees them, or that much larger, and their keys."""
    height, width = (round(side * larger) for side in preprocessing.size)
    data.use(replace(preprocessing, size=(height, width)))
    samples = list(data.samples())
    return torch.stack([s["picture"] for s in samples]), [s["key"] for s in samples]


def digest(pictures: Tensor) -> str:
    """Return what tells pictures [S, 3, H, W] in 0..1 from others that can be seen to be such."""
    levels = pictures.mul(255).round().byte().cpu().contiguous()
    return hashlib.sha256(levels.numpy().tobytes()).hexdigest()[:16]


def measures_spectrum(image: ImageParameters) -> bool:
    """Return whether image parameters take their magnitudes from the run's own pictures."""
    return isinstance(image, FourierPhase) and image.magnitude == "measured"


def measure_spectrum(image: ImageParameters, pictures: Tensor, grid: tuple[int, int]) -> None:
    """Give image parameters the mean magnitude of pictures [S, 3, H, W], if they ask for it.

    Args:
        image: The image parameters.
        pictures: In 0..1.
        grid: Height and width of pictures as they are optimised.
    """
    if isinstance(image, FourierPhase) and image.magnitude == "measured":
        image.measured = spectrum.mean_magnitude(whole(pictures[:_SPECTRUM_PICTURES], grid))


def warn_of_other_use(data: PictureData, module: AttributionModule) -> None:
    """Warn if the pictures of a sweep were chosen for something else than a module's features."""
    if isinstance(data, SweepPictures):
        data.compare(module.backbone.name, str(module.layer), [*map(str, module.features)])


@final
class SourceAttributions:
    """What features' responses to source pictures are made of, attributed once.

    It is held in memory, and what is too much for that in a temporary file.

    Args:
        module: Whose features they are.
        sources: [S, 3, h, w] in 0..1.
        layer: Which they are attributed to; the module's own by default. At another the steps of
            its method are chosen anew, where they were open.
        rendered: Whether they are to be rendered, and thus told from zeros, or measured.
    """

    def __init__(
        self,
        module: AttributionModule,
        sources: Tensor,
        layer: Layer | None = None,
        rendered: bool = True,
    ) -> None:
        self.module, self.sources, self.layer = module, sources, layer or module.layer
        self.method = module.attribution
        if self.layer != module.layer:
            self.method = module.settled_at(self.layer, [sources])
        if rendered:
            self.method = module.from_zeros(self.method)
        self._shape = (0, *module.backbone.layout(self.layer).shape)
        self._order = [*range(len(self._shape))]  # of the dimensions, as they lie in memory
        self._responses: dict[Pair, Tensor] = {}  # in the order of the file
        self._file = SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115  goes with this
        weakref.finalize(self, self._file.close)

    def __call__(self, pairs: Sequence[Pair], at_once: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return attributions [N, ...], where activations are negative, and responses [N].

        Args:
            pairs: Which source, for which feature.
            at_once: How many pictures are attributed at once.
        """
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._responses]
        for start in range(0, len(new), at_once):
            self._add(new[start : start + at_once])
        rows = {pair: row for row, pair in enumerate(self._responses)}
        values = math.prod(self._shape[1:])
        attribution = np.empty((len(pairs), values), np.float32)
        negative = np.empty((len(pairs), values), np.bool_)
        for place, pair in enumerate(pairs):
            self._file.seek(rows[pair] * (attribution.itemsize + negative.itemsize) * values)
            for of in (attribution, negative):
                of[place] = np.frombuffer(self._file.read(of.itemsize * values), of.dtype)
        # Laid out as the network does: sums of values that lie otherwise differ in the last bit.
        shape = (len(pairs), *(self._shape[dim] for dim in self._order[1:]))
        back = np.argsort(self._order).tolist()
        maps = (torch.from_numpy(of).view(shape).permute(back) for of in (attribution, negative))
        return *maps, torch.stack([self._responses[pair] for pair in pairs])  # type: ignore[return-value]

    def _add(self, pairs: Sequence[Pair]) -> None:
        module = self.module
        activations, attribution, responses = attribute(
            module.backbone,
            self.sources[[source for source, _ in pairs]].to(module.device),
            [module.bound_features[feature] for _, feature in pairs],
            self.layer,
            self.method,
        )
        if not self._responses:
            places = sorted(self._order[1:], key=attribution.stride, reverse=True)
            self._order = [0, *places]
        self._file.seek(0, os.SEEK_END)
        for maps in zip(attribution.float(), activations < 0, strict=True):
            for of in maps:
                told = of[None].permute(self._order).contiguous().cpu()
                self._file.write(told.numpy().tobytes())
        self._responses |= zip(pairs, responses.float().cpu(), strict=True)
