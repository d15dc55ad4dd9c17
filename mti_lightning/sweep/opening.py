"""Opening the zarr group of a sweep."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import zarr

from mti_lightning.errors import InputError
from mti_lightning.sweep.intact import damaged, listing, reading


def holds_sweep(path: Path) -> bool:
    """Return whether there is a sweep at `path`."""
    try:
        open_group(path)
    except InputError:
        return False
    return True


def open_group(path: Path, mode: Literal["r", "r+"] = "r") -> zarr.Group:
    """Open a sweep's group, also a half-made one's, or one of another version."""
    try:
        # Of no other format: an earlier one knows a codec that is a pickle.
        group = zarr.open_group(path, mode=mode, zarr_format=3)
        _check_told(cast("dict[str, Any]", group.attrs["sweep"]))
    except (
        OSError,
        AttributeError,
        LookupError,
        ValueError,
        TypeError,
    ) as error:  # damaged, or another thing
        raise InputError(
            f"{path} holds no sweep; give the folder of one, such as tb_logs/NAME/sweep.zarr, made "
            "by mti predict"
        ) from error
    return group


def array_names(path: Path, group: zarr.Group, wanted: Iterable[str]) -> set[str]:
    """Return what the arrays of a sweep are called.

    Raises:
        InputError: If one that is wanted has lost what says how it is stored.
    """
    with reading(path), listing():
        there = {*group.array_keys()}
    for name in wanted:
        if name not in there and (path / name).is_dir():
            raise damaged(path, f"{name} is lost in part")
    return there


def _check_told(made: Mapping[str, Any]) -> None:
    """Raise one of several errors if what says how a sweep was made is not built as it should."""
    if not all(isinstance(feature, str) for feature in made["features"]):
        raise TypeError("features")
    if data := made.get("data"):
        data["init_args"].items()
        if not isinstance(data["class_path"], str):
            raise TypeError("class_path")
    if preprocessing := made.get("preprocessing"):
        height, width = preprocessing["size"]
        if not 0 < height * width < 2**31:
            raise ValueError("size")
