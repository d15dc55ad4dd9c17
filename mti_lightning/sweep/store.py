"""The store of a sweep: a zarr group on disk that is written block by block and opens without us.

Arrays lie in shards, files of `shard` pictures; `journal` has the blocks of those to come.

Dimensions are named. `response`, `excitation`, `inhibition`, `tension`, `tension_centred` and
`tension_l2` are [picture, feature], and so is the index of `interference`; `status` [picture] is 0
where a picture was not reached yet, 1 where it was measured, 2 where it cannot be read, for the
`reason` [picture]. `key` [picture] and `feature` name them, `stamp` [picture, 3] is size, time (ns)
and CRC-32 of the file that was read, 0 for a picture that was drawn. Of composites
`true_excitation`, `true_inhibition` and `true_tension` [picture, feature] follow from `effect`
[picture, feature, part], what a part does to the response by leaving it out; `part_attribution` is
A summed over its place. Where units were asked for, `contribution` [picture, feature, unit] is A
summed over the positions of each channel. `mean_activation` [channel] is what the centred tension
subtracts.
`attribution` [kept, ...] holds the maps that were kept, of `attribution_feature` and
`attribution_picture` [kept], `activation_sign` [kept, ...] whether the activations are above (1) or
below (-1) the baseline there. The group's attributes say how all this was
made: `sweep` what the numbers depend on, `config` the command line's whole configuration; `classes`
has the names of the classes that features stand for.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, cast

import numpy as np
import zarr

from mti_lightning.backbone import ActivationLayout
from mti_lightning.data.datasets import Pictures, Stamp
from mti_lightning.errors import InputError, printable
from mti_lightning.features.classes import display, short
from mti_lightning.files import at_home
from mti_lightning.images.boxes import Box
from mti_lightning.superposition.interference import FeatureProfiles
from mti_lightning.sweep.intact import EVERY_CHUNK, StoredArray, check_intact, reading
from mti_lightning.sweep.journal import Journal
from mti_lightning.sweep.kept import KEPT
from mti_lightning.sweep.measures import (
    COLUMNS,
    MEASURES,
    OF_UNITS,
    TRUTH,
    Array,
    Measured,
    arrays_of,
    check_measure,
    derive,
    select,
)
from mti_lightning.sweep.naming import column_of
from mti_lightning.sweep.opening import array_names, open_group
from mti_lightning.sweep.provenance import first_difference
from mti_lightning.sweep.rivals import PROFILES, find_rivals, read_rivals

_OF_KEPT: Final = (*KEPT, "attribution_feature", "attribution_picture")
# What another version may have left out: attributes, what the results depend on, arrays.
_ATTRIBUTES: Final = ("block", "shard", "complete")
_MADE: Final = ("backbone", "weights", "attribution_layer", "preprocessing", "data")
_ARRAYS: Final = ("key", "feature", "mean_activation", *COLUMNS, "status", "reason", "stamp")
_AT_ONCE: Final = 2**23  # numbers that are read or written together: 32 MiB
_MOST_BLOCKS: Final = 64  # of a shard
AGAIN: Final = "give another --model.store, or --model.overwrite true to begin anew"
PENDING, MEASURED, UNREADABLE = 0, 1, 2


def shard_of(pictures: int, block: int, numbers: int) -> int:
    """Return how many pictures, of so many numbers each, a shard has: 2, 4, ... blocks of them."""
    most = min(_MOST_BLOCKS, _AT_ONCE // (block * numbers), -(-pictures // block))
    return block << max(most, 1).bit_length() - 1


class SweepStore:
    """A sweep's results on disk.

    Args:
        path: The zarr group's folder.

    Raises:
        InputError: If there is no sweep at `path`, or one that lacks what this version needs.
    """

    mode: ClassVar[Literal["r", "r+"]] = "r"

    def __init__(self, path: str | Path) -> None:
        self.path = at_home(path)
        self._group = open_group(self.path, self.mode)
        self.provenance = cast("dict[str, Any]", self._group.attrs["sweep"])
        there = array_names(self.path, self._group, _ARRAYS)
        self._need(
            [name for name in _ATTRIBUTES if name not in self._group.attrs]
            + [name for name in _MADE if name not in self.provenance]
            + [name for name in _ARRAYS if name not in there]
        )
        # They are written last: a sweep that was stopped there has some of them.
        if self.complete and "attribution" in there:
            self._need([name for name in _OF_KEPT if name not in there])
        self._journal = Journal(self.path / "blocks")
        with reading(self.path):
            status = self._array("status")[:]  # of what is part of the arrays
            check_intact(self.path, self._group, self.features, status, self.measured)

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

    def check(self, provenance: Mapping[str, Any], keys: Sequence[str]) -> None:
        """Make sure that this store is the beginning of the same sweep.

        Raises:
            InputError: If it was made otherwise or of other pictures, naming the first difference.
        """
        self.check_provenance({**dict.fromkeys(self.provenance), **provenance})
        self.check_keys(keys)

    def check_provenance(self, provenance: Mapping[str, Any], instead: str = AGAIN) -> None:
        """Make sure that this sweep was made with `made`; what is not in it may be anything.

        Args:
            provenance: Some of what a sweep's results depend on, as `Sweep.provenance` has it.
            instead: What an error says would do.

        Raises:
            InputError: If it was made otherwise, naming the first difference.
        """
        self._need([name for name in provenance if name not in self.provenance])
        if different := first_difference(self.provenance, provenance):
            raise InputError(f"{self.path} was made with {different}; {instead}")

    def check_keys(self, keys: Sequence[str], instead: str = AGAIN) -> None:
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
        rows = range(self.size) if places is None else [*places]
        stamps = self._read("stamp", np.asarray(rows, np.int64))
        for found in np.flatnonzero(stamps.any(1)):
            place, stamp = rows[found], Stamp(*stamps[found].tolist())
            if pictures.changed(int(place), stamp):
                raise InputError(
                    f"{pictures.keys[place]} has changed since {self.path} was made of it; put it "
                    f"back, or {AGAIN}"
                )

    @property
    def block(self) -> int:
        return int(cast("int", self._group.attrs["block"]))

    @property
    def shard(self) -> int:
        """How many pictures lie in one file of an array."""
        return int(cast("int", self._group.attrs["shard"]))

    # --- reading ---

    def rivals(self, feature: int) -> tuple[list[str], Box | None, FeatureProfiles] | None:
        """Return what `write_rivals` wrote of a feature's rivals; None where nothing was."""
        found = find_rivals(self._group, self.path, feature)
        if found is None:
            return None
        self._need([f"rivals/{name}" for name in PROFILES if name not in found])
        return read_rivals(found, self.path)

    def window(self, feature: int) -> tuple[int, int, int, int] | None:
        """Return top, left, height and width of the box that a feature depends on, in pixels."""
        boxes = cast("list[Any]", self._group.attrs.get("windows", [None] * len(self.features)))
        return boxes[feature] and tuple(boxes[feature])

    @property
    def config(self) -> str | None:
        """The whole configuration of the command line that began the sweep, as YAML."""
        return cast("str | None", self._group.attrs["config"])

    @property
    def map_layout(self) -> ActivationLayout:
        """How each of `maps` lies."""
        array = self._array("attribution")
        names, shape = array.dimension_names[1:], array.shape[1:]
        grid, prefix = array.attributes["grid"], array.attributes["prefix_tokens"]
        grid = (grid[0], grid[1]) if grid else None
        return ActivationLayout(shape, 1 if names[0] == "channel" and grid else -1, grid, prefix)

    def _array(self, name: str) -> StoredArray:
        with reading(self.path), zarr.config.set(EVERY_CHUNK):
            return StoredArray(self._group[name], self.path)

    def _read(
        self, name: str, rows: slice | Array = slice(None), columns: Any = slice(None)
    ) -> Array:
        """Return a part of an array, also of the blocks that are not part of it yet."""
        pictures = np.arange(self.size)[rows]
        if not len(pictures):
            return cast("Array", self._array(name)[:0][:, columns])
        span = slice(int(pictures.min()), int(pictures.max()) + 1)
        with reading(self.path):
            blocks = list(self._journal.read(name, span))
        array = self._array(name)
        found = array.at(rows) if len(array.shape) == 1 else array.at(rows, columns)
        for start, values in blocks:
            inside = (start <= pictures) & (pictures < start + len(values))
            own = values[pictures[inside] - start]
            found[inside] = own if values.ndim == 1 else own[:, columns]
        return cast("Array", found)

    @property
    def complete(self) -> bool:
        return bool(self._group.attrs["complete"])

    @property
    def keys(self) -> list[str]:
        return [printable(str(key)) for key in self._array("key")[:]]

    def keys_of(self, pictures: Sequence[int] | Array) -> list[str]:
        """Return what some pictures are called."""
        keys = self._array("key").at(np.asarray(pictures, np.int64))
        return [printable(str(key)) for key in keys]

    @property
    def size(self) -> int:
        """How many pictures there are."""
        return int(self._array("status").shape[0])

    @property
    def features(self) -> list[str]:
        return [str(feature) for feature in self.provenance["features"]]

    @property
    def classes(self) -> list[str]:
        """The name of the class that each feature stands for; "" where it stands for none."""
        return [short(self._class_names.get(feature, ())) for feature in self.features]

    @property
    def shown(self) -> list[str]:
        """How each feature is shown to people, by its class's name, too."""
        return list(map(display, self.features, self.classes))

    @property
    def status(self) -> Array:
        """0 not reached, 1 measured, 2 unreadable, [P]."""
        return self._read("status")

    @property
    def unreadable(self) -> dict[str, str]:
        """The pictures that could not be read, and why."""
        rows = np.flatnonzero(self.status == UNREADABLE)
        if not len(rows):
            return {}
        keys, reasons = (self._read(name, rows).tolist() for name in ("key", "reason"))
        return dict(zip(keys, reasons, strict=True))

    @property
    def spans(self) -> Iterator[slice]:
        """Stretches of pictures, of whole shards, whose numbers fit into the memory."""
        step = self.shard * max(1, _AT_ONCE // (self.shard * len(self.features)))
        for start in range(0, self.size, step):
            yield slice(start, min(start + step, self.size))

    @property
    def mean_activation(self) -> Array:
        """ā, [C]."""
        return cast("Array", self._array("mean_activation")[:])

    @property
    def parts(self) -> int:
        """Of how many known parts each picture is put together; 0 where none are known."""
        return int(cast("int", self._group.attrs.get("parts", 0)))

    @property
    def units(self) -> int:
        """Of how many units contributions were kept; 0 where they were not."""
        return int(cast("int", self._group.attrs.get("units", 0)))

    @property
    def measured(self) -> dict[str, Measured]:
        """The arrays of what was measured."""
        return arrays_of(len(self.features), self.parts, self.units)

    @property
    def made(self) -> dict[str, Any]:
        """The arguments by which `Backbone` makes the network again.

        Raises:
            InputError: If they were not noted.
        """
        made = self._group.attrs.get("made")
        if not isinstance(made, dict):
            self._need(["made, how its network is made"])
        return cast("dict[str, Any]", made)

    def check_units(self) -> None:
        """Make sure that contributions were kept.

        Raises:
            InputError: If they were not.
        """
        if not self.units:
            raise InputError(
                f"{self.path} holds no contributions of units; sweep with --model.units true"
            )

    def contributions(self, feature: int, pictures: Array) -> Array:
        """Return what each unit adds to a feature, [P', U], in pictures [P']; see `check_units`."""
        self.check_units()
        return self._read(OF_UNITS, np.asarray(pictures, np.int64), feature)

    @property
    def measures(self) -> tuple[str, ...]:
        """What can be asked for of each picture and feature."""
        return (*MEASURES, *TRUTH) if self.parts else MEASURES

    def of_parts(self, name: str) -> Array:
        """Return `effect`, or `part_attribution`, of composites, [P, F, K]."""
        self._need_parts()
        return self._read(name)

    def _need_parts(self) -> None:
        if not self.parts:
            raise InputError(
                f"{self.path} knows no parts of its pictures; sweep CompositePictures for that"
            )

    def feature_index(self, feature: str | None) -> int:
        """Return a feature's column; of None the only one's. A class may be named, as `fc:star`.

        Raises:
            InputError: If there is no such feature, or none is named where there are several.
        """
        return column_of(feature, self.features, self._class_names, str(self.path))

    @property
    def _class_names(self) -> Mapping[str, list[str]]:
        return cast("Mapping[str, list[str]]", self._group.attrs.get("classes", {}))

    def values(
        self,
        measure: str,
        features: int | Sequence[int] | None = None,
        pictures: slice | Sequence[int] | Array | None = None,
    ) -> Array:
        """Return a measure, [P, F], or [P] of a single feature; NaN where there is none yet."""
        columns = slice(None) if features is None else features
        rows = slice(None) if pictures is None else pictures
        rows = rows if isinstance(rows, slice) else np.asarray(rows, np.int64)
        if check_measure(measure)[0] in TRUTH:
            self._need_parts()
        return derive(measure, lambda name: self._read(name, rows, columns))

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
        if "attribution" in self._group:
            of_feature = np.flatnonzero(self._array("attribution_feature")[:] == feature)
        if not len(of_feature):
            raise InputError(
                f"{self.path} holds no attribution maps of {self.features[feature]}; sweep with "
                "--model.keep N to keep those of the N top pictures"
            )
        return of_feature, self._array("attribution_picture")[:][of_feature]

    def maps(self, rows: Iterable[int], name: str = "attribution") -> Array:
        """Return kept maps, [M, ...]: `attribution`, or `activation_sign`."""
        return cast("Array", self._array(name).at(np.fromiter(rows, np.int64)))
