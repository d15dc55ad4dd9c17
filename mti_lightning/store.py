"""The store of a sweep: a zarr group on disk that is written block by block and opens without us.

Dimensions are named. `response`, `excitation`, `inhibition`, `tension`, `tension_centred` and
`tension_l2` are [picture, feature]; `status` [picture] is 0 where a picture was not reached yet, 1
where it was measured, 2 where it cannot be read. `key` [picture] and `feature` name them,
`mean_activation` [channel] is what the centred tension subtracts. `attribution` [kept, ...] holds
the maps that were kept, of `attribution_feature` and `attribution_picture` [kept],
`activation_sign` [kept, ...] whether the activations are positive (1) or negative (-1) there, and
the group's attributes how all this was made.
"""

import errno
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast, final

import numpy as np
import zarr
from numpy.typing import NDArray

from mti_lightning.errors import InputError, RunError

Array = NDArray[Any]
COLUMNS: Final = (
    "response",
    "excitation",
    "inhibition",
    "tension",
    "tension_centred",
    "tension_l2",
)
_DERIVED: Final = ("balance", "minimum", "harmonic")
MEASURES: Final = (*COLUMNS, *_DERIVED)
_MADE_BY_OTHERS: Final = ("version",)  # may differ when a sweep is continued
_INSTEAD: Final = "give another --model.store, or --model.overwrite true to begin anew"
_KEPT: Final = {"attribution": "float32", "activation_sign": "int8"}
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
        InputError: If there is no sweep at `path`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.group = zarr.open_group(self.path, mode="r+")
            self.made = cast("dict[str, Any]", self.group.attrs["sweep"])
        except (FileNotFoundError, KeyError) as error:
            raise InputError(
                f"{self.path} holds no sweep; give the folder of one, such as "
                "tb_logs/NAME/sweep.zarr, made by mti predict"
            ) from error

    @classmethod
    def begin(
        cls,
        path: Path,
        made: Mapping[str, Any],
        keys: Sequence[str],
        mean_activation: Array,
        block: int,
    ) -> "SweepStore":
        """Make an empty store.

        Args:
            path: Where; what is there is replaced.
            made: How the sweep is made, as JSON; `features` name the columns.
            keys: The pictures.
            mean_activation: [C].
            block: Pictures per block.
        """
        features = [str(feature) for feature in made["features"]]
        half = path.with_name(path.name + ".new")
        for old in (half, path):
            if old.exists():
                shutil.rmtree(old)
        group = zarr.open_group(half, mode="w")
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
        group.create_array(
            "status",
            shape=(rows,),
            chunks=(block,),
            dtype="uint8",
            fill_value=PENDING,
            dimension_names=("picture",),
        )
        group.attrs.update({"sweep": dict(made), "block": block, "complete": False})
        half.rename(path)  # whole or not at all
        return cls(path)

    def check(self, made: Mapping[str, Any], keys: Sequence[str]) -> None:
        """Make sure that this store is the beginning of the same sweep.

        Raises:
            InputError: If it was made otherwise or of other pictures, naming the first difference.
        """
        self.check_made({**dict.fromkeys(self.made), **made})
        self.check_keys(keys)

    def check_made(self, made: Mapping[str, Any], instead: str = _INSTEAD) -> None:
        """Make sure that this sweep was made with `made`; what is not in it may be anything.

        Args:
            made: Some of what a sweep's results depend on, as `Sweep.made` has it.
            instead: What an error says would do.

        Raises:
            InputError: If it was made otherwise, naming the first difference.
        """
        for name, new in made.items():
            old = self.made.get(name)
            if old != new and name not in _MADE_BY_OTHERS:
                different = _difference(name, old, new)
                raise InputError(f"{self.path} was made with {different}; {instead}")

    def check_keys(self, keys: Sequence[str], instead: str = _INSTEAD) -> None:
        """Make sure that the pictures are still those of this sweep.

        Raises:
            InputError: If they are not, naming the first difference, and `instead`.
        """
        known = self.keys
        if known != list(keys):
            pairs = zip([*known, "no picture"], [*keys, "no picture"], strict=False)
            place, (old, new) = next((i, pair) for i, pair in enumerate(pairs) if len({*pair}) > 1)
            raise InputError(
                f"the pictures have changed since {self.path} was begun: there were {len(known)}, "
                f"there are {len(keys)}; number {place} was {old}, is {new}; {instead}"
            )

    # --- writing ---

    @property
    def block(self) -> int:
        return int(cast("int", self.group.attrs["block"]))

    def write(self, start: int, columns: Mapping[str, Array], status: Array) -> None:
        """Write a whole block; it counts as done with the last of its writes.

        Args:
            start: Index of its first picture.
            columns: [B, F] for each of `COLUMNS`.
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
        if not rows:
            return
        with writing(self.path):
            group = self.group.create_group(f"candidates/{start:010d}", overwrite=True)
            _write_maps(group, rows)

    def finish(self, wanted: Sequence[tuple[int, int]], dimensions: Sequence[str]) -> None:
        """Keep the wanted attribution maps, and no other candidates.

        Args:
            wanted: Feature and picture of each.
            dimensions: Names of a map's dimensions.
        """
        with writing(self.path):
            if wanted:
                self._keep(wanted, dimensions)
            self.group.attrs["complete"] = True
            if "candidates" in self.group:
                del self.group["candidates"]

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

    @property
    def size(self) -> int:
        """How many pictures there are."""
        return int(self._array("status").shape[0])

    @property
    def features(self) -> list[str]:
        return [str(feature) for feature in self.made["features"]]

    @property
    def status(self) -> Array:
        """0 not reached, 1 measured, 2 unreadable, [P]."""
        return cast("Array", self._array("status")[:])

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

    def values(self, measure: str, feature: int | None = None) -> Array:
        """Return a measure, [P], or [P, F] of all features; NaN where there is none yet."""
        name, _ = check_measure(measure)
        columns = slice(None) if feature is None else feature
        if name in COLUMNS:
            return cast("Array", self._array(name)[:, columns])
        excited, inhibited = (self._array(n)[:, columns] for n in ("excitation", "inhibition"))
        lower, higher = np.minimum(excited, inhibited), np.maximum(excited, inhibited)
        floor = np.float32(1e-12)
        if name == "minimum":
            return cast("Array", lower)
        if name == "balance":
            return cast("Array", lower / np.maximum(higher, floor))
        return cast("Array", excited * inhibited / np.maximum(excited + inhibited, floor))

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
