"""Writing a sweep's store: its beginning, block by block, and the maps that are kept in the end."""

import errno
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, final

import numpy as np
import zarr
from torch import Tensor

from mti_lightning.backbone import ActivationLayout
from mti_lightning.data.datasets import Pictures, Stamp
from mti_lightning.errors import InputError, RunError
from mti_lightning.files import beside, sync_disk
from mti_lightning.images.boxes import Box
from mti_lightning.superposition.interference import FeatureProfiles
from mti_lightning.sweep.intact import CODECS, EVERY_CHUNK, sealed
from mti_lightning.sweep.measures import Array, arrays_of
from mti_lightning.sweep.opening import holds_sweep
from mti_lightning.sweep.store import AGAIN, KEPT, PENDING, PROFILES, SweepStore


@final
class SweepWriter(SweepStore):
    """A sweep's results on disk, to be written."""

    mode: ClassVar[Literal["r", "r+"]] = "r+"

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
            cls._make(half, *of, stamps or {}, classes or {}, parts, units, made)
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
        told = {"sweep": dict(provenance), "block": block, "complete": False, "config": config}
        told |= {"every_chunk": True, "parts": parts, "units": units, "made": made}
        told |= {"classes": {name: [*of_class] for name, of_class in classes.items()}}
        group = zarr.create_group(half, attributes=sealed(told))
        rows, wide = len(keys), len(features)
        block = min(block, rows)
        texts: Any = str  # what zarr names its type of texts of any length
        _write_texts(group, "key", "picture", keys, 65536)
        _write_texts(group, "feature", "feature", features, wide)
        group.create_array(
            "mean_activation", **CODECS, data=mean_activation, dimension_names=("channel",)
        )
        for name, array in arrays_of(wide, parts, units).items():
            group.create_array(
                name,
                **CODECS,
                shape=(rows, *array.shape),
                chunks=(block, *array.chunk),
                dtype="float32",
                fill_value=float("nan"),
                dimension_names=("picture", *array.dimensions),
            )
        per_picture: dict[str, Any] = {
            "shape": (rows,),
            "chunks": (block,),
            "dimension_names": ("picture",),
        }
        group.create_array("status", **CODECS, dtype="uint8", fill_value=PENDING, **per_picture)
        group.create_array("reason", **CODECS, dtype=texts, fill_value="", **per_picture)
        stamped = np.zeros((rows, len(Stamp._fields)), np.int64)
        for index, stamp in stamps.items():
            stamped[index] = stamp
        group.create_array(
            "stamp",
            **CODECS,
            data=stamped,
            chunks=(block, len(Stamp._fields)),
            dimension_names=("picture", "size_modified_checksum"),
        )

    def move(self, provenance: Mapping[str, Any]) -> None:
        """Note where the pictures lie now."""
        self.provenance = {**self.provenance, "data": provenance["data"]}
        self.tell(sweep=self.provenance)

    def tell(self, **attributes: Any) -> None:
        """Write down attributes of the sweep."""
        self._group.attrs.update(sealed({**self._group.attrs, **attributes}))

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
            arrays = {field: value.cpu().numpy() for field, value in vars(profiles).items()}
            told: dict[str, Any] = {
                "places": list(places),
                "names": list(names),
                "box": box and list(box),
            }
            group = self._group.create_group(name)
            for field, values in arrays.items():
                group.create_array(field, **CODECS, data=values, dimension_names=PROFILES[field])
            group.attrs.update(sealed(told))

    def write(self, start: int, columns: Mapping[str, Array], status: Array) -> None:
        """Write a whole block; it counts as done with the last of its writes.

        Args:
            start: Index of its first picture.
            columns: Each array's part, [B, ...].
            status: [B].

        Raises:
            RunError: If the disk is full, or cannot be written for another reason.
        """
        stop = start + len(status)
        with writing(self.path):
            for name, values in columns.items():
                self._array(name)[start:stop] = values
            sync_disk(self.path)  # a power cut must not leave a status without its numbers
            self._array("status")[start:stop] = status

    def write_candidates(self, start: int, rows: Sequence[tuple[int, int, Array]]) -> None:
        """Write attribution maps that may be kept in the end, of the block at `start`.

        Args:
            start: Index of the block's first picture.
            rows: Feature, picture, and attribution and sign of the activations, [2, ...], of each.
        """
        with writing(self.path):
            name = f"candidates/{start:010d}"
            _remove(self.path / name)  # half of it may be there from before a stop
            if rows:
                _write_maps(self._group.create_group(name), rows)

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
                if wanted:
                    self._keep(wanted, layout)
                sync_disk(self.path)
                self.tell(complete=True)
            _remove(self.path / "candidates")

    def _keep(self, wanted: Sequence[tuple[int, int]], layout: ActivationLayout) -> None:
        where: dict[tuple[int, int], tuple[Any, int]] = {}
        for _, part in sorted(self._group["candidates"].groups()):  # type: ignore[union-attr]
            pairs = zip(part["feature"][:].tolist(), part["picture"][:].tolist(), strict=True)
            where |= {pair: (part, row) for row, pair in enumerate(pairs)}
        for name, kind in KEPT.items():
            shape = next(iter(where.values()))[0][name].shape[1:]
            kept = self._group.create_array(
                name,
                **CODECS,
                shape=(len(wanted), *shape),
                chunks=(1, *shape),
                dtype=kind,
                dimension_names=("kept", *layout.dimensions),
                attributes={"grid": layout.grid, "prefix_tokens": layout.prefix_tokens},
                overwrite=True,
            )
            for row, pair in enumerate(wanted):
                part, place = where[pair]
                kept[row] = part[name][place]
        for name, column in zip(("feature", "picture"), np.array(wanted).T, strict=True):
            self._group.create_array(
                f"attribution_{name}",
                **CODECS,
                data=column,
                dimension_names=("kept",),
                overwrite=True,
            )

    def note_windows(self, boxes: Sequence[tuple[int, ...] | None]) -> None:
        """Write down the box in pixels that each feature depends on, None for the whole picture."""
        self.tell(windows=[box and list(box) for box in boxes])


