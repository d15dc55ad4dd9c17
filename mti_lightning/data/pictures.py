"""Source pictures: a file, a folder, a folder per class, tar files, or the vetoed shapes.

Files are decoded by Pillow, whatever their format, mode and orientation, then resized and cropped
as timm does to evaluate the backbone. What cannot be read is skipped and counted in a folder, and
an error when it is all there is.
"""

import os
import tarfile
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final, Literal, NamedTuple, NotRequired, TypedDict, cast

import numpy as np
import numpy.typing as npt
import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image, ImageOps, UnidentifiedImageError
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from webdataset.shardlists import expand_urls
from webdataset.tariterators import base_plus_ext

from mti_lightning.backbone.network import Preprocessing
from mti_lightning.errors import InputError, check_range, nearest
from mti_lightning.features.feature import Feature
from mti_lightning.vetoed_shapes.world import KINDS, Contents, Split, VetoedShapes, veto_of

# The shorter side is brought to the backbone's: one pixel by a million would fill the memory.
MOST_ELONGATED = 100
NAMED_WHEN_SKIPPED = 3
_READING = ("batch_size", "num_workers")  # how pictures are read, not which
PLACES: Final = ("path", "sweep")  # arguments that say where pictures lie


class Stamp(NamedTuple):
    """What tells a picture from another in its place.

    Where size and time are the same, nothing has to be read. Where only the time differs, the
    checksum, taken while the picture was read anyway, tells a copy from another of the same size.
    """

    size: int  # bytes
    modified: int  # of the file, or of the tar file around it, ns
    checksum: int  # CRC-32


class Picture(TypedDict):
    """One picture, ready for a backbone that normalises by itself."""

    picture: Tensor  # [3, H, W], 0..1
    key: str  # path below the folder or tar files that were given; the vetoed shapes' own key
    stamp: NotRequired[Stamp]  # of one that was read from a disk


def _grey_levels(image: Image.Image) -> Image.Image:
    """Bring 16 or 32 bit integers or floats to 8 bit, which `convert` would clip to white."""
    values = np.asarray(image).astype(np.float64)  # [H, W]
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise ValueError("it holds no finite value")
    low, high = finite.min(), finite.max()
    values = np.nan_to_num(np.clip(values, low, high), nan=low)
    # 32 bit integers mostly hold 8 or 16 bit data; what fits no usual range is stretched.
    whites = {"F": (1,), "I": (255, 65535)}.get(image.mode, (65535,))
    fitting = [white for white in whites if low >= 0 and high <= white]
    black, white = (0, fitting[0]) if fitting else (low, high)
    levels = (values - black) / max(white - black, np.finfo(np.float64).tiny)
    return Image.fromarray(np.round(levels * 255).astype(np.uint8))


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a picture of any mode upright and in 8 bit RGB, transparency laid over mid-grey."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _grey_levels(image)
    if image.has_transparency_data:
        # Mid-grey is nearest to nothing for a backbone. White or black would be a surface of its
        # own, with a strong edge around the subject that is not in the picture.
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (128, 128, 128, 255)), image)
    return image.convert("RGB")


def decode(file: Path | BinaryIO, name: Path | None = None) -> Image.Image:
    """Read a picture of any format Pillow knows, the first frame, upright, in 8 bit RGB.

    Args:
        file: Its path, or a stream that can seek.
        name: What errors call it; with a path that is the path by default.

    Raises:
        InputError: If it cannot be opened, is no picture, is cut off, too large or too narrow.
    """
    called = name or file
    try:
        with Image.open(file) as image:
            picture = to_rgb(image)
    except UnidentifiedImageError:
        raise InputError(f"{called} is not a picture in a format that Pillow reads") from None
    except Exception as error:
        # On bad bytes a decoder raises what it trips over: SyntaxError, struct.error, IndexError.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{called} cannot be read as a picture: {reason}") from error
    if max(picture.size) > MOST_ELONGATED * min(picture.size):
        raise InputError(
            f"{called} is {picture.width}x{picture.height} pixels; "
            f"the longer side may be {MOST_ELONGATED} times the shorter at most"
        )
    return picture


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


