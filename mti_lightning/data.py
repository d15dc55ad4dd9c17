"""Source pictures: a file, a folder, a folder per class, or the embedded world.

Files are decoded by Pillow, whatever their format, mode and orientation, then resized and cropped
as timm does to evaluate the backbone. What cannot be read is skipped and counted in a folder, and
an error when it is all there is.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image, ImageOps, UnidentifiedImageError
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from mti_lightning.backbone import Preprocessing
from mti_lightning.errors import InputError, nearest
from mti_lightning.vetoed_shapes import Contents, Split, VetoedShapes

# The shorter side is brought to the backbone's: one pixel by a million would fill the memory.
MOST_ELONGATED = 100
NAMED_WHEN_SKIPPED = 3


class Picture(TypedDict):
    """One picture, ready for a backbone that normalises by itself."""

    picture: Tensor  # [3, H, W], 0..1
    key: str  # path below the folder that was given; the embedded world's own key


class PictureBatch(TypedDict):
    """Several pictures at once."""

    picture: Tensor  # [N, 3, H, W], 0..1
    key: list[str]  # N


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


def decode(path: Path) -> Image.Image:
    """Read a picture file of any format Pillow knows, the first frame, upright, in 8 bit RGB.

    Raises:
        InputError: If it cannot be opened, is no picture, is cut off, too large or too narrow.
    """
    try:
        with Image.open(path) as image:
            picture = to_rgb(image)
    except UnidentifiedImageError:
        raise InputError(f"{path} is not a picture in a format that Pillow reads") from None
    except Exception as error:
        # On bad bytes a decoder raises what it trips over: SyntaxError, struct.error, IndexError.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} cannot be read as a picture: {reason}") from error
    if max(picture.size) > MOST_ELONGATED * min(picture.size):
        raise InputError(
            f"{path} is {picture.width}x{picture.height} pixels; "
            f"the longer side may be {MOST_ELONGATED} times the shorter at most"
        )
    return picture


def prepare(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """Resize and crop an RGB picture as timm does to evaluate a model: [3, H, W] in 0..1."""
    transform = create_transform(
        (3, *preprocessing.size),
        crop_pct=preprocessing.crop_pct,
        crop_mode=preprocessing.crop_mode,
        interpolation=preprocessing.interpolation,
        normalize=False,
    )
    return cast("Tensor", transform(image)) / 255


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


def _picture_names(folder: Path, recursive: bool) -> list[Path]:
    """List what is named like a picture and not hidden, sorted, relative to `folder`."""
    suffixes = {end for end, name in Image.registered_extensions().items() if name in Image.OPEN}
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        found += [
            Path(parent, name).relative_to(folder)
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in suffixes
        ]
    return sorted(found)


def _check_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise InputError(f"limit {limit}: give 1 or more, or none for every picture")


class PictureFiles(Dataset[Picture]):
    """Picture files below a folder; getting one that cannot be read raises `InputError`."""

    def __init__(self, root: Path, names: list[Path], preprocessing: Preprocessing) -> None:
        self.root, self.names, self.preprocessing = root, names, preprocessing

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Picture:
        name = self.names[index]
        picture = prepare(decode(self.root / name), self.preprocessing)
        return Picture(picture=picture, key=name.as_posix())


class ResizedShapes(Dataset[Picture]):
    """The embedded world at another size; the truth of each sample stays with it."""

    def __init__(self, world: VetoedShapes, size: tuple[int, int]) -> None:
        self.world, self.size = world, size

    def __len__(self) -> int:
        return len(self.world)

    def __getitem__(self, index: int) -> Picture:
        sample = self.world[index]
        if sample["picture"].shape[1:] != self.size:
            # Whole, whatever the backbone's crop: a shape cut off would make the truth a lie.
            sample["picture"] = torch.nn.functional.interpolate(
                sample["picture"][None], self.size, mode="bilinear", antialias=True
            )[0]  # [3, H, W]
        return sample


class _Tolerant(Dataset[Picture | str]):
    """Pictures, or the reason why one cannot be read: an error would end the pass."""

    def __init__(self, pictures: Dataset[Picture]) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Picture | str:
        try:
            return self.pictures[index]
        except InputError as error:
            return str(error)


def _part(items: list[Picture | str]) -> tuple[PictureBatch | None, list[str]]:
    pictures = [item for item in items if not isinstance(item, str)]
    reasons = [item for item in items if isinstance(item, str)]
    return (default_collate(pictures) if pictures else None), reasons


class _PictureLoader(DataLoader[Any]):
    """Batches of the readable pictures; at the end of a pass, a warning that counts the others."""

    def __iter__(self) -> Iterator[PictureBatch]:  # type: ignore[override]
        skipped: list[str] = []
        for batch, reasons in super().__iter__():
            skipped += reasons
            if batch is not None:
                yield batch
        if skipped:
            total = len(self.dataset)  # type: ignore[arg-type]
            named = "; ".join(skipped[:NAMED_WHEN_SKIPPED])
            named += "; ..." if len(skipped) > NAMED_WHEN_SKIPPED else ""
            if len(skipped) == total:
                raise InputError(f"none of the {total} pictures can be read: {named}")
            rank_zero_warn(f"skipped {len(skipped)} of {total} pictures: {named}")


class PictureData(LightningDataModule, ABC):
    """Pictures that an objective starts from, or a sweep goes through.

    Args:
        batch_size: Pictures per batch.
        num_workers: Processes that read pictures; 0 reads them in the main one.
    """

    def __init__(self, *, batch_size: int = 32, num_workers: int = 0) -> None:
        super().__init__()
        self.batch_size, self.num_workers = batch_size, num_workers
        self._pictures: Dataset[Picture] | None = None

    @abstractmethod
    def _open(self, preprocessing: Preprocessing) -> Dataset[Picture]:
        """Return the pictures, sized for a backbone."""

    def use(self, preprocessing: Preprocessing) -> None:
        """Set what the backbone expects of its pictures; call it before reading any."""
        self._pictures = self._open(preprocessing)

    @property
    def pictures(self) -> Dataset[Picture]:
        """Every picture by its index, after `use`; one that cannot be read raises `InputError`."""
        if self._pictures is None:
            raise RuntimeError("the pictures have no size yet; call use(preprocessing) first")
        return self._pictures

    def samples(self) -> Iterator[Picture]:
        """Yield the pictures that can be read, in order; warn at the end if others were skipped.

        Raises:
            InputError: If no picture can be read.
        """
        for batch in self.predict_dataloader():
            for index in range(len(batch["key"])):
                yield cast("Picture", {name: value[index] for name, value in batch.items()})

    def train_dataloader(self) -> Any:
        """Return the objective's own steps: Lightning asks the data module for them."""
        if self.trainer is None:
            raise RuntimeError("these pictures are no training data; read them with samples()")
        return self.trainer.lightning_module.train_dataloader()

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return batches of the pictures that can be read, as `samples` yields them."""
        return _PictureLoader(
            _Tolerant(self.pictures),
            batch_size=self.batch_size,  # by name, or Lightning cannot make the loader anew
            num_workers=self.num_workers,
            collate_fn=_part,
        )


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
        return PictureFiles(self.path.parent, [Path(self.path.name)], preprocessing)


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
        names = [name for name in _picture_names(self.path, recursive=True) if len(name.parts) > 1]
        if not names:
            raise InputError(
                f"folder {self.path} has no folder of pictures in it; give one with a folder per "
                "class, or use PictureFolder for pictures that lie directly in it"
            )
        take = min(limit or len(names), len(names))
        self.names = [names[index * len(names) // take] for index in range(take)]

    def _open(self, preprocessing: Preprocessing) -> PictureFiles:
        return PictureFiles(self.path, self.names, preprocessing)


class VetoedShapesPictures(PictureData):
    """Pictures of the embedded world, whose shapes and vetoes are known.

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
