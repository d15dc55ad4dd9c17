"""The beginning of a sweep: a store is made, or the one that is there is gone on with."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mti_lightning.data.datasets import Pictures, Stamp
from mti_lightning.errors import InputError
from mti_lightning.sweep.opening import holds_sweep
from mti_lightning.sweep.store import AGAIN
from mti_lightning.sweep.writing import SweepWriter, check_place, writing


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