def prepare(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """Resize and crop an RGB picture as timm does to evaluate a model: [3, H, W] in 0..1."""
    return _transform(preprocessing)(image) / 255


def _existing(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if not path.exists():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(f"{path} does not exist{nearest(path.name, siblings)}")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path} may not be read; check its permissions")
    return path


def _folder(path: str | Path) -> Path:
    path = _existing(path)
    if not path.is_dir():
        raise InputError(f"{path} is a file, not a folder; PictureFile reads a single picture")
    return path


def _suffixes() -> set[str]:
    return {end for end, name in Image.registered_extensions().items() if name in Image.OPEN}


def _picture_names(folder: Path, recursive: bool) -> list[str]:
    """List what is named like a picture and not hidden, sorted, relative to `folder`."""
    suffixes = _suffixes()
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        below = Path(parent).relative_to(folder).parts
        found += [  # as tuples and texts: a Path for each of a million files takes long
            (*below, name)
            for name in files
            if not name.startswith(".") and name[name.rfind(".") :].lower() in suffixes
        ]
    return ["/".join(parts) for parts in sorted(found)]


def _tar_files(path: str | Path) -> list[Path]:
    """List the tar files that a path or brace pattern names, each once.

    Raises:
        InputError: If one is missing, a folder holds none, or the braces say nothing.
    """
    text = str(path)
    pattern = "{" in text and not Path(text).expanduser().exists()  # a folder may be called {x}
    try:
        names = expand_urls(text) if pattern else [text]
    except (ValueError, AssertionError) as error:  # unbalanced; ${NAME} of the environment
        raise InputError(f"{path} is no brace pattern: {error}") from error
    if pattern and names == [text]:
        raise InputError(
            f"the braces in {path} name nothing; give a range, {{000..012}}, or a list, {{a,b}}"
        )
    found: list[Path] = []
    for place in map(_existing, names):
        if place.is_dir():
            inside = sorted(file for file in place.glob("*.tar") if file.name[0] != ".")
            if not inside:
                raise InputError(
                    f"folder {place} holds no .tar file; PictureFolder reads a folder of pictures"
                )
            found += inside
        else:
            found.append(place)
    return list(dict.fromkeys(found))


def _members(tar_file: Path) -> tuple[list[str], list[tuple[int, int]]]:
    """List the pictures in a tar file: their names, and where each begins and its bytes.

    webdataset says what shard patterns and members' names mean (`expand_urls`, `base_plus_ext`). It
    is not used for reading, which it does as a stream that ends at the first damage: a sweep names
    all pictures at the start, shares them out, goes on in the middle, and goes past a broken one.

    Raises:
        InputError: If it is no plain tar file, is cut off, or holds no picture, or one twice.
    """
    suffixes = _suffixes()
    names: list[str] = []
    places: list[tuple[int, int]] = []
    try:
        # "r:" is without compression: what is compressed can only be read from its beginning.
        with (
            tar_file.open("rb") as file,
            tarfile.open(fileobj=file, mode="r:", errors="backslashreplace") as tar,
        ):
            with suppress(tarfile.ReadError):  # the end is looked at below
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # it keeps every header
                    _, end = base_plus_ext(member.name)
                    if member.isreg() and end is not None and f".{end.lower()}" in suffixes:
                        names.append(str(PurePosixPath(member.name)))
                        places.append((member.offset_data, member.size))
            # A header that is damaged or missing looks like the end to tarfile.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise InputError(
                    f"{tar_file} is cut off or damaged at byte {tar.offset}, after {len(names)} "
                    "pictures; fetch or make it anew"
                )
    except tarfile.ReadError as error:
        raise InputError(
            f"{tar_file} is not a tar file, or a compressed one; give a plain one"
        ) from error
    except OSError as error:
        raise InputError(f"{tar_file} cannot be read: {error.strerror}") from error
    if not names:
        raise InputError(
            f"{tar_file} holds no picture; give one with 0001.jpg, 0001.png or other pictures, "
            "with no further dot in their names"
        )
    twice, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise InputError(f"{tar_file} holds {twice} twice; each picture needs a name of its own")
    return names, places


def _check_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise InputError(f"limit {limit}: give 1 or more, or none for every picture")


class Pictures(Dataset[Picture], ABC):
    """Pictures by their index; getting one that cannot be read raises `InputError`.

    Attributes:
        keys: What each is called, in order, known without reading any.
    """

    keys: list[str]

    def __len__(self) -> int:
        return len(self.keys)

    def changed(self, index: int, stamp: Stamp) -> bool:
        """Return whether a picture is another than when it had this stamp; one drawn is not."""
        return False

    def labels(self, feature: Feature) -> list[str] | None:
        """Return what is known of each picture, for a feature; None where nothing is."""
        return None


