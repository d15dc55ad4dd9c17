"""The data modules: a file, a folder, a folder per class, tar files."""

import os
from pathlib import Path

import numpy as np

from mti_lightning.backbone import Preprocessing
from mti_lightning.data.base import PictureData
from mti_lightning.data.cache import PictureCache
from mti_lightning.data.datasets import (
    ClassFolders,
    PictureFiles,
    StoredPictures,
    TarredPictures,
)
from mti_lightning.data.decode import decode
from mti_lightning.data.folders import existing, existing_folder, picture_names
from mti_lightning.data.shards import find_tar_files, list_members
from mti_lightning.errors import InputError, printable
from mti_lightning.files import at_home


def _check_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise InputError(f"limit {limit}: give 1 or more, or none for every picture")


class _Stored(PictureData):
    """Pictures of a disk, of which there may be many.

    Args:
        batch_size: Pictures per batch.
        num_workers: Processes that read pictures.
        reduced: Whether large JPEGs are decoded at a reduced scale.
        cache: A folder for resized pictures.
    """

    def __init__(
        self, *, batch_size: int, num_workers: int | None, reduced: bool, cache: str | Path | None
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        self.reduced = reduced
        self.cache = None if cache is None else at_home(cache)
        if self.cache and self.cache.exists() and not self.cache.is_dir():
            raise InputError(f"cache {self.cache} is no folder")

    def _as_asked(self, pictures: StoredPictures) -> StoredPictures:
        pictures.reduced = self.reduced
        if self.cache:
            pictures.cache = PictureCache(self.cache, pictures.preprocessing, self.reduced)
        return pictures


class PictureFile(PictureData):
    """One picture file, of any format Pillow reads.

    Args:
        path: The file.

    Raises:
        InputError: If it is missing or cannot be read as a picture.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(batch_size=1)
        self.path = existing(path)
        if self.path.is_dir():
            raise InputError(f"{self.path} is a folder; PictureFolder reads all its pictures")
        decode(self.path)  # at once rather than after the backbone has been built

    def _open(self, preprocessing: Preprocessing) -> PictureFiles:
        return PictureFiles(self.path.parent, [self.path.name], preprocessing)


class PictureFolder(_Stored):
    """The pictures in a folder, sorted by name; files that cannot be read are skipped and counted.

    Args:
        path: The folder. Only files with the ending of a picture format count, hidden ones do not.
        limit: Take only this many files, the first by name.
        recursive: Take the pictures in folders below it, too.
        batch_size: Pictures per batch.
        num_workers: Processes that read pictures; 0 reads them in the main one. By default one for
            every two processors beside the first, 8 at most, and 0 for fewer than 64 pictures.
        reduced: Decode JPEGs that are more than twice as large as needed at a reduced scale, which
            is faster; on average no pixel changes by more than 1 of 255.
        cache: A folder to keep resized pictures in: a second sweep of them decodes none.

    Raises:
        InputError: If the folder is missing or holds no file named like a picture.
    """

    def __init__(
        self,
        path: str | Path,
        limit: int | None = None,
        recursive: bool = False,
        *,
        batch_size: int = 32,
        num_workers: int | None = None,
        reduced: bool = True,
        cache: str | Path | None = None,
    ) -> None:
        super().__init__(
            batch_size=batch_size, num_workers=num_workers, reduced=reduced, cache=cache
        )
        _check_limit(limit)
        self.path = existing_folder(path)
        names = picture_names(self.path, recursive)
        if not names:
            holds = "holds no picture" if any(self.path.iterdir()) else "is empty"
            deeper = "" if recursive else "; recursive: true looks into the folders below it, too"
            raise InputError(
                f"folder {self.path} {holds}; give one with .jpg, .png, .webp, .tif or other files"
                f"{deeper}"
            )
        self.names = names[:limit]

    def _open(self, preprocessing: Preprocessing) -> StoredPictures:
        return self._as_asked(PictureFiles(self.path, self.names, preprocessing))


class ImageFolder(_Stored):
    """Pictures in a folder per class, as torchvision's ImageFolder has them; keys are `class/name`.

    Args:
        path: The folder that holds the folders of the classes.
        limit: Take only this many files, spread evenly over all, so that each class has its share.
        batch_size: Pictures per batch.
        num_workers: Processes that read pictures; 0 reads them in the main one. By default one for
            every two processors beside the first, 8 at most, and 0 for fewer than 64 pictures.
        reduced: Decode JPEGs that are more than twice as large as needed at a reduced scale, which
            is faster; on average no pixel changes by more than 1 of 255.
        cache: A folder to keep resized pictures in: a second sweep of them decodes none.

    Raises:
        InputError: If the folder is missing, or no folder in it holds a file named like a picture.
    """

    def __init__(
        self,
        path: str | Path,
        limit: int | None = None,
        *,
        batch_size: int = 32,
        num_workers: int | None = None,
        reduced: bool = True,
        cache: str | Path | None = None,
    ) -> None:
        super().__init__(
            batch_size=batch_size, num_workers=num_workers, reduced=reduced, cache=cache
        )
        _check_limit(limit)
        self.path = existing_folder(path)
        names = [name for name in picture_names(self.path, recursive=True) if "/" in name]
        if not names:
            raise InputError(
                f"folder {self.path} has no folder of pictures in it; give one with a folder per "
                "class, or use PictureFolder for pictures that lie directly in it"
            )
        take = min(limit or len(names), len(names))
        self.names = [names[index * len(names) // take] for index in range(take)]

    def _open(self, preprocessing: Preprocessing) -> StoredPictures:
        return self._as_asked(ClassFolders(self.path, self.names, preprocessing))


class PictureShards(_Stored):
    """The pictures in tar files, in webdataset's layout; keys are `shard-000.tar/0001.jpg`.

    Pictures are the members that have a picture format after the first dot of their names, thus
    0001.jpg, but not the 0001.json and 0001.mask.png that go with it. They are taken in the order
    they lie in.

    Args:
        path: A tar file, a folder of them, or a pattern, such as `shard-{000..012}.tar`. None may
            be compressed.
        limit: Take only this many pictures, the first.
        batch_size: Pictures per batch.
        num_workers: Processes that read pictures; 0 reads them in the main one. By default one for
            every two processors beside the first, 8 at most, and 0 for fewer than 64 pictures.
        reduced: Decode JPEGs that are more than twice as large as needed at a reduced scale, which
            is faster; on average no pixel changes by more than 1 of 255.
        cache: A folder to keep resized pictures in: a second sweep of them decodes none.

    Raises:
        InputError: If a tar file is missing, compressed, cut off or no tar file, or holds no
            picture, or one twice.
    """

    def __init__(
        self,
        path: str | Path,
        limit: int | None = None,
        *,
        batch_size: int = 32,
        num_workers: int | None = None,
        reduced: bool = True,
        cache: str | Path | None = None,
    ) -> None:
        super().__init__(
            batch_size=batch_size, num_workers=num_workers, reduced=reduced, cache=cache
        )
        _check_limit(limit)
        found = find_tar_files(path)
        self.root = Path(os.path.commonpath([tar_file.parent for tar_file in found]))
        self.tar_files = [tar_file.relative_to(self.root) for tar_file in found]
        self.keys: list[str] = []
        places = []
        for number, tar_file in enumerate(self.tar_files):
            if limit is not None and len(self.keys) >= limit:
                break
            names, inside = list_members(self.root / tar_file)
            self.keys += [printable(f"{tar_file.as_posix()}/{name}") for name in names]
            places.append(np.insert(np.array(inside, np.int64), 0, number, axis=1))  # [N, 3]
        self.keys, self.places = self.keys[:limit], np.concatenate(places)[:limit]

    def _open(self, preprocessing: Preprocessing) -> StoredPictures:
        return self._as_asked(
            TarredPictures(self.root, self.tar_files, self.keys, self.places, preprocessing)
        )
