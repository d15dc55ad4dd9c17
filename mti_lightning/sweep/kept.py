"""Attribution maps that are kept: candidates, a file for each block, and of them the top ones."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import zarr

from mti_lightning.backbone import ActivationLayout
from mti_lightning.files import replace_file
from mti_lightning.sweep.intact import CODECS, reading
from mti_lightning.sweep.measures import Array

KEPT: Final = {"attribution": "float32", "activation_sign": "int8"}
_AT_ONCE: Final = 2**23  # numbers of a shard


def write_candidates(path: Path, rows: Sequence[tuple[int, int, Array]]) -> None:
    """Write the attribution maps of a block that may be kept in the end.

    Args:
        path: The file.
        rows: Feature, picture, and attribution and sign of the activations, [2, ...], of each.
    """
    maps = [(name, kind, rows[0][2].shape[1:]) for name, kind in KEPT.items()]
    names: Any = [("feature", "int64"), ("picture", "int64"), *maps, ("checksum", "uint32")]
    records = np.zeros(len(rows), np.dtype(names))
    for record, (feature, picture, values) in zip(records, rows, strict=True):
        record["feature"], record["picture"] = feature, picture
        for index, name in enumerate(KEPT):
            record[name] = values[index]
        record["checksum"] = _checksum(record)
    header = np.lib.format.header_data_from_array_1_0(records)

    def write(file: BinaryIO) -> None:  # of a full disk `np.save` does not tell
        np.lib.format.write_array_header_2_0(file, header)
        file.write(records.view(np.uint8).data)

    replace_file(path, write)


def keep(
    group: zarr.Group,
    folder: Path,
    wanted: Sequence[tuple[int, int]],
    layout: ActivationLayout,
) -> None:
    """Put some of the candidates into arrays of a store.

    Args:
        group: The store.
        folder: Where the candidates are.
        wanted: Feature and picture of each.
        layout: How a map lies.

    Raises:
        InputError: If one is damaged.
    """
    with reading(folder.parent):
        where = _find(folder)
        (first,) = _read([where[wanted[0]]])
    step = min(max(1, _AT_ONCE // first["attribution"].size), len(wanted))
    arrays = {
        name: group.create_array(
            name,
            **CODECS,
            shape=(len(wanted), *first[name].shape),
            chunks=(1, *first[name].shape),
            shards=(step, *first[name].shape),
            dtype=kind,
            dimension_names=("kept", *layout.dimensions),
            attributes={"grid": layout.grid, "prefix_tokens": layout.prefix_tokens},
            overwrite=True,
        )
        for name, kind in KEPT.items()
    }
    for start in range(0, len(wanted), step):
        with reading(folder.parent):
            records = _read([where[pair] for pair in wanted[start : start + step]])
        for name, array in arrays.items():
            array[start : start + step] = np.stack([record[name] for record in records])
    for name, column in zip(("feature", "picture"), np.array(wanted).T, strict=True):
        group.create_array(
            f"attribution_{name}",
            **CODECS,
            data=column,
            dimension_names=("kept",),
            overwrite=True,
        )


def _find(folder: Path) -> dict[tuple[int, int], tuple[Path, int]]:
    """Return the file, and the place in it, of each feature's and picture's map."""
    found: dict[tuple[int, int], tuple[Path, int]] = {}
    for path in sorted(folder.glob("[0-9]*.npy")):
        records = np.load(path, mmap_mode="r")
        pairs = zip(records["feature"].tolist(), records["picture"].tolist(), strict=True)
        found |= {pair: (path, row) for row, pair in enumerate(pairs)}
    return found


def _read(places: Sequence[tuple[Path, int]]) -> list[Any]:
    """Return some of the records of `write_candidates`; files stay open only in here."""
    files = {path: np.load(path, mmap_mode="r") for path in dict.fromkeys(p for p, _ in places)}
    records = [files[path][row].copy() for path, row in places]
    for record, (path, _) in zip(records, places, strict=True):
        if _checksum(record) != record["checksum"]:
            raise ValueError(f"{path.name} was changed")
    return records


def _checksum(record: Any) -> int:
    return zlib.crc32(record.tobytes()[:-4])  # of all but itself