class _Stored(Pictures):
    """Pictures that are read from a disk."""

    root: Path
    preprocessing: Preprocessing

    @abstractmethod
    def _place(self, index: int) -> tuple[Path, int, int | None]:
        """Return a picture's file, its first byte there and its number of bytes, None for all."""

    def _read(self, index: int) -> tuple[bytes, Stamp]:
        path, first, size = self._place(index)
        try:
            # Opened each time, which is quick: worker processes must not share a handle.
            with path.open("rb") as file:
                file.seek(first)
                raw = file.read(size)
                modified = os.fstat(file.fileno()).st_mtime_ns
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from error
        return raw, Stamp(len(raw), modified, zlib.crc32(raw))

    def __getitem__(self, index: int) -> Picture:
        raw, stamp = self._read(index)
        key = self.keys[index]
        image = decode(BytesIO(raw), self.root / key)
        return Picture(picture=prepare(image, self.preprocessing), key=key, stamp=stamp)

    def changed(self, index: int, stamp: Stamp) -> bool:
        path, _, size = self._place(index)
        try:
            now = path.stat()
        except OSError:
            return True
        if (now.st_size if size is None else size) != stamp.size:
            return True
        return now.st_mtime_ns != stamp.modified and self._read(index)[1].checksum != stamp.checksum


class PictureFiles(_Stored):
    """Picture files below a folder."""

    def __init__(self, root: Path, names: list[str], preprocessing: Preprocessing) -> None:
        self.root, self.names, self.preprocessing = root, names, preprocessing
        # What is no UTF-8 in a name is shown as it is of a picture in a tar file, as \udcff.
        self.keys = [name.encode(errors="backslashreplace").decode() for name in names]

    def _place(self, index: int) -> tuple[Path, int, None]:
        return self.root / self.names[index], 0, None


class ClassFolders(PictureFiles):
    """Picture files in a folder for each class."""

    def labels(self, feature: Feature) -> list[str]:
        return [key.partition("/")[0] for key in self.keys]


class TarredPictures(_Stored):
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


class ResizedShapes(Pictures):
    """The vetoed shapes at another size; the truth of each sample stays with it."""

    def __init__(self, world: VetoedShapes, size: tuple[int, int]) -> None:
        self.world, self.size = world, size
        self.keys = [world.key(index) for index in range(len(world))]

    def __getitem__(self, index: int) -> Picture:
        sample = self.world[index]
        if sample["picture"].shape[1:] != self.size:
            # Whole, whatever the backbone's crop: a shape cut off would make the truth a lie.
            sample["picture"] = torch.nn.functional.interpolate(
                sample["picture"][None], self.size, mode="bilinear", antialias=True
            )[0]  # [3, H, W]
        return cast("Picture", sample)  # and more

    def labels(self, feature: Feature) -> list[str] | None:
        """Return, for a class of the world, whether its shape and its veto are there."""
        kind = feature.channel
        if feature.layer != "fc" or kind is None or not 0 <= kind < len(KINDS):
            return None
        shape, veto = KINDS[kind], KINDS[veto_of(kind)]
        found = {(1, 1): f"{shape} and {veto}", (1, 0): shape, (0, 1): veto, (0, 0): "neither"}
        return [
            found[kind in kinds, veto_of(kind) in kinds]
            for kinds in map(self.world.kinds, range(len(self)))
        ]


class Loaded(NamedTuple):
    """A batch that was asked for: what could be read of it, and why the rest could not.

    Attributes:
        indices: Of each picture that was read, [N].
        pictures: [N, 3, H, W] in 0..1.
        unreadable: The reason for each index that could not be read.
        stamps: Of each index that was read from a disk.
    """

    indices: Tensor
    pictures: Tensor
    unreadable: dict[int, str]
    stamps: dict[int, Stamp]


class _Tolerant(Dataset[tuple[int, Picture | str]]):
    """Pictures, or the reason why one cannot be read: an error would end the pass."""

    def __init__(self, pictures: Pictures) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[int, Picture | str]:
        try:
            return index, self.pictures[index]
        except InputError as error:
            return index, str(error)


def _loaded(items: list[tuple[int, Picture | str]]) -> Loaded:
    read = {index: item for index, item in items if not isinstance(item, str)}
    reasons = {index: item for index, item in items if isinstance(item, str)}
    stamps = {index: item["stamp"] for index, item in read.items() if "stamp" in item}
    indices = torch.tensor([*read], dtype=torch.long)
    pictures = [item["picture"] for item in read.values()]
    stacked = torch.stack(pictures) if pictures else torch.empty(0, 3, 0, 0)
    return Loaded(indices, stacked, reasons, stamps)


