"""What the data modules of pictures have in common, and the batches that they load."""

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sized
from typing import Any, Final, Literal, NamedTuple

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mti_lightning.backbone import Preprocessing
from mti_lightning.data.datasets import LostError, Picture, Pictures, Stamp
from mti_lightning.errors import InputError, check_range
from mti_lightning.files import at_home
from mti_lightning.registry import public_path

NAMED_WHEN_SKIPPED = 3
_FEW: Final = 64  # pictures: read before processes are up
MOST_WORKERS: Final = 512  # more would flood any machine
# How pictures are read, not which, and to the same values.
READING: Final = ("batch_size", "num_workers", "cache")
PLACES: Final = ("path", "sweep", "cut_outs")  # arguments that say where pictures lie


class Loaded(NamedTuple):
    """A batch that was asked for: what could be read of it, and why the rest could not.

    Attributes:
        indices: Of each picture that was read, [N].
        pictures: [N, 3, H, W] in 0..1.
        unreadable: The reason for each index that could not be read.
        stamps: Of each index that was read from a disk.
        without: Of composites, the pictures without each of their parts, [N, K, 3, H, W].
        masks: How much of each part is in each pixel, 0..1, [N, K, H, W].
    """

    indices: Tensor
    pictures: Tensor
    unreadable: dict[int, str]
    stamps: dict[int, Stamp]
    without: Tensor | None = None
    masks: Tensor | None = None


_Item = tuple[int, Picture | str | LostError]


class _Tolerant(Dataset[_Item]):
    """Pictures, or the reason why one cannot be read: an error would end the pass."""

    def __init__(self, pictures: Pictures) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> _Item:
        try:
            return index, self.pictures[index]
        except InputError as error:
            return index, str(error)
        except LostError as error:
            return index, error


def _loaded(items: list[_Item]) -> Loaded | LostError:
    for _, item in items:
        if isinstance(item, LostError):
            return item
    read = {index: item for index, item in items if isinstance(item, dict)}
    reasons = {index: item for index, item in items if isinstance(item, str)}
    stamps = {index: item["stamp"] for index, item in read.items() if "stamp" in item}
    indices = torch.tensor([*read], dtype=torch.long)
    pictures = [item["picture"] for item in read.values()]
    stacked = torch.stack(pictures) if pictures else torch.empty(0, 3, 0, 0)
    parts = [(item["without"], item["masks"]) for item in read.values() if "without" in item]
    of_parts = [torch.stack(values) for values in zip(*parts, strict=True)] or (None, None)
    return Loaded(indices, stacked, reasons, stamps, *of_parts)


class _Loader(DataLoader[Any]):
    """Raises here what a process that loads pictures would wrap in its own traceback."""

    def __iter__(self) -> Iterator[Loaded]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, LostError):
                raise batch
            yield batch


def _workers(pictures: int) -> int:
    """Return how many processes are worth it to read some pictures: the network needs some, too."""
    if pictures < _FEW:
        return 0
    processors = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes of this run
    return min(8, max(0, processors // beside - 1) // 2)


class PictureData(LightningDataModule, ABC):
    """Pictures that an objective starts from, or a sweep goes through.

    Args:
        batch_size: Pictures per batch.
        num_workers: Processes that read pictures; 0 reads them in the main one; None: as many as
            are worth it.

    Raises:
        InputError: If one of them is out of range.
    """

    def __init__(self, *, batch_size: int = 32, num_workers: int | None = 0) -> None:
        super().__init__()
        check_range(1, batch_size=batch_size)
        check_range(0, num_workers=num_workers or 0)
        check_range(0, MOST_WORKERS, num_workers=num_workers or 0)
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

    def loader(self, indices: Iterable[int], of: Pictures | None = None) -> DataLoader[Any]:
        """Return `Loaded` batches of the pictures at some indices, after `use`.

        Args:
            indices: Which.
            of: Others than its own, made from these.
        """
        workers = self.num_workers
        if workers is None:
            workers = _workers(len(indices) if isinstance(indices, Sized) else 0)
        trainer: Any = self.trainer
        return _Loader(
            _Tolerant(of or self.pictures),  # by name, or Lightning cannot make the loader anew
            batch_size=self.batch_size,
            sampler=indices,
            num_workers=workers,
            collate_fn=_loaded,
            # Then a copy to the device does not keep anything waiting.
            pin_memory=trainer is not None and trainer.strategy.root_device.type == "cuda",
        )

    @property
    def provenance(self) -> dict[str, Any]:
        """The class and arguments that open the same pictures again, as JSON."""
        arguments = {
            name: value
            for name, value in self.hparams.items()
            if name not in READING and name[0] != "_"
        }
        for name in {*PLACES} & {*arguments}:  # found again from any working directory
            if arguments[name] is not None:
                arguments[name] = str(at_home(arguments[name]).absolute())
        return {
            "class_path": public_path(type(self)),
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
