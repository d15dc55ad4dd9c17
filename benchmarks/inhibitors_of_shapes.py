"""Whether inhibitors are those that carry the veto, for each class of the vetoed shapes.

Units of a layer are ranked by their mean contribution in 60 tense pictures of a class, and those
that inhibit most are silenced in 40 others. Columns: how many are named; of these, and of all units
that are active, the share that is more active in pictures of the veto alone than in pictures of
one other shape; in how many of the 40 the class switches on without the named ones, without as
many random active units, the mean of ten draws, and without as many that each picture chooses for
itself, those that contribute least there; means over the classes (and the worst of them). The last
is the most that so many units can do at layer4, where contributions are exact: the head is linear.
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


@torch.no_grad()
def on_without_own(
    backbone: Backbone, feature: BoundFeature, layer: Layer, pictures: Tensor, count: int
) -> float:
    """Return how many pictures switch on without units that each chooses for itself."""
    on = []
    for some in pictures.split(20):
        activations = backbone.run(some, [layer])[layer]
        with torch.enable_grad():
            asked = [feature] * len(some)
            own = attribute(backbone, some, asked, layer, IntGrad(4))[1].sum((2, 3)).argsort(1)
        kept = torch.ones_like(activations[:, :, 0, 0]).scatter_(1, own[:, :count], 0)
        changed = activations * kept[:, :, None, None]
        tapped = backbone.run_behind(layer, changed, [feature.layer], some)
        on.append(feature(tapped[feature.layer]) > 0)
    return float(torch.cat(on).float().mean())


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
    print("| layer | named | driven by the veto | all active | switched on | random | own |")
    print("|---|---|---|---|---|---|---|")
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
                own = on_without_own(backbone, feature, layer, pictures[RANKED:], named)
                told = (*(float(one.float().mean()) for one in of), shares[0])
                rows[named].append([*told, float(np.mean(shares[1:])), own])
        for named, found_rows in rows.items():
            table = np.array(found_rows)
            worst = np.where([0, 1, 0, 1, 0], table.max(0), table.min(0))
            cells = (f"{a:.0%} ({b:.0%})" for a, b in zip(table.mean(0), worst, strict=True))
            print(f"| {name} | {named} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