class PictureData(LightningDataModule, ABC):
    """Pictures that an objective starts from, or a sweep goes through.

    Args:
        batch_size: Pictures per batch.
        num_workers: Processes that read pictures; 0 reads them in the main one.

    Raises:
        InputError: If one of them is out of range.
    """

    def __init__(self, *, batch_size: int = 32, num_workers: int = 0) -> None:
        super().__init__()
        check_range(1, batch_size=batch_size)
        check_range(0, num_workers=num_workers)
        self.batch_size, self.num_workers = batch_size, num_workers
        self._pictures: Pictures | None = None
        self.save_hyperparameters(logger=False)

    @abstractmethod
    def _open(self, preprocessing: Preprocessing) -> Pictures:
        """Return the pictures, sized for a backbone."""

    def use(self, preprocessing: Preprocessing) -> None:
        """Set what the backbone expects of its pictures; call it before reading any."""
        self._pictures = self._open(preprocessing)

    @property
    def pictures(self) -> Pictures:
        """Every picture by its index, after `use`; one that cannot be read raises `InputError`."""
        if self._pictures is None:
            raise RuntimeError("the pictures have no size yet; call use(preprocessing) first")
        return self._pictures

    def samples(self) -> Iterator[Picture]:
        """Yield the pictures that can be read, in order; warn at the end if others were skipped.

        Raises:
            InputError: If no picture can be read.
        """
        unreadable: list[str] = []
        for batch in self.loader(range(len(self.pictures))):
            unreadable += batch.unreadable.values()
            for index, picture in zip(batch.indices.tolist(), batch.pictures, strict=True):
                yield Picture(picture=picture, key=self.pictures.keys[index])
        if unreadable:
            total = len(self.pictures)
            named = "; ".join(unreadable[:NAMED_WHEN_SKIPPED])
            named += "; ..." if len(unreadable) > NAMED_WHEN_SKIPPED else ""
            if len(unreadable) == total:
                raise InputError(f"none of the {total} pictures can be read: {named}")
            rank_zero_warn(f"skipped {len(unreadable)} of {total} pictures: {named}")

    def loader(self, indices: Iterable[int]) -> DataLoader[Any]:
        """Return `Loaded` batches of the pictures at some indices, after `use`."""
        return DataLoader(
            _Tolerant(self.pictures),  # by name, or Lightning cannot make the loader anew
            batch_size=self.batch_size,
            sampler=indices,
            num_workers=self.num_workers,
            collate_fn=_loaded,
        )

    @property
    def provenance(self) -> dict[str, Any]:
        """The class and arguments that open the same pictures again, as JSON."""
        arguments = {
            name: value
            for name, value in self.hparams.items()
            if name not in _READING and name[0] != "_"
        }
        for name in {*PLACES} & {*arguments}:  # found again from any working directory
            arguments[name] = str(Path(arguments[name]).expanduser().absolute())
        return {
            "class_path": f"{type(self).__module__}.{type(self).__name__}",
            "init_args": arguments,
        }

    def serve(self, stage: Literal["train", "val", "predict"], batches: Iterable[Any]) -> None:
        """Hand these batches out: the run's model knows them, but Lightning asks its data alone.

        Each stage for itself: what has batches to validate with is expected to do so in a fit, too.
        """
        setattr(self, f"{stage}_dataloader", lambda: batches)

    def train_dataloader(self) -> Any:
        raise RuntimeError("these pictures are no training data; read them with samples()")

    def predict_dataloader(self) -> Any:
        raise RuntimeError("there is no sweep; read these pictures with samples()")


