"""Draw docs/parts.png: what parts of pictures do, beside what is attributed to their places.

`python -m benchmarks.parts --out docs/parts.png` makes 64 composites of the vetoed shapes, and for
all eight classes measures each part by leaving it out, as the report's truth by intervention does.
"""

import argparse
from pathlib import Path
from typing import Final

import torch
from matplotlib.figure import Figure
from PIL import Image

from mti_lightning import (
    ActGrad,
    Backbone,
    BoundFeature,
    Feature,
    IntGrad,
    Layer,
    Tension,
    VetoedShapesPictures,
)
from mti_lightning.data.composites import Composites
from mti_lightning.validity.composites import check_composites, judge_composites
from mti_lightning.vetoed_shapes.shapes import KINDS

COUNT: Final = 64  # composites
METHODS: Final = {"integrated gradients, 8 steps": IntGrad(8), "act × grad": ActGrad()}


def main() -> None:
    """Write the figure, and print the figures that the report would tell of each class."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("parts.png"))
    parser.add_argument("--layer", default="layer2")
    given = parser.parse_args()
    backbone, layer = Backbone("vetoed_shapes_resnet"), Layer.parse(given.layer)
    asked = [BoundFeature(Feature("fc", kind), backbone) for kind in range(len(KINDS))]
    data = VetoedShapesPictures(256, contents="random")
    data.use(backbone.preprocessing)
    made = Composites(data.pictures, COUNT, seed=0)
    figure = Figure((7.4, 3.7), layout="constrained")
    for axes, (name, method) in zip(
        figure.subplots(1, 2, sharex=True), METHODS.items(), strict=True
    ):
        of = (asked, layer, method, Tension())
        found = check_composites(backbone, data.loader(range(COUNT), made), *of)
        told = [judge_composites(*rows).values for rows in zip(*found.values(), strict=True)]
        right, ranked = ([one[key] for one in told] for key in ("signs right", "parts"))
        mean = torch.tensor([ranked, right]).mean(1).tolist()
        for one in told:
            print(name, {key: round(value, 2) for key, value in one.items()})
        axes.axhline(0, color="0.8", linewidth=0.8)
        axes.axvline(0, color="0.8", linewidth=0.8)
        axes.scatter(found["effect"], found["attributed"], 5, alpha=0.5, edgecolors="none")
        axes.set_title(
            f"{name}\nrank correlation {mean[0]:.2f}, sign right {mean[1]:.0%}", fontsize=9
        )
        axes.set_xlabel("what the part does: e")
        axes.set_ylabel("attributed to its place")
    figure.savefig(given.out, dpi=120)
    Image.open(given.out).convert("RGB").quantize(64).save(given.out, optimize=True)


if __name__ == "__main__":
    main()
