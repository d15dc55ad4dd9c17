"""Whether inhibitors are those that carry the veto, for each class of the vetoed shapes.

Units of a layer are ranked by their mean contribution in 60 tense pictures of a class, and those
that inhibit most are silenced in 40 others. Columns: how many are named; of these, and of all units
that are active, the share that is more active in pictures of the veto alone than in pictures of
one other shape; in how many of the 40 the class switches on without the named ones, and without as
many random active units, the mean of ten draws; means over the classes (and the worst of them).
"""

import argparse
from typing import Final

import numpy as np
import torch
from torch import Tensor

from mti_lightning import Backbone, BoundFeature, Feature, IntGrad, Layer, VetoedShapes, attribute
from mti_lightning.vetoed_shapes.shapes import KINDS
from mti_lightning.vetoed_shapes.world import veto_of

RANKED, TESTED, DRAWS, SINGLE = 60, 40, 10, 1500
NETWORK: Final = "vetoed_shapes_resnet"


@torch.no_grad()
def pooled(backbone: Backbone, layer: Layer, pictures: Tensor) -> Tensor:
    """Return mean activations over positions, [N, C]."""
    parts = pictures.split(50)
    return torch.cat([backbone.run(part, [layer])[layer].mean((2, 3)) for part in parts])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", nargs="+", default=["layer4", "layer3"])
    parser.add_argument("--counts", nargs="+", type=int, default=[8, 16])
    given = parser.parse_args()
    backbone, count = Backbone(NETWORK), len(KINDS)
    tense = VetoedShapes(count * (RANKED + TESTED), seed=7, contents="tense")
    world = VetoedShapes(SINGLE, seed=8)
    samples = [world[index] for index in range(SINGLE)]
    alone = [one for one in samples if one["present"].sum() == 1]
    single = torch.stack([one["picture"] for one in alone])
    shape = torch.stack([one["present"] for one in alone]).argmax(1)
    print("| layer | named | driven by the veto | all active | switched on | random |")
    print("|---|---|---|---|---|---|")
    for name in given.layers:
        layer, activations = Layer(name), pooled(backbone, Layer(name), single)
        rows: dict[int, list[list[float]]] = {named: [] for named in given.counts}
        for kind in range(count):
            pictures = torch.stack(
                [tense[index]["picture"] for index in range(kind, len(tense), count)]
            )
            feature = BoundFeature(Feature("fc", kind), backbone)
            found = [
                attribute(backbone, part, [feature] * len(part), layer, IntGrad(4))[1].sum((2, 3))
                for part in pictures[:RANKED].split(20)
            ]
            contribution = torch.cat(found)
            active = (contribution != 0).float().mean(0) > 0.1
            order = contribution.mean(0).argsort()
            veto = shape == veto_of(kind)
            driven = activations[veto].mean(0) > activations[~veto & (shape != kind)].mean(0)
            draw = np.random.default_rng(kind)
            for named in given.counts:
                units = order[:named]
                others = np.setdiff1d(active.nonzero().flatten().numpy(), units.numpy())
                drawn = [draw.choice(others, named, False).tolist() for _ in range(DRAWS)]
                shares = []
                for silenced in [units.tolist(), *drawn]:
                    with torch.no_grad(), backbone.scaled(layer, silenced):
                        on = backbone(pictures[RANKED:])[:, kind] > 0
                    shares.append(float(on.float().mean()))
                of = (driven[units], driven[active])
                rows[named].append(
                    [*(float(one.float().mean()) for one in of), shares[0], np.mean(shares[1:])]
                )
        for named, found_rows in rows.items():
            table = np.array(found_rows)
            worst = [table[:, 0].min(), table[:, 1].max(), table[:, 2].min(), table[:, 3].max()]
            told = (f"{a:.0%} ({b:.0%})" for a, b in zip(table.mean(0), worst, strict=True))
            print(f"| {name} | {named} | {' | '.join(told)} |", flush=True)


if __name__ == "__main__":
    main()
