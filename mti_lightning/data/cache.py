"""Pictures as a backbone takes them, kept on a disk: another sweep of them decodes none."""

import hashlib
import os
import struct
import zlib
from pathlib import Path
from typing import Final, final

import numpy as np
import PIL
import torch
from torch import Tensor

from mti_lightning.backbone import Preprocessing
from mti_lightning.files import replace_file

_Stamp = tuple[int, int, int]  # size, time and checksum, as `datasets.Stamp`
# What it is; the source's stamp; height and width; the pixels' checksum.
_HEAD: Final = struct.Struct("<4s5qI")
_KIND: Final = b"MTI1"


@final
class PictureCache:
    """Resized pictures, a file each: there whole or not at all.

    Args:
        folder: Where they lie. Those of other preprocessing lie beside them.
        preprocessing: What the backbone expects.
        reduced: Whether large JPEGs are decoded at a reduced scale.
    """

    def __init__(self, folder: Path, preprocessing: Preprocessing, reduced: bool) -> None:
        told = f"{_KIND!r} {preprocessing} {reduced} {PIL.__version__}"
        self.folder = folder / hashlib.sha256(told.encode()).hexdigest()[:16]

    def get(self, path: Path, first: int) -> tuple[Tensor, _Stamp] | None:
        """Return a picture, [3, H, W] of 8 bits, and the stamp that its source had.

        Args:
            path: The file that it was read from.
            first: Its first byte there.

        Returns:
            None where it is not there, or damaged.
        """
        try:
            raw = self._place(path, first).read_bytes()
            kind, size, modified, checksum, height, width, of_pixels = _HEAD.unpack_from(raw)
        except (OSError, struct.error):
            return None
        pixels = memoryview(raw)[_HEAD.size :]
        if kind != _KIND or len(pixels) != 3 * height * width or zlib.crc32(pixels) != of_pixels:
            return None
        values = np.frombuffer(pixels, np.uint8).reshape(3, height, width)
        return torch.from_numpy(values.copy()), (size, modified, checksum)

    def put(self, path: Path, first: int, picture: Tensor, stamp: _Stamp) -> None:
        """Keep a picture, [3, H, W] of 8 bits.

        Raises:
            OSError: If it cannot be written.
        """
        place, pixels = self._place(path, first), picture.numpy().tobytes()
        head = _HEAD.pack(_KIND, *stamp, *picture.shape[1:], zlib.crc32(pixels))
        place.parent.mkdir(parents=True, exist_ok=True)
        kind = str(os.getpid())  # others may write the same one
        replace_file(place, lambda file: file.write(head + pixels), kind, lasting=False)

    def _place(self, path: Path, first: int) -> Path:
        named = os.fsencode(path.absolute()) + f" {first}".encode()
        digest = hashlib.sha256(named).hexdigest()
        return self.folder / digest[:2] / digest[2:32]
