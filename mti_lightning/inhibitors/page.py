"""The inhibitors as one HTML file: bars, doses, crops, icons and the tree."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mti_lightning.inhibitors.causal import Change
from mti_lightning.inhibitors.result import SCALES, Branch, Inhibitors
from mti_lightning.pages import Images, numbers, write_html
from mti_lightning.sweep.measures import Array

_ICON, _CROP = 128, 144  # pixels: the longer side


def write_page(path: Path, found: Inhibitors) -> None:
    """Write the page; equal bytes for equal inputs.

    Args:
        path: The file; it is replaced in one step.
        found: What it is about.
    """
    images = Images()
    data = {
        "feature": found.feature,
        "kind": found.kind,
        "layer": found.layer,
        "told": found.summary,
        "scales": SCALES,
        "units": [
            {
                "unit": str(unit.unit),
                "confirmed": unit.is_confirmed,
                "share": unit.share,
                **dict(
                    zip(
                        ("contribution", "spread", "predicted", "chance"),
                        numbers([unit.contribution, unit.spread, unit.predicted, unit.chance]),
                        strict=True,
                    )
                ),
                **_change(unit.real),
                "dose": _dose(found.response, unit.doses),
                "switch": numbers([found.switching(unit.doses)[1]])[0],
                "icon": None if unit.icon is None else images.add(unit.icon, _ICON),
                "examples": [
                    {
                        "key": one.key,
                        "contribution": numbers([one.contribution])[0],
                        "image": images.add(one.image, _CROP),
                    }
                    for one in unit.examples
                ],
            }
            for unit in found.units
        ],
        "together": {
            "predicted": numbers([found.predicted])[0],
            "dose": _dose(found.response, found.doses),
            "switch": numbers([found.switching(found.doses)[1]])[0],
        },
        "random": _change(found.random),
        "tree": _told(found.tree),
        "images": list(images.addresses),
    }
    write_html(path, "mti_lightning.inhibitors", data)


def _change(change: Change) -> dict[str, float | None]:
    of = (change.mean, change.low, change.high, change.flipped)
    return dict(zip(("real", "low", "high", "flipped"), numbers(of), strict=True))


def _dose(response: Array, doses: Array) -> dict[str, list[float | None]]:
    """Return the mean response at each scale, and between what most pictures are."""
    low, high = np.quantile(doses, [0.1, 0.9], axis=1)
    return {
        "mean": numbers(doses.mean(1)),
        "low": numbers(low),
        "high": numbers(high),
        "change": numbers((doses - response).mean(1)),
    }


def _told(branches: Sequence[Branch]) -> list[dict[str, Any]]:
    return [
        {
            "name": f"{one.layer}:{one.unit}",
            "sign": one.kind,
            **_change(one.real),
            "below": _told(one.below),
        }
        for one in branches
    ]