def open_or_begin(
    path: Path,
    provenance: Mapping[str, Any],
    pictures: Pictures,
    calibrate: Callable[[], tuple[Tensor, Mapping[int, Stamp]]],
    block: int,
    config: str | None = None,
    *,
    classes: Mapping[str, tuple[str, ...]] | None = None,
    units: int = 0,
    made: Mapping[str, Any] | None = None,
    anew: bool = False,
) -> None:
    """Begin the store at `path`, or make sure that the one that is there can be gone on with.

    Args:
        path: Where.
        provenance: How the sweep is made, as JSON.
        pictures: What it goes through.
        calibrate: Gives ā, [C], and the stamps of the pictures that it is of.
        block: Pictures per block.
        config: The command line's whole configuration, as YAML.
        classes: The names of those features that are classes.
        units: Of how many units contributions are kept; 0 keeps none.
        made: By what the network is made again.
        anew: Replace a sweep that is there.

    Raises:
        InputError: If there is another sweep, or of other pictures, or something else.
    """
    if holds_sweep(path) and not anew:
        there = SweepWriter(path)
        if there.units != units:
            holds = "holds" if there.units else "holds no"
            raise InputError(f"{path} {holds} contributions of units; {AGAIN}")
        there.check(provenance, pictures.keys)
        there.check_contents(pictures)
        if there.provenance["data"] != provenance["data"]:
            there.move(provenance)
        there.note_version(provenance["version"])
        return
    check_place(path)
    mean, stamps = calibrate()
    with writing(path):
        SweepWriter.begin(
            path,
            provenance,
            pictures.keys,
            mean.numpy(),
            block,
            config=config,
            stamps=stamps,
            classes=classes,
            parts=pictures.parts,
            units=units,
            made=made,
        )


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


def _write_texts(group: Any, name: str, dimension: str, texts: Sequence[str], chunk: int) -> None:
    of: Any = {"dtype": str, "shape": (len(texts),), "dimension_names": (dimension,)}
    array = group.create_array(name, **CODECS, chunks=(chunk,), **of)
    array[:] = np.array(texts, dtype=np.dtypes.StringDType())


def _write_maps(group: Any, rows: Sequence[tuple[int, int, Array]]) -> None:
    shape = rows[0][2].shape[1:]
    for index, (name, kind) in enumerate(KEPT.items()):
        maps = group.create_array(
            name, **CODECS, shape=(len(rows), *shape), chunks=(1, *shape), dtype=kind
        )
        for row, (_, _, values) in enumerate(rows):
            maps[row] = values[index]
    group.create_array("feature", **CODECS, data=np.array([row[0] for row in rows]))
    group.create_array("picture", **CODECS, data=np.array([row[1] for row in rows]))


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
        what = "is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else f"fails: {error}"
        raise RunError(
            f"the disk of {self.path} {what}; every block before is safe: make room and run the "
            "same command again to go on"
        ) from error
