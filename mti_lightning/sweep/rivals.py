"""What a store knows of features that may explain each other: a group for those of a part."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
import zarr

from mti_lightning.images.boxes import Box
from mti_lightning.superposition.interference import FeatureProfiles
from mti_lightning.sweep.intact import CODECS, StoredArray, check_sealed, listing, sealed

PROFILES: Final = {  # of `FeatureProfiles`
    "mean": ("channel",),
    "excitation": ("rival", "channel"),
    "patterns": ("rival", "way", "channel"),
    "expressed": ("rival",),
}


def write_rivals(
    group: zarr.Group,
    places: Sequence[int],
    names: Sequence[str],
    box: Box | None,
    profiles: FeatureProfiles,
) -> None:
    """Write what features look like into an empty group; it counts with the last of its writes."""
    told: dict[str, Any] = {"places": [*places], "names": [*names], "box": box and [*box]}
    for field, dimensions in PROFILES.items():
        values = getattr(profiles, field).cpu().numpy()
        group.create_array(field, **CODECS, data=values, dimension_names=dimensions)
    group.update_attributes(sealed(told))  # in one step


def find_rivals(store: zarr.Group, path: Path, feature: int) -> zarr.Group | None:
    """Return the group of a feature's rivals, of the store at a path; None where there is none."""
    there: Any = store.get("rivals")
    with listing():
        groups: list[zarr.Group] = [of for _, of in there.groups()] if there is not None else []
    for group in groups:
        told: Any = dict(group.attrs)
        if feature in told.get("places", ()):
            check_sealed(path, told)
            return group
    return None


def read_rivals(group: zarr.Group, path: Path) -> tuple[list[str], Box | None, FeatureProfiles]:
    """Return what `write_rivals` wrote: names, box and profiles."""
    told: Any = dict(group.attrs)
    arrays = {name: StoredArray(group[name], path)[:] for name in PROFILES}
    profiles = FeatureProfiles(**{name: torch.from_numpy(v) for name, v in arrays.items()})
    return told["names"], told["box"] and tuple(told["box"]), profiles
