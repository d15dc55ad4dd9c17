"""Whether a store is as it was written: nothing lost, cut off or changed."""

import hashlib
import itertools
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from mti_lightning.errors import InputError, reason_of
from mti_lightning.sweep.measures import COLUMNS, OF_PARTS, OF_UNITS, TRUTH, Array

# How arrays are written: each chunk with a checksum (a shard's index has one of its own), and also
# where it holds nothing but empty values, so that one which is lost is not taken for such.
CODECS: Final[dict[str, Any]] = {"compressors": (ZstdCodec(level=0), Crc32cCodec())}
EVERY_CHUNK: Final = {"array.write_empty_chunks": True}
_IN_SHARDS: Final = (*COLUMNS, *TRUTH, *OF_PARTS, OF_UNITS)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say that a store is damaged where reading it fails.

    Raises:
        InputError: If it does.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of bytes that were changed a codec raises anything
        raise damaged(path, reason_of(error)) from error


@contextmanager
def listing() -> Iterator[None]:
    """Have zarr not warn of files that it does not know, as of a write that was stopped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def damaged(path: Path, how: str) -> InputError:
    """Return the error of a store that is damaged."""
    return InputError(
        f"the sweep at {path} is damaged ({how}); take a copy of it, or sweep again with "
        "--model.overwrite true"
    )


@final
class StoredArray:
    """An array of a store; reading from it raises `InputError` where it is damaged."""

    def __init__(self, array: Any, path: Path) -> None:
        self._array, self._path = array, path
        self.shape: tuple[int, ...] = array.shape
        self.dimension_names: tuple[str, ...] = tuple(array.metadata.dimension_names or ())
        self.attributes: dict[str, Any] = dict(array.attrs)

    def __getitem__(self, selection: Any) -> Any:
        with reading(self._path):
            return self._array[selection]

    def at(self, *selections: Any) -> Any:
        """Return what is at the places given for each dimension."""
        with reading(self._path):
            return self._array.oindex[selections if len(selections) > 1 else selections[0]]

    def __setitem__(self, selection: Any, values: Any) -> None:
        self._array[selection] = values


def sealed(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a group's attributes with a checksum: zarr has none of its JSON."""
    plain = {name: value for name, value in attributes.items() if name != "checksum"}
    told = json.dumps(plain, sort_keys=True, default=str)
    return {**plain, "checksum": hashlib.sha256(told.encode()).hexdigest()[:16]}


def check_sealed(path: Path, attributes: Mapping[str, Any]) -> None:
    """Make sure that a group's attributes are as they were written.

    Raises:
        InputError: If they are not; those of an earlier version have no checksum.
    """
    if "checksum" in attributes and sealed(attributes) != dict(attributes):
        raise damaged(path, "what it says of itself was changed")


def check_intact(
    path: Path,
    group: zarr.Group,
    features: list[str],
    status: Array,
    measured: Iterable[str],
) -> None:
    """Make sure that a store's attributes and arrays fit together, and that no part is lost.

    Args:
        path: Where it is.
        group: It.
        features: What its columns are called.
        status: Of each picture, [P], as the array has it.
        measured: The arrays of what was measured.

    Raises:
        InputError: If they do not, or one is.
    """
    check_sealed(path, group.attrs)
    with listing():
        arrays: dict[str, Any] = dict(group.arrays())
    _check_shapes(path, arrays, len(status), len(features))
    if list(map(str, arrays["feature"][:])) != features:
        raise damaged(path, "its features are called otherwise")
    if group.attrs["complete"] and status.any() and not status.all():
        raise damaged(path, "status is lost in part")
    shard: Any = group.attrs["shard"]
    done = np.unique(np.flatnonzero(status) // shard).tolist()
    for name in measured:
        ends = ["0"] * (arrays[name].ndim - 1)
        if not all(path.joinpath(name, "c", str(number), *ends).is_file() for number in done):
            raise damaged(path, f"{name} is lost in part")
    for name, stored in _written_at_once(group, arrays).items():
        sides = zip(stored.shape, stored.shards or stored.chunks, strict=True)
        files = itertools.product(*(map(str, range(-(-side // part))) for side, part in sides))
        if not all(path.joinpath(name, "c", *file).is_file() for file in files):
            raise damaged(path, f"{name} is lost in part")


def _check_shapes(path: Path, arrays: dict[str, Any], rows: int, features: int) -> None:
    wanted = dict.fromkeys(COLUMNS, (rows, features)) | {
        "key": (rows,),
        "reason": (rows,),
        "stamp": (rows, arrays["stamp"].shape[1]),
    }
    for name, shape in wanted.items():
        if arrays[name].shape != shape:
            raise damaged(path, f"{name} is of shape {arrays[name].shape}, not {shape}")
    if any(arrays[name].dtype != np.float32 for name in COLUMNS):
        raise damaged(path, "numbers are of another type")


def _written_at_once(group: zarr.Group, arrays: dict[str, Any]) -> dict[str, Any]:
    """Return the arrays of which all files have to be there, by what they are called."""
    whole = {name: array for name, array in arrays.items() if name not in _IN_SHARDS}
    if not group.attrs["complete"]:  # maps are kept at the end; what has no status is redone
        late = ("attr", "activation", "status")
        whole = {name: array for name, array in whole.items() if not name.startswith(late)}
    there: Any = group.get("rivals")
    with listing():
        for place, rivals in there.groups() if there is not None else ():
            if "places" in rivals.attrs:  # its last write
                whole |= {f"rivals/{place}/{name}": array for name, array in rivals.arrays()}
    return whole
