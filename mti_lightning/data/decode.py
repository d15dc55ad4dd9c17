"""From the bytes of a picture to what a backbone takes.

Pillow decodes, whatever the format, mode and orientation; then a picture is resized and cropped as
timm does to evaluate the backbone.
"""

import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from math import ceil
from pathlib import Path
from typing import IO, BinaryIO, Final

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError
from timm.data.transforms_factory import create_transform
from torch import Tensor

from mti_lightning.backbone import Preprocessing
from mti_lightning.errors import InputError, reason_of
from mti_lightning.files import open_file
from mti_lightning.log import log_info

# The shorter side is brought to the backbone's: one pixel by a million would fill the memory.
MOST_ELONGATED = 100
MOST_BYTES: Final = 2**30  # of a picture's file
_SEEN = 16  # of 255: a cut-out's edge is where it is more opaque
MOST_MEGAPIXELS: Final = "MTI_LIGHTNING_MOST_MEGAPIXELS"

# Programs that draw write how they did so beside the pixels, some megabytes of it.
PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, 2**24)
PngImagePlugin.MAX_TEXT_MEMORY = max(PngImagePlugin.MAX_TEXT_MEMORY, 2**28)


# Programs that another one would run, drawings of Windows, and what is no picture at all.
_MAX_SAMPLE_VALUE: Final = 281  # TIFF's tag
_NOT_READ = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}


def formats() -> list[str]:
    """Return the names of the formats that pictures are read in, whatever a file is called."""
    Image.init()
    return [name for name in Image.ID if name not in _NOT_READ]


def suffixes() -> set[str]:
    """Return the endings of the picture formats that are read, such as `.png`."""
    known = formats()
    # Pillow reads .mpo, which it does not list, as .jpg may be of that format, too.
    return {".mpo"} | {end for end, n in Image.registered_extensions().items() if n in known}


def _told_white(image: Image.Image) -> int | None:
    """Return which value of 16 bits a file says is white; None if it says nothing.

    A PNG that tells its significant bits (sBIT) has them spread over all 16, as the format asks
    for. Pillow spreads those of PGM itself. TIFF has a tag.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        told = image.tag_v2.get(_MAX_SAMPLE_VALUE)
        told = told[0] if isinstance(told, tuple) else told
        return told if isinstance(told, int) and told > 0 else None
    spread = image.format == "PPM" or (
        image.format == "PNG" and _has_chunk(getattr(image, "fp", None), b"sBIT")
    )
    return 65535 if spread else None


def _has_chunk(file: IO[bytes] | None, wanted: bytes) -> bool:
    """Say whether a PNG has a chunk before its pixels."""
    if file is None:
        return False
    place = file.tell()
    try:
        file.seek(8)
        while len(head := file.read(8)) == 8 and head[4:] not in (b"IDAT", b"IEND"):
            if head[4:] == wanted:
                return True
            file.seek(int.from_bytes(head[:4], "big") + 4, 1)  # and its checksum
        return False
    finally:
        file.seek(place)


@cache
def _say_assumed(white: int) -> None:
    log_info(
        f"16-bit pictures that hold nothing above {white}, and do not say which value is white, "
        f"are taken for {white.bit_length()} bits in 16: a dark one comes out too bright. A PNG "
        "says it by sBIT, a TIFF by MaxSampleValue"
    )


def _grey_levels(image: Image.Image, told: int | None) -> Image.Image:
    """Bring 16 or 32 bit integers or floats to 8 bit, which `convert` would clip to white.

    Args:
        image: The picture.
        told: Its white, if it says so.
    """
    values = np.asarray(image).astype(np.float64)  # [H, W]; in place from here: it may be large
    finite = np.isfinite(values)
    if not finite.any():
        raise ValueError("it holds no finite value")
    low = values.min(where=finite, initial=np.inf)
    high = values.max(where=finite, initial=-np.inf)
    np.nan_to_num(np.clip(values, low, high, out=values), copy=False, nan=low)
    # Cameras store 12 bit in 16; 32 bit integers hold any. What fits no usual range is stretched.
    whites = (1,) if image.mode == "F" else (255, 4095, 65535)
    if told is not None and high <= told:
        whites = (told,)
    fitting = [white for white in whites if low >= 0 and high <= white]
    if told is None and image.mode.startswith("I;16") and fitting[0] < whites[-1]:
        _say_assumed(fitting[0])
    black, white = (0, fitting[0]) if fitting else (low, high)
    values -= black
    values /= max(white - black, np.finfo(np.float64).tiny)
    values *= 255
    return Image.fromarray(np.round(values, out=values).astype(np.uint8))


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a picture of any mode upright and in 8 bit RGB, transparency laid over mid-grey."""
    told = _told_white(image) if image.mode.startswith("I") else None
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _grey_levels(image, told)
    if image.has_transparency_data:
        # Mid-grey is nearest to nothing for a backbone. White or black would be a surface of its
        # own, with a strong edge around the subject that is not in the picture.
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (128, 128, 128, 255)), image)
    return image.convert("RGB")


