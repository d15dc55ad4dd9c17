"""The store of a sweep: a zarr group on disk that is written block by block and opens without us.

Dimensions are named. `response`, `excitation`, `inhibition`, `tension`, `tension_centred` and
`tension_l2` are [picture, feature], and so is the index of `interference`; `status` [picture] is 0
where a picture was not reached yet, 1 where it was measured, 2 where it cannot be read, for the
`reason` [picture]. `key` [picture] and `feature` name them, `stamp` [picture, 3] is size, time (ns)
and CRC-32 of the file that was read, 0 for a picture that was drawn. `mean_activation` [channel] is
what the centred tension subtracts. `attribution` [kept, ...] holds the maps that were kept, of
`attribution_feature` and `attribution_picture` [kept], `activation_sign` [kept, ...] whether the
activations are positive (1) or negative (-1) there. The group's attributes say how all this was
provenance: `sweep` what the numbers depend on, `config` the command line's whole configuration.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast, final

import numpy as np
import torch
import zarr
from numpy.typing import NDArray

from mti_lightning.data.pictures import PLACES, Pictures, Stamp
from mti_lightning.errors import InputError, RunError
from mti_lightning.images.boxes import Box
from mti_lightning.superposition.interference import FeatureProfiles

Array = NDArray[Any]
COLUMNS: Final = (
    "response",
    "excitation",
    "inhibition",
    "tension",
    "tension_centred",
    "tension_l2",
    "interference",
)
_DERIVED: Final = ("balance", "minimum", "harmonic")
MEASURES: Final = (*COLUMNS, *_DERIVED)
_LOOKS: Final = {  # of `FeatureProfiles`
    "mean": ("channel",),
    "excitation": ("rival", "channel"),
    "patterns": ("rival", "way", "channel"),
    "expressed": ("rival",),
}
_KEPT: Final = {"attribution": "float32", "activation_sign": "int8"}
_OF_KEPT: Final = (*_KEPT, "attribution_feature", "attribution_picture")
# What another version may have left out: attributes, what the results depend on, arrays.
_ATTRIBUTES: Final = ("block", "complete")
_MADE: Final = ("backbone", "weights", "attribution_layer", "preprocessing", "data")
_ARRAYS: Final = ("key", "mean_activation", *COLUMNS, "status", "reason", "stamp")
_AT_ONCE: Final = 2**22  # numbers that are read together: 16 MiB
_AGAIN: Final = "give another --model.store, or --model.overwrite true to begin anew"
PENDING, MEASURED, UNREADABLE = 0, 1, 2


def check_measure(measure: str) -> tuple[str, bool]:
    """Return a measure's name and whether its low end is meant, which a leading `-` says.

    Raises:
        InputError: If there is no such measure.
    """
    name = measure.removeprefix("-")
    if name not in MEASURES:
        raise InputError(
            f"there is no measure {measure!r}; there are {', '.join(MEASURES)}, and each with - "
            "before it for its low end"
        )
    return name, measure.startswith("-")


def derive(measure: str, column: Callable[[str], Array]) -> Array:
    """Return a measure, for either end, from what `column` gives for a name of `COLUMNS`."""
    name, _ = check_measure(measure)
    if name in COLUMNS:
        return column(name)
    excited, inhibited = column("excitation"), column("inhibition")
    lower, higher = np.minimum(excited, inhibited), np.maximum(excited, inhibited)
    floor = np.float32(1e-12)
    if name == "minimum":
        return lower
    if name == "balance":
        return cast("Array", lower / np.maximum(higher, floor))
    return cast("Array", excited * inhibited / np.maximum(excited + inhibited, floor))


def select(values: Array, count: int, low: bool = False) -> Array:
    """Return where the `count` highest (lowest) of `values` [P] are, best first.

    Equals go by place, and NaN is never selected.
    """
    ordered = np.argsort(values if low else -values, kind="stable")  # NaN comes last
    return cast("Array", ordered[: min(count, int(np.isfinite(values).sum()))])


@final
class SweepStore:
    """A sweep's results on disk.

    Args:
        path: The zarr group's folder.

    Raises:
        InputError: If there is no sweep at `path`, or one that lacks what this version needs.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.group = _open(self.path)
        self.provenance = cast("dict[str, Any]", self.group.attrs["sweep"])
        there = {*self.group.array_keys()}
        self._need(
            [name for name in _ATTRIBUTES if name not in self.group.attrs]
            + [name for name in _MADE if name not in self.provenance]
            + [name for name in _ARRAYS if name not in there]
        )
        # They are written last: a sweep that was stopped there has some of them.
        if self.complete and "attribution" in there:
            self._need([name for name in _OF_KEPT if name not in there])

    def _need(self, lacking: Sequence[str]) -> None:
        """Refuse a sweep of another version that lacks something.

        Raises:
            InputError: If it does, naming that.
        """
        if lacking:
            version = self.provenance.get("version", "an unknown version")
            raise InputError(
                f"the sweep at {self.path} lacks {', '.join(lacking)}: mti_lightning {version} "
                "made it without; move it away and sweep again, or give another"
            )

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
    ) -> "SweepStore":
        """Make an empty store.

        Args:
            path: Where, by `check_place`; what is there is replaced.
            provenance: How the sweep is made, as JSON; `features` name the columns.
            keys: The pictures.
            mean_activation: [C].
            block: Pictures per block.
            config: The command line's whole configuration, as YAML.
            stamps: Of the pictures that were read for `mean_activation`.
        """
        features = [str(feature) for feature in provenance["features"]]
        path = path.resolve()  # a link to another disk stays one
        half = _half(path)
        _remove(half)
        # With its attributes from the start: by them a half-made one is known.
        told = {"sweep": dict(provenance), "block": block, "complete": False, "config": config}
        group = zarr.create_group(half, attributes=told)
        rows, wide = len(keys), len(features)
        texts: Any = str  # what zarr names its type of texts of any length
        key = group.create_array(
            "key", shape=(rows,), chunks=(65536,), dtype=texts, dimension_names=("picture",)
        )
        key[:] = np.array(keys, dtype=np.dtypes.StringDType())
        names = group.create_array(
            "feature", shape=(wide,), chunks=(wide,), dtype=texts, dimension_names=("feature",)
        )
        names[:] = np.array(features, dtype=np.dtypes.StringDType())
        group.create_array("mean_activation", data=mean_activation, dimension_names=("channel",))
        for name in COLUMNS:
            group.create_array(
                name,
                shape=(rows, wide),
                chunks=(block, wide),
                dtype="float32",
                fill_value=float("nan"),
                dimension_names=("picture", "feature"),
            )
        per_picture: dict[str, Any] = {
            "shape": (rows,),
            "chunks": (block,),
            "dimension_names": ("picture",),
        }
        group.create_array("status", dtype="uint8", fill_value=PENDING, **per_picture)
        group.create_array("reason", dtype=texts, fill_value="", **per_picture)
        stamped = np.zeros((rows, len(Stamp._fields)), np.int64)
        for index, stamp in (stamps or {}).items():
            stamped[index] = stamp
        group.create_array(
            "stamp",
            data=stamped,
            chunks=(block, len(Stamp._fields)),
            dimension_names=("picture", "size_modified_checksum"),
        )
        _remove(path)
        half.rename(path)  # whole or not at all
        return cls(path)

    def check(self, provenance: Mapping[str, Any], keys: Sequence[str]) -> None:
        """Make sure that this store is the beginning of the same sweep.

        Raises:
            InputError: If it was made otherwise or of other pictures, naming the first difference.
        """
        self.check_provenance({**dict.fromkeys(self.provenance), **provenance})
        self.check_keys(keys)

    def check_provenance(self, provenance: Mapping[str, Any], instead: str = _AGAIN) -> None:
        """Make sure that this sweep was made with `made`; what is not in it may be anything.

        Args:
            provenance: Some of what a sweep's results depend on, as `Sweep.provenance` has it.
            instead: What an error says would do.

        Raises:
            InputError: If it was made otherwise, naming the first difference.
        """
        self._need([name for name in provenance if name not in self.provenance])
        old, new = _comparable(self.provenance), _comparable(provenance)
        for name in new:
            if old.get(name) != new[name]:
                different = _difference(name, old.get(name), new[name])
                raise InputError(f"{self.path} was made with {different}; {instead}")

    def check_keys(self, keys: Sequence[str], instead: str = _AGAIN) -> None:
        """Make sure that the pictures have the names of those of this sweep.

        Raises:
            InputError: If they do not, naming the first difference, and `instead`.
        """
        known = self.keys
        if known != list(keys):
            pairs = zip([*known, "no picture"], [*keys, "no picture"], strict=False)
            place, (old, new) = next((i, pair) for i, pair in enumerate(pairs) if len({*pair}) > 1)
            raise InputError(
                f"the pictures have changed since {self.path} was begun: there were {len(known)}, "
                f"there are {len(keys)}; number {place} was {old}, is {new}; {instead}"
            )

    def check_contents(self, pictures: Pictures, places: Iterable[int] | None = None) -> None:
        """Make sure that pictures which were read, or those of them at some places, are the same.

        Raises:
            InputError: If one is not, naming it.
        """
        stamps = self._array("stamp")[:]
        for place in np.flatnonzero(stamps.any(1)) if places is None else places:
            stamp = Stamp(*stamps[place].tolist())
            if any(stamp) and pictures.changed(int(place), stamp):
                raise InputError(
                    f"{pictures.keys[place]} has changed since {self.path} was made of it; put it "
                    f"back, or {_AGAIN}"
                )

    def move(self, provenance: Mapping[str, Any]) -> None:
        """Note where the pictures lie now."""
        self.provenance = {**self.provenance, "data": provenance["data"]}
        self.group.attrs["sweep"] = self.provenance

    # --- writing ---

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
            arrays = {field: value.numpy() for field, value in vars(profiles).items()}
            told: dict[str, Any] = {
                "places": list(places),
                "names": list(names),
                "box": box and list(box),
            }
            group = self.group.create_group(name)
            for field, values in arrays.items():
                group.create_array(field, data=values, dimension_names=_LOOKS[field])
            group.attrs.update(told)

    @property
    def block(self) -> int:
        return int(cast("int", self.group.attrs["block"]))

    def write(self, start: int, columns: Mapping[str, Array], status: Array) -> None:
        """Write a whole block; it counts as done with the last of its writes.

        Args:
            start: Index of its first picture.
            columns: [B, F] for each of `COLUMNS`; `stamp`, [B, 3], and `reason`, [B].
            status: [B].

        Raises:
            RunError: If the disk is full, or cannot be written for another reason.
        """
        stop = start + len(status)
        with writing(self.path):
            for name, values in columns.items():
                self._array(name)[start:stop] = values
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
                _write_maps(self.group.create_group(name), rows)

    def finish(self, wanted: Sequence[tuple[int, int]], dimensions: Sequence[str]) -> None:
        """Keep the wanted attribution maps, and no other candidates; also after a stop in here.

        Args:
            wanted: Feature and picture of each.
            dimensions: Names of a map's dimensions.
        """
        with writing(self.path):
            for cut_off in self.path.rglob("*.partial"):  # zarr's, of a write that was stopped
                cut_off.unlink()
            if not self.complete:
                if wanted:
                    self._keep(wanted, dimensions)
                self.group.attrs["complete"] = True
            _remove(self.path / "candidates")

    def _keep(self, wanted: Sequence[tuple[int, int]], dimensions: Sequence[str]) -> None:
        where: dict[tuple[int, int], tuple[Any, int]] = {}
        for _, part in sorted(self.group["candidates"].groups()):  # type: ignore[union-attr]
            pairs = zip(part["feature"][:].tolist(), part["picture"][:].tolist(), strict=True)
            where |= {pair: (part, row) for row, pair in enumerate(pairs)}
        for name, kind in _KEPT.items():
            shape = next(iter(where.values()))[0][name].shape[1:]
            kept = self.group.create_array(
                name,
                shape=(len(wanted), *shape),
                chunks=(1, *shape),
                dtype=kind,
                dimension_names=("kept", *dimensions),
                overwrite=True,
            )
            for row, pair in enumerate(wanted):
                part, place = where[pair]
                kept[row] = part[name][place]
        for name, column in zip(("feature", "picture"), np.array(wanted).T, strict=True):
            self.group.create_array(
                f"attribution_{name}", data=column, dimension_names=("kept",), overwrite=True
            )

    def note_windows(self, boxes: Sequence[tuple[int, ...] | None]) -> None:
        """Write down the box in pixels that each feature depends on, None for the whole picture."""
        self.group.attrs["windows"] = [box and list(box) for box in boxes]

    # --- reading ---

    def rivals(self, feature: int) -> tuple[list[str], Box | None, FeatureProfiles] | None:
        """Return what `write_rivals` wrote of a feature's rivals; None where nothing was."""
        there: Any = self.group.get("rivals")
        for _, group in there.groups() if there is not None else ():
            told = dict(group.attrs)
            if feature in told.get("places", ()):
                self._need([f"rivals/{name}" for name in _LOOKS if name not in group])
                profiles = FeatureProfiles(**{f: torch.from_numpy(group[f][:]) for f in _LOOKS})
                return told["names"], told["box"] and tuple(told["box"]), profiles
        return None

    def window(self, feature: int) -> tuple[int, int, int, int] | None:
        """Return top, left, height and width of the box that a feature depends on, in pixels."""
        boxes = cast("list[Any]", self.group.attrs.get("windows", [None] * len(self.features)))
        return boxes[feature] and tuple(boxes[feature])

    def _array(self, name: str) -> Any:
        return self.group[name]

    @property
    def complete(self) -> bool:
        return bool(self.group.attrs["complete"])

    @property
    def keys(self) -> list[str]:
        return [str(key) for key in self._array("key")[:]]

    def keys_of(self, pictures: Sequence[int] | Array) -> list[str]:
        """Return what some pictures are called."""
        return [str(key) for key in self._array("key").oindex[np.asarray(pictures, np.int64)]]

    @property
    def size(self) -> int:
        """How many pictures there are."""
        return int(self._array("status").shape[0])

    @property
    def features(self) -> list[str]:
        return [str(feature) for feature in self.provenance["features"]]

    @property
    def status(self) -> Array:
        """0 not reached, 1 measured, 2 unreadable, [P]."""
        return cast("Array", self._array("status")[:])

    @property
    def unreadable(self) -> dict[str, str]:
        """The pictures that could not be read, and why."""
        rows = np.flatnonzero(self.status == UNREADABLE)
        if not len(rows):
            return {}
        keys, reasons = (self._array(name).oindex[rows].tolist() for name in ("key", "reason"))
        return dict(zip(keys, reasons, strict=True))

    @property
    def spans(self) -> Iterator[slice]:
        """Stretches of pictures, of whole blocks, whose numbers fit into the memory."""
        step = self.block * max(1, _AT_ONCE // (self.block * len(self.features)))
        for start in range(0, self.size, step):
            yield slice(start, min(start + step, self.size))

    @property
    def mean_activation(self) -> Array:
        """ā, [C]."""
        return cast("Array", self._array("mean_activation")[:])

    def feature_index(self, feature: str | None) -> int:
        """Return a feature's column; of None the only one's.

        Raises:
            InputError: If there is no such feature, or none is named where there are several.
        """
        names = self.features
        if feature is None and len(names) == 1:
            return 0
        if feature not in names:
            shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            given = "name a feature" if feature is None else f"there is no feature {feature!r}"
            raise InputError(f"{given} of {self.path}; it has {shown}")
        return names.index(feature)

    def values(
        self,
        measure: str,
        features: int | Sequence[int] | None = None,
        pictures: slice | Sequence[int] | Array | None = None,
    ) -> Array:
        """Return a measure, [P, F], or [P] of a single feature; NaN where there is none yet.

        Numbers of a picture lie side by side on the disk: of one feature take as long as of all.
        """
        rows, columns = (slice(None) if x is None else x for x in (pictures, features))
        return derive(measure, lambda name: self._array(name).oindex[rows, columns])

    def top(self, feature: int, measure: str, count: int) -> list[int]:
        """Return the pictures with the highest values of a measure (of `-measure`: the lowest)."""
        _, low = check_measure(measure)
        return [int(i) for i in select(self.values(measure, feature), count, low)]

    def kept(self, feature: int) -> tuple[Array, Array]:
        """Return where the maps that were kept of a feature are, [M], and their pictures, [M].

        Raises:
            InputError: If none were kept of it.
        """
        of_feature = np.array([])
        if "attribution" in self.group:
            of_feature = np.flatnonzero(self._array("attribution_feature")[:] == feature)
        if not len(of_feature):
            raise InputError(
                f"{self.path} holds no attribution maps of {self.features[feature]}; sweep with "
                "--model.keep N to keep those of the N top pictures"
            )
        return of_feature, self._array("attribution_picture")[:][of_feature]

    def maps(self, rows: Iterable[int], name: str = "attribution") -> Array:
        """Return kept maps, [M, ...]: `attribution`, or `activation_sign`."""
        array = self._array(name)
        return np.stack([array[int(row)] for row in rows])


def check_place(path: Path) -> None:
    """Make sure that a store can be made at `path`.

    Raises:
        InputError: If something else is there, or no folder can be.
    """
    instead = "give --model.store another place"
    try:
        for there in filter(Path.exists, (path, _half(path.resolve()))):
            if not _replaceable(there):
                raise InputError(f"{there} exists and is no sweep; {instead}")
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise InputError(f"{path} cannot be made: {where}{error.strerror}; {instead}") from error


def holds_sweep(path: Path) -> bool:
    """Return whether there is a sweep at `path`."""
    try:
        _open(path)
    except InputError:
        return False
    return True


def _open(path: Path) -> zarr.Group:
    """Open a sweep's group, also a half-made one's, or one of another version."""
    try:
        group = zarr.open_group(path, mode="r+")
        cast("dict[str, Any]", group.attrs["sweep"])["features"]
    except (OSError, LookupError, ValueError, TypeError) as error:  # damaged, or another thing
        raise InputError(
            f"{path} holds no sweep; give the folder of one, such as tb_logs/NAME/sweep.zarr, made "
            "by mti predict"
        ) from error
    return group


def _replaceable(folder: Path) -> bool:
    """Return whether it is a sweep, or has nothing in it but zarr's first write, cut off."""
    return folder.is_dir() and (
        holds_sweep(folder) or all(entry.suffix == ".partial" for entry in folder.iterdir())
    )


def _half(path: Path) -> Path:
    """Return where the store of `path` is until it is whole."""
    return path.with_name(path.name + ".new")


def _remove(folder: Path) -> None:
    """Remove a group, last of all what tells that it is one: a stop in here can be made good."""
    if folder.exists():
        for entry in folder.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
        shutil.rmtree(folder)


def _comparable(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return what has to be the same where a sweep goes on.

    That is not where its pictures lie: they may have been moved, and are compared one by one.
    """
    compared = {name: value for name, value in provenance.items() if name != "version"}
    if data := provenance.get("data"):
        arguments = {k: v for k, v in data["init_args"].items() if k not in PLACES}
        compared["data"] = {**data, "init_args": arguments}
    return compared


def _write_maps(group: Any, rows: Sequence[tuple[int, int, Array]]) -> None:
    shape = rows[0][2].shape[1:]
    for index, (name, kind) in enumerate(_KEPT.items()):
        maps = group.create_array(name, shape=(len(rows), *shape), chunks=(1, *shape), dtype=kind)
        for row, (_, _, values) in enumerate(rows):
            maps[row] = values[index]
    group.create_array("feature", data=np.array([row[0] for row in rows]))
    group.create_array("picture", data=np.array([row[1] for row in rows]))


class writing:  # noqa: N801  read as `with writing(path)`
    """Says what a disk that cannot be written means for a sweep."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, OSError):
            return
        what = "is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else f"fails: {error}"
        raise RunError(
            f"the disk of {self.path} {what}; every block before is safe: make room and run the "
            "same command again to go on"
        ) from error


def _difference(name: str, old: object, new: object) -> str:
    """Say where two values of one name differ first."""
    if isinstance(old, dict) and isinstance(new, dict):
        key = next(key for key in {**old, **new} if old.get(key) != new.get(key))
        return _difference(f"{name}.{key}", old.get(key), new.get(key))
    return f"{name} {_short(old)}, not {_short(new)}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:77]}..."
