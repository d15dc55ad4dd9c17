"""Writing a sweep's store: its beginning, block by block, and the maps that are kept in the end."""

import errno
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, final

import numpy as np
import zarr

from mti_lightning.backbone import ActivationLayout
from mti_lightning.data.datasets import Stamp
from mti_lightning.errors import InputError, RunError
from mti_lightning.files import FULL, beside, sync_disk, unwritable
from mti_lightning.images.boxes import Box
from mti_lightning.superposition.interference import FeatureProfiles
from mti_lightning.sweep.intact import CODECS, EVERY_CHUNK, reading, sealed
from mti_lightning.sweep.kept import keep, write_candidates
from mti_lightning.sweep.measures import OF_UNITS, Array, arrays_of
from mti_lightning.sweep.opening import holds_sweep
from mti_lightning.sweep.rivals import write_rivals
from mti_lightning.sweep.store import PENDING, SweepStore, shard_of

_TOGETHER: Final = 2**14  # numbers that are read together, at least: 64 KiB


@final
class SweepWriter(SweepStore):
    """A sweep's results on disk, to be written."""

    mode: ClassVar[Literal["r", "r+"]] = "r+"
    # Whether it makes shards of blocks: of several processes one does.
    makes_shards: bool = True

    @classmethod
    def begin(
        cls,
        path: Path,
        provenance: Mapping[str, Any],
        keys: Sequence[str],
        mean_activation: Array,
        block: int,
        *,
        config: str | None = None,
        stamps: Mapping[int, Stamp] | None = None,
        classes: Mapping[str, Sequence[str]] | None = None,
        parts: int = 0,
        units: int = 0,
        made: Mapping[str, Any] | None = None,
    ) -> "SweepWriter":
        """Make an empty store.

        Args:
            path: Where, by `check_place`; what is there is replaced.
            provenance: How the sweep is made, as JSON; `features` name the columns.
            keys: The pictures.
            mean_activation: [C].
            block: Pictures per block.
            config: The command line's whole configuration, as YAML.
            stamps: Of the pictures that were read for `mean_activation`.
            classes: For features that stand for classes the names of these.
            parts: Of how many known parts a picture is put together.
            units: Of how many units contributions are kept.
            made: By what the network is made again.
        """
        path = path.resolve()  # a link to another disk stays one
        half = beside(path)
        with writing(path):
            of = (provenance, keys, mean_activation, block, config)
            try:
                cls._make(half, *of, stamps or {}, classes or {}, parts, units, made)
            except OSError:  # such as of a full disk, which half a store makes no less full
                _remove(half)
                raise
            sync_disk(half)
            _remove(path)
            half.rename(path)  # whole or not at all
        return cls(path)

    @staticmethod
    def _make(
        half: Path,
        provenance: Mapping[str, Any],
        keys: Sequence[str],
        mean_activation: Array,
        block: int,
        config: str | None,
        stamps: Mapping[int, Stamp],
        classes: Mapping[str, Sequence[str]],
        parts: int,
        units: int,
        made: Mapping[str, Any] | None,
    ) -> None:
        """Make an empty store's files; see `begin`."""
        features = [str(feature) for feature in provenance["features"]]
        _remove(half)
        # With its attributes from the start: by them a half-made one is known.
        rows, wide = len(keys), len(features)
        block = min(block, max(1, rows))  # what is larger is no array that a shard can be
        measured = arrays_of(wide, parts, units)
        shard = shard_of(rows, block, wide * max(1, units))
        told = {"sweep": dict(provenance), "block": block, "shard": shard, "complete": False}
        told |= {"config": config, "parts": parts, "units": units, "made": made}
        told |= {"classes": {name: [*of_class] for name, of_class in classes.items()}}
        group = zarr.create_group(half, attributes=sealed(told))
        texts: Any = str  # what zarr names its type of texts of any length
        _write_texts(group, "key", "picture", keys, 1024, 65536)
        _write_texts(group, "feature", "feature", features, wide, wide)
        group.create_array(
            "mean_activation", **CODECS, data=mean_activation, dimension_names=("channel",)
        )
        # A feature's lie together: they are read without most of the others'.
        few = max(1, min(wide, _TOGETHER // shard))
        for name, array in measured.items():
            features_of, further = 1 if name == OF_UNITS else few, array.shape[1:]
            group.create_array(
                name,
                **CODECS,
                shape=(rows, *array.shape),
                chunks=(shard, features_of, *further),
                shards=(shard, -(-wide // features_of) * features_of, *further),
                dtype="float32",
                fill_value=float("nan"),
                dimension_names=("picture", *array.dimensions),
            )
        per_picture: dict[str, Any] = {
            "shape": (rows,),
            "chunks": (shard,),
            "dimension_names": ("picture",),
        }
        status = group.create_array("status", **CODECS, dtype="uint8", **per_picture)
        status[:] = PENDING
        reason = group.create_array("reason", **CODECS, dtype=texts, fill_value="", **per_picture)
        reason[:] = ""
        stamped = np.zeros((rows, len(Stamp._fields)), np.int64)
        for index, stamp in stamps.items():
            stamped[index] = stamp
        group.create_array(
            "stamp",
            **CODECS,
            data=stamped,
            chunks=(shard, len(Stamp._fields)),
            dimension_names=("picture", "size_modified_checksum"),
        )

    def move(self, provenance: Mapping[str, Any]) -> None:
        """Note where the pictures lie now."""
        self.provenance = {**self.provenance, "data": provenance["data"]}
        self.tell(sweep=self.provenance)

    def tell(self, **attributes: Any) -> None:
        """Write down attributes of the sweep, in one step."""
        with writing(self.path):
            self._group.update_attributes(sealed({**self._group.attrs, **attributes}))

    def note_version(self, version: str) -> None:
        """Note a version that goes on with what another one began."""
        versions = [self.provenance.get("version"), *self.provenance.get("continued_by", ())]
        if version not in versions:
            told = {**self.provenance, "continued_by": [*versions[1:], version]}
            self.provenance = told
            self.tell(sweep=told)

    def write_rivals(
        self,
        places: Sequence[int],
        names: Sequence[str],
        box: Box | None,
        profiles: FeatureProfiles,
    ) -> None:
        """Write what features look like that may explain each other.

        Args:
            places: The features of the sweep that are among them.
            names: All of them.
            box: The part of the attribution layer's map that they depend on; None for all of it.
            profiles: What they look like.
        """
        with writing(self.path):
            _remove(self.path / (name := f"rivals/{places[0]}"))  # half of it may be there
            write_rivals(self._group.create_group(name), places, names, box, profiles)

    def write(self, start: int, columns: Mapping[str, Array], status: Array) -> None:
        """Write a whole block; it counts as done with the last of its writes.

        Args:
            start: Index of its first picture.
            columns: Each array's part, [B, ...].
            status: [B].

        Raises:
            RunError: If the disk is full, or cannot be written for another reason.
        """
        with writing(self.path):
            self._group.require_group("blocks")
            self._journal.write(start, columns, status)
            if self.makes_shards:
                self._make_shards()

    def _make_shards(self) -> None:
        """Put the blocks of every shard of which all are there into the arrays."""
        there = self._journal.starts
        for first in sorted({start - start % self.shard for start in there}):
            stop = min(first + self.shard, self.size)
            wanted = range(first, stop, self.block)
            if not {*wanted} <= {*there}:
                continue
            for name in (*self.measured, "reason", "stamp", "status"):
                if name == "status":
                    sync_disk(self.path)  # a power cut must not leave it without its numbers
                with reading(self.path):
                    parts = [values for _, values in self._journal.read(name, slice(first, stop))]
                if parts:
                    values = np.concatenate(parts)
                    texts = np.dtypes.StringDType()
                    values = values.astype(texts) if name == "reason" else values
                    self._array(name)[first:stop] = values
            sync_disk(self.path)
            for start in wanted:
                self._journal.remove(start)

    def write_candidates(self, start: int, rows: Sequence[tuple[int, int, Array]]) -> None:
        """Write attribution maps that may be kept in the end, of the block at `start`.

        Args:
            start: Index of the block's first picture.
            rows: Feature, picture, and attribution and sign of the activations, [2, ...], of each.
        """
        with writing(self.path):
            self._group.require_group("candidates")
            path = self.path / "candidates" / f"{start:010d}.npy"
            if rows:
                write_candidates(path, rows)
            else:
                path.unlink(missing_ok=True)  # from before a stop

    def finish(self, wanted: Sequence[tuple[int, int]], layout: ActivationLayout) -> None:
        """Keep the wanted attribution maps, and no other candidates; also after a stop in here.

        Args:
            wanted: Feature and picture of each.
            layout: How a map lies.
        """
        with writing(self.path):
            for cut_off in filter(_is_cut_off, self.path.rglob("*.partial")):
                cut_off.unlink()
            if not self.complete:
                self._make_shards()
                if wanted:
                    self._keep(wanted, layout)
                sync_disk(self.path)
                self.tell(complete=True)
                sync_disk(self.path)  # a power cut must not leave it without what is removed
            for folder in ("blocks", "candidates"):
                _remove(self.path / folder)

    def _keep(self, wanted: Sequence[tuple[int, int]], layout: ActivationLayout) -> None:
        keep(self._group, self.path / "candidates", wanted, layout)

    def note_windows(self, boxes: Sequence[tuple[int, ...] | None]) -> None:
        """Write down the box in pixels that each feature depends on, None for the whole picture."""
        self.tell(windows=[box and list(box) for box in boxes])


def check_place(path: Path) -> None:
    """Make sure that a store can be made at `path`.

    Raises:
        InputError: If something else is there, or no folder can be.
    """
    instead = "give --model.store another place"
    try:
        for there in filter(Path.exists, (path, beside(path.resolve()))):
            if not _replaceable(there):
                raise InputError(f"{there} exists and is no sweep; {instead}")
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        if error.errno in FULL:
            raise InputError(unwritable(path, error)) from error
        where = f"{error.filename}: " if error.filename else ""
        raise InputError(f"{path} cannot be made: {where}{error.strerror}; {instead}") from error


def _replaceable(folder: Path) -> bool:
    """Return whether it is a sweep, or has nothing in it but zarr's first write, cut off."""
    return folder.is_dir() and (holds_sweep(folder) or all(map(_is_cut_off, folder.iterdir())))


def _is_cut_off(path: Path) -> bool:
    """Return whether it is what zarr leaves of a write that was stopped, by its name."""
    return re.fullmatch(r".*\.[0-9a-f]{32}\.partial", path.name) is not None


def _remove(folder: Path) -> None:
    """Remove a group, last of all what tells that it is one: a stop in here can be made good."""
    if folder.exists():
        for entry in folder.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
        shutil.rmtree(folder)


def _write_texts(
    group: Any, name: str, dimension: str, texts: Sequence[str], chunk: int, shard: int
) -> None:
    of: Any = {"dtype": str, "shape": (len(texts),), "dimension_names": (dimension,)}
    array = group.create_array(name, **CODECS, chunks=(chunk,), shards=(shard,), **of)
    array[:] = np.array(texts, dtype=np.dtypes.StringDType())


class writing:  # noqa: N801  read as `with writing(path)`
    """Says what a disk that cannot be written means for a sweep."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        self._setting = zarr.config.set(EVERY_CHUNK)
        self._setting.__enter__()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._setting.__exit__(None, None, None)
        if not isinstance(error, OSError):
            return
        what = "is full" if error.errno in FULL else f"fails: {error}"
        raise RunError(
            f"the disk of {self.path} {what}; every block before is safe: make room and run the "
            "same command again to go on"
        ) from error
