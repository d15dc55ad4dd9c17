"""Pictures by their index, read from where they lie on a disk."""

import errno
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import ClassVar, Final, NamedTuple, NotRequired, TypedDict

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.data import Dataset

from mti_lightning.backbone import Preprocessing
from mti_lightning.data.cache import PictureCache
from mti_lightning.data.decode import MOST_BYTES, decode, least_side, resize
from mti_lightning.errors import InputError, RunError, printable
from mti_lightning.features.feature import Feature
from mti_lightning.files import open_file

# What is wrong with one file, for good, and not with the disk.
_ODD: Final = (
    *(errno.EACCES, errno.EPERM, errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV),
    errno.EFBIG,
)


class Stamp(NamedTuple):
    """What tells a picture from another in its place.

    Where size and time are the same, nothing has to be read. Where only the time differs, the
    checksum, taken while the picture was read anyway, tells a copy from another of the same size.
    """

    size: int  # bytes
    modified: int  # of the file, or of the tar file around it, ns
    checksum: int  # CRC-32

    @classmethod
    def of_all(cls, stamps: Iterable["Stamp"]) -> "Stamp":
        """Return the stamp of what is put together of several."""
        sizes, times, checksums = zip(*stamps, strict=True)
        return cls(sum(sizes), sum(times), zlib.crc32(repr(checksums).encode()))


class Picture(TypedDict):
    """One picture, ready for a backbone that normalises by itself."""

    picture: Tensor  # [3, H, W], 0..1
    key: str  # path below the folder or tar files that were given; the vetoed shapes' own key
    stamp: NotRequired[Stamp]  # of one that was read from a disk
    without: NotRequired[Tensor]  # of a composite: it without each part, [K, 3, H, W]
    masks: NotRequired[Tensor]  # and how much of each part is in each pixel, 0..1, [K, H, W]


class Pictures(Dataset[Picture], ABC):
    """Pictures by their index; getting one that cannot be read raises `InputError`.

    Attributes:
        keys: What each is called, in order, known without reading any.
        parts: Of how many parts each is put together, where that is known; else 0.
    """

    keys: list[str]
    parts: ClassVar[int] = 0

    def __len__(self) -> int:
        return len(self.keys)

    def changed(self, index: int, stamp: Stamp) -> bool:
        """Return whether a picture is another than when it had this stamp; one drawn is not."""
        return False

    def labels(self, feature: Feature) -> list[str] | None:
        """Return what is known of each picture, for a feature; None where nothing is."""
        return None


class LostError(RunError):
    """A picture is out of reach, as of a disk that is gone; that says nothing of the picture."""


def _leads_nowhere(path: Path) -> bool:
    """Return whether it is a link to a file that is not there, in a folder that is."""
    return path.is_symlink() and Path(os.path.realpath(path)).parent.is_dir()


class StoredPictures(Pictures):
    """Pictures that are read from a disk.

    Attributes:
        reduced: Whether JPEGs that are much larger than needed are decoded at a reduced scale.
        cache: Where those that were decoded are kept, if anywhere.
    """

    root: Path
    preprocessing: Preprocessing
    reduced: bool = True
    cache: PictureCache | None = None

    @abstractmethod
    def _place(self, index: int) -> tuple[Path, int, int | None]:
        """Return a picture's file, its first byte there and its number of bytes, None for all."""

    def read(self, index: int) -> tuple[bytes, Stamp]:
        """Return a picture's bytes, and what tells it from another.

        Raises:
            InputError: If its file cannot be read.
            LostError: If the disk cannot.
        """
        path, first, size = self._place(index)
        try:
            # Opened each time, which is quick: worker processes must not share a handle.
            with open_file(path, MOST_BYTES if size is None else None) as file:
                file.seek(first)
                raw = file.read(-1 if size is None else size)
                modified = os.fstat(file.fileno()).st_mtime_ns
        except OSError as error:
            told = f"{path} cannot be read: {error.strerror}"
            if error.errno in _ODD or _leads_nowhere(path):
                raise InputError(told) from error
            raise LostError(f"{told}; is its disk still there?") from error
        return raw, Stamp(len(raw), modified, zlib.crc32(raw))

    def __getitem__(self, index: int) -> Picture:
        levels, stamp = self._cached(index) or self._decoded(index)
        return Picture(picture=levels / 255, key=self.keys[index], stamp=stamp)

    def _cached(self, index: int) -> tuple[Tensor, Stamp] | None:
        if self.cache is None:
            return None
        held = self.cache.get(*self._place(index)[:2])
        try:
            if held is None or held[1][:2] != self.state(index):
                return None
        except OSError:
            return None  # reading it will say why
        return held[0], Stamp(*held[1])

    def _decoded(self, index: int) -> tuple[Tensor, Stamp]:
        """Return a picture in 8 bit, [3, H, W]."""
        raw, stamp = self.read(index)
        least = least_side(self.preprocessing) if self.reduced else None
        image = decode(BytesIO(raw), self.root / self.keys[index], least)
        levels = resize(image, self.preprocessing)
        if self.cache is not None:
            try:
                self.cache.put(*self._place(index)[:2], levels, stamp)
            except OSError as error:
                told = f"the cache {self.cache.folder} cannot be written: {error.strerror}"
                raise LostError(told) from error
        return levels, stamp

    def changed(self, index: int, stamp: Stamp) -> bool:
        return have_changed([(self, index)], stamp)

    def state(self, index: int) -> tuple[int, int]:
        """Return a picture's size and time, as of its stamp, without reading it."""
        path, _, size = self._place(index)
        now = path.stat()
        return now.st_size if size is None else size, now.st_mtime_ns


def have_changed(places: Sequence[tuple[StoredPictures, int]], stamp: Stamp) -> bool:
    """Return whether pictures, of which one is put together, are others than by its stamp."""
    try:
        sizes, times = zip(*(pictures.state(index) for pictures, index in places), strict=True)
    except OSError:
        return True
    if sum(sizes) != stamp.size:
        return True
    if sum(times) == stamp.modified:
        return False
    now = [pictures.read(index)[1] for pictures, index in places]
    return (now[0] if len(now) == 1 else Stamp.of_all(now)).checksum != stamp.checksum


class PictureFiles(StoredPictures):
    """Picture files below a folder."""

    def __init__(self, root: Path, names: list[str], preprocessing: Preprocessing) -> None:
        self.root, self.names, self.preprocessing = root, names, preprocessing
        self.keys = [printable(name) for name in names]  # also what is no UTF-8, as \udcff

    def _place(self, index: int) -> tuple[Path, int, None]:
        return self.root / self.names[index], 0, None


class ClassFolders(PictureFiles):
    """Picture files in a folder for each class."""

    def labels(self, feature: Feature) -> list[str]:
        return [key.partition("/")[0] for key in self.keys]


class TarredPictures(StoredPictures):
    """Pictures in tar files, read from where they lie.

    Args:
        root: The folder that all tar files are below.
        tar_files: Their paths below it.
        keys: Of each picture, its tar file's path and its name in it.
        places: The index of its tar file, its first byte and its number of bytes, [N, 3].
        preprocessing: What the backbone expects.
    """

    def __init__(
        self,
        root: Path,
        tar_files: list[Path],
        keys: list[str],
        places: npt.NDArray[np.int64],
        preprocessing: Preprocessing,
    ) -> None:
        self.root, self.tar_files, self.keys, self.places = root, tar_files, keys, places
        self.preprocessing = preprocessing

    def _place(self, index: int) -> tuple[Path, int, int]:
        number, first, size = self.places[index].tolist()
        return self.root / self.tar_files[number], first, size
