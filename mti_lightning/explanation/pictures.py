"""The pictures that are explained: read from files or memory, and cut out of each other."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
from PIL import Image

from mti_lightning.backbone import Preprocessing
from mti_lightning.data.base import PictureData
from mti_lightning.data.datasets import Picture, Pictures
from mti_lightning.data.decode import MOST_ELONGATED, decode, prepare, to_rgb
from mti_lightning.data.folders import existing
from mti_lightning.errors import InputError
from mti_lightning.features.classes import one_line

MOST_PICTURES = 4  # side by side
GivenPicture = str | Path | Image.Image | np.ndarray[Any, Any]


def read_pictures(
    given: GivenPicture | Sequence[GivenPicture], crop: tuple[int, int, int, int] | None
) -> dict[str, Image.Image]:
    """Return the pictures in RGB, and the part of one, by what each is called."""
    pictures = listed(given)
    if not 1 <= len(pictures) <= MOST_PICTURES:
        raise InputError(f"{len(pictures)} pictures; give 1 to {MOST_PICTURES}")
    files = [Path(p).name for p in pictures if isinstance(p, str | Path)]
    shown: dict[str, Image.Image] = {}
    for place, picture in enumerate(pictures):
        name = f"picture {place + 1}" if len(pictures) > 1 else "picture"
        if isinstance(picture, str | Path):
            # Of the same name in another folder?
            name = Path(picture).name if files.count(Path(picture).name) == 1 else str(picture)
        name = one_line(name)
        name = f"{name}, again" if name in shown else name
        shown[name] = _rgb(picture, name)
    if crop is not None:
        if len(shown) > 1:
            raise InputError(f"crop is of one picture, to compare it with; there are {len(shown)}")
        (name, whole), (left, top, width, height) = next(iter(shown.items())), crop
        inside = left >= 0 and top >= 0 and left + width <= whole.width
        if not inside or top + height > whole.height or min(width, height) < 1:
            raise InputError(
                f"crop {left},{top},{width},{height} is not within {name}, which is "
                f"{whole.width}x{whole.height} pixels; give left,top,width,height"
            )
        part = whole.crop((left, top, left + width, top + height))
        _check_shape(part, f"crop {left},{top},{width},{height}")
        shown[f"{name}, {width}x{height} pixels from {left},{top}"] = part
    return shown


def listed(given: GivenPicture | Sequence[GivenPicture]) -> list[GivenPicture]:
    """Return the pictures that were given, of one a list of it."""
    return [given] if isinstance(given, str | Path | Image.Image | np.ndarray) else [*given]


def _rgb(picture: GivenPicture, name: str) -> Image.Image:
    if isinstance(picture, str | Path):
        path = existing(picture)
        if path.is_dir():
            raise InputError(f"{path} is a folder; name pictures")
        return decode(path)
    try:
        image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: Pillow takes no such array: {error}; give [H, W, 3]") from error
    image = to_rgb(image)
    _check_shape(image, name)
    return image


def _check_shape(image: Image.Image, name: str) -> None:
    if min(image.size) < 1 or max(image.size) > MOST_ELONGATED * min(image.size):
        raise InputError(
            f"{name} is {image.width}x{image.height} pixels; the longer side may be "
            f"{MOST_ELONGATED} times the shorter at most"
        )


class _InMemory(Pictures):
    """Pictures that are in memory."""

    def __init__(self, images: Mapping[str, Image.Image], preprocessing: Preprocessing) -> None:
        self.images, self.preprocessing = list(images.values()), preprocessing
        self.keys = list(images)

    def __getitem__(self, index: int) -> Picture:
        picture = prepare(self.images[index], self.preprocessing)
        return Picture(picture=picture, key=self.keys[index])


@final
class GivenPictures(PictureData):
    """Pictures that are in memory, as a source of inversions."""

    def __init__(self, images: Mapping[str, Image.Image]) -> None:
        super().__init__()
        self.images = images

    def _open(self, preprocessing: Preprocessing) -> _InMemory:
        return _InMemory(self.images, preprocessing)