def decode(
    file: Path | BinaryIO, name: Path | None = None, least: int | None = None
) -> Image.Image:
    """Read a picture of any format Pillow knows, the first frame, upright, in 8 bit RGB.

    Args:
        file: Its path, or a stream that can seek.
        name: What errors call it; with a path that is the path by default.
        least: Decode a JPEG at a half, a quarter or an eighth of its size, which takes less time,
            where its shorter side keeps at least so many pixels; None: at its own.

    Raises:
        InputError: If it cannot be opened, is no picture, is cut off, too large or too narrow.
    """
    return _decode(file, to_rgb, name, least)


def decode_cut_out(file: Path | BinaryIO, name: Path | None = None) -> Image.Image:
    """Read a picture with transparency, upright, in 8 bit RGBA, cropped to what can be seen.

    Raises:
        InputError: If it cannot be read, as `decode` says, or nothing in it can be seen.
    """
    picture = _decode(file, lambda image: ImageOps.exif_transpose(image).convert("RGBA"), name)
    box = picture.getchannel("A").point(lambda opaque: 255 * (opaque > _SEEN)).getbbox()
    if box is None:
        raise InputError(f"{name or file} is transparent all over")
    return picture.crop(box)


def _decode(
    file: Path | BinaryIO,
    convert: Callable[[Image.Image], Image.Image],
    name: Path | None = None,
    least: int | None = None,
) -> Image.Image:
    called = name or file
    try:
        with ExitStack() as opened:
            source: IO[bytes] = open_file(file, MOST_BYTES) if isinstance(file, Path) else file
            if source is not file:
                opened.enter_context(source)
            image = opened.enter_context(Image.open(source, formats=formats()))
            _check_size(image)
            picture = convert(_reduced(image, least) if least else image)
    except UnidentifiedImageError:
        raise InputError(f"{called} is not a picture in a format that Pillow reads") from None
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise InputError(f"{called} cannot be read: {error.strerror}") from error
        # On bad bytes a decoder raises what it trips over: SyntaxError, struct.error, IndexError.
        raise InputError(f"{called} cannot be read as a picture: {reason_of(error)}") from error
    if max(picture.size) > MOST_ELONGATED * min(picture.size):
        raise InputError(
            f"{called} is {picture.width}x{picture.height} pixels; "
            f"the longer side may be {MOST_ELONGATED} times the shorter at most"
        )
    return picture


def _reduced(image: Image.Image, least: int) -> Image.Image:
    """Have a JPEG be decoded at a half, a quarter or an eighth, no side below `least` pixels."""
    drafted = image.draft(image.mode, (least, least)) if image.format == "JPEG" else None
    if drafted is None or drafted[1][2:] == image.size:
        return image
    # The last row and column stand for fewer pixels: what was there is not to move.
    return image.resize(image.size, Image.Resampling.BICUBIC, drafted[1])


def _check_size(image: Image.Image) -> None:
    """Make sure that a picture is not so large that a small file of it fills the memory.

    Raises:
        ValueError: If it is.
    """
    most = float(os.environ.get(MOST_MEGAPIXELS, "89"))
    if (megapixels := image.width * image.height / 1e6) > most:
        raise ValueError(
            f"it has {megapixels:.0f} megapixels, and {most:g} are read at most; "
            f"{MOST_MEGAPIXELS} in the environment allows more"
        )


@cache
def _transform(preprocessing: Preprocessing) -> Callable[[Image.Image], Tensor]:
    transform: Callable[[Image.Image], Tensor] = create_transform(
        (3, *preprocessing.size),
        crop_pct=preprocessing.crop_pct,
        crop_mode=preprocessing.crop_mode,
        interpolation=preprocessing.interpolation,
        normalize=False,
    )
    return transform


def least_side(preprocessing: Preprocessing) -> int | None:
    """Return how many pixels the shorter side has to keep, more than twice what is seen of it.

    Then pixels differ by less than 1 of 255 on average from those of the whole picture.
    """
    if preprocessing.interpolation == "nearest":
        return None  # single pixels count
    return ceil(2.5 * max(preprocessing.size) / preprocessing.crop_pct)


def resize(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """Resize and crop an RGB picture as timm does to evaluate a model: [3, H, W] of 8 bits."""
    return _transform(preprocessing)(image)


def prepare(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """Resize and crop an RGB picture as timm does to evaluate a model: [3, H, W] in 0..1."""
    return resize(image, preprocessing) / 255