class PictureFile(PictureData):
    """One picture file, of any format Pillow reads.

    Args:
        path: The file.

    Raises:
        InputError: If it is missing or cannot be read as a picture.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(batch_size=1)
        self.path = _existing(path)
        if self.path.is_dir():
            raise InputError(f"{self.path} is a folder; PictureFolder reads all its pictures")
        decode(self.path)  # at once rather than after the backbone has been built

    def _open(self, preprocessing: Preprocessing) -> PictureFiles:
        return PictureFiles(self.path.parent, [self.path.name], preprocessing)


class PictureFolder(PictureData):
    """The pictures in a folder, sorted by name; files that cannot be read are skipped and counted.

    Args:
        path: The folder. Only files with the ending of a picture format count, hidden ones do not.
        limit: Take only this many files, the first by name.
        recursive: Take the pictures in folders below it, too.
        batch_size: Pictures per batch.
        num_workers: Processes that read pictures; 0 reads them in the main one.

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
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        _check_limit(limit)
        self.path = _folder(path)
        names = _picture_names(self.path, recursive)
        if not names:
            holds = "holds no picture" if any(self.path.iterdir()) else "is empty"
            deeper = "" if recursive else "; recursive: true looks into the folders below it, too"
            raise InputError(
                f"folder {self.path} {holds}; give one with .jpg, .png, .webp, .tif or other files"
                f"{deeper}"
            )
        self.names = names[:limit]

    def _open(self, preprocessing: Preprocessing) -> PictureFiles:
        return PictureFiles(self.path, self.names, preprocessing)


class ImageFolder(PictureData):
    """Pictures in a folder per class, as torchvision's ImageFolder has them; keys are `class/name`.

    Args:
        path: The folder that holds the folders of the classes.
        limit: Take only this many files, spread evenly over all, so that each class has its share.
        batch_size: Pictures per batch.
        num_workers: Processes that read pictures; 0 reads them in the main one.

    Raises:
        InputError: If the folder is missing, or no folder in it holds a file named like a picture.
    """

    def __init__(
        self,
        path: str | Path,
        limit: int | None = None,
        *,
        batch_size: int = 32,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        _check_limit(limit)
        self.path = _folder(path)
        names = [name for name in _picture_names(self.path, recursive=True) if "/" in name]
        if not names:
            raise InputError(
                f"folder {self.path} has no folder of pictures in it; give one with a folder per "
                "class, or use PictureFolder for pictures that lie directly in it"
            )
        take = min(limit or len(names), len(names))
        self.names = [names[index * len(names) // take] for index in range(take)]

    def _open(self, preprocessing: Preprocessing) -> ClassFolders:
        return ClassFolders(self.path, self.names, preprocessing)


class PictureShards(PictureData):
    """The pictures in tar files, in webdataset's layout; keys are `shard-000.tar/0001.jpg`.

    Pictures are the members that have a picture format after the first dot of their names, thus
    0001.jpg, but not the 0001.json and 0001.mask.png that go with it. They are taken in the order
    they lie in.

    Args:
        path: A tar file, a folder of them, or a pattern, such as `shard-{000..012}.tar`. None may
            be compressed.
        limit: Take only this many pictures, the first.
        batch_size: Pictures per batch.
        num_workers: Processes that read pictures; 0 reads them in the main one.

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
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        _check_limit(limit)
        found = _tar_files(path)
        self.root = Path(os.path.commonpath([tar_file.parent for tar_file in found]))
        self.tar_files = [tar_file.relative_to(self.root) for tar_file in found]
        self.keys: list[str] = []
        places = []
        for number, tar_file in enumerate(self.tar_files):
            if limit is not None and len(self.keys) >= limit:
                break
            names, inside = _members(self.root / tar_file)
            self.keys += [f"{tar_file.as_posix()}/{name}" for name in names]
            places.append(np.insert(np.array(inside, np.int64), 0, number, axis=1))  # [N, 3]
        self.keys, self.places = self.keys[:limit], np.concatenate(places)[:limit]

    def _open(self, preprocessing: Preprocessing) -> TarredPictures:
        return TarredPictures(self.root, self.tar_files, self.keys, self.places, preprocessing)


class VetoedShapesPictures(PictureData):
    """Pictures of the vetoed shapes, whose shapes and vetoes are known.

    Args:
        size: Number of pictures.
        seed: Seed of the world.
        split: `train`, `validation` or `test`; no picture is in two splits.
        contents: `random`: one to three different shapes. `tense`: shape k = index mod 8 and its
            veto. `overlap`: as `tense`, the two drawn over each other.
        batch_size: Pictures per batch.
        num_workers: Processes that draw pictures; 0 draws them in the main one.

    Raises:
        InputError: If `size` is not positive, `seed` is negative, or `split` or `contents` is none
            of these.
    """

    def __init__(
        self,
        size: int = 16,
        seed: int = 0,
        split: Split = "test",
        contents: Contents = "tense",
        *,
        batch_size: int = 32,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        self.world = VetoedShapes(size, seed, split, contents)

    def _open(self, preprocessing: Preprocessing) -> ResizedShapes:
        return ResizedShapes(self.world, preprocessing.size)
