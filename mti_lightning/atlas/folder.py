"""An atlas of a folder of pictures: what suits it where nothing else is asked for, and its cost."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor

from mti_lightning.atlas.layout import FEWEST_CELLS, MOST_CELLS, PICTURES
from mti_lightning.backbone import ActivationLayout, Backbone, Layer
from mti_lightning.data.base import PictureData
from mti_lightning.errors import InputError
from mti_lightning.sweep.calibration import evenly_spread
from mti_lightning.sweep.module import Sweep

EPOCHS: Final = 5
_MOST_KEPT: Final = 3000  # maps by each measure
_MOST_BYTES: Final = 1e9  # of maps on the disk
_TRIED: Final = 4  # pictures that the cost is measured on


@final
@dataclass(frozen=True)
class Cost:
    """What an atlas takes, as far as can be told beforehand.

    Attributes:
        pictures: How many there are.
        sweep: Seconds to measure them.
        disk: Bytes of the attribution maps that are kept.
        icons: About how many there will be.
        inversion: Seconds to make these.
    """

    pictures: int
    sweep: float
    disk: float
    icons: int
    inversion: float

    def __str__(self) -> str:
        return (
            f"{self.pictures:,} pictures: about {_minutes(self.sweep)} to measure them, at most "
            f"{self.disk / 1e6:,.0f} MB on the disk; then about {self.icons} icons, "
            f"{_minutes(self.inversion)}"
        )


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def kept(backbone: Backbone, layer: Layer, pictures: int, features: int = 1) -> int:
    """Return of how many pictures by each measure the attribution maps of each feature are kept."""
    held = 3 * features * _bytes(backbone.layout(layer))  # by three measures
    return max(1, min(pictures, _MOST_KEPT, int(_MOST_BYTES / held)))


def some_of(data: PictureData) -> Tensor:
    """Return a few of the pictures, [N, 3, H, W].

    Raises:
        InputError: If none of them can be read.
    """
    few = list(evenly_spread(data, _TRIED, {}))
    if not few:
        raise InputError("none of the pictures that were tried can be read")
    return few[0]


def cost(sweep: Sweep, few: Tensor, pictures: int, steps: int) -> Cost:
    """Measure a few pictures, and say what the whole atlas takes.

    Args:
        sweep: How the pictures are measured.
        few: Some of them, [N, 3, H, W].
        pictures: How many there are.
        steps: For each icon.
    """
    sweep.settle([few])
    sweep.prepare()
    sweep.measure(few[:1])  # what is found once
    start = time.monotonic()
    sweep.measure(few)
    measured = (time.monotonic() - start) / len(few)
    start = time.monotonic()
    moved = few.clone().requires_grad_()
    torch.autograd.grad(sweep.backbone.run(moved, [sweep.layer])[sweep.layer].sum(), moved)
    step = (time.monotonic() - start) / len(few)
    maps = min(pictures, 3 * sweep.keep) * len(sweep.features)
    icons = 2 * round(min(max(maps / PICTURES, FEWEST_CELLS), MOST_CELLS, maps))
    disk = _bytes(sweep.layout) * maps
    return Cost(pictures, measured * pictures, disk, icons, step * steps * icons)


def _bytes(layout: ActivationLayout) -> int:
    """Return what a map takes: a number, and the sign of the activation, at each place."""
    return 5 * math.prod(layout.shape)


def settings(
    name: str,
    backbone: Backbone,
    features: Sequence[str],
    layer: str,
    folder: Path,
    keep: int,
    steps: int,
    seed: int,
    accelerator: str,
    beside: str | None = None,
) -> dict[str, Any]:
    """Return the configuration that `mti fit` takes to make the atlas."""
    return {
        "name": name,
        "trainer": {"max_epochs": EPOCHS, "accelerator": accelerator},
        "model": {
            "class_path": "AtlasInversion",
            "init_args": {
                "backbone": {key: v for key, v in backbone.made.items() if v is not None},
                "features": [*features],
                "attribution_layer": layer,
                "chart": {"apart": True},
                "keep": keep,
                "steps_per_epoch": max(1, steps // EPOCHS),
                "seed": seed,
                **({"beside": beside} if beside else {}),
            },
        },
        "data": {
            "class_path": "PictureFolder",
            "init_args": {"path": str(folder), "recursive": True},
        },
    }
