"""Whether inhibitors are those that carry the veto, for each class of the vetoed shapes.

Units of a layer are ranked by their mean contribution in 60 tense pictures of a class, and those
that inhibit most are silenced in 40 others. Columns: how many are named; of these, and of all units
that are active, the share that is more active in pictures of the veto alone than in pictures of
one other shape; in how many of the 40 the class switches on without the named ones, without as
many random active units, the mean of ten draws, and without as many that each picture chooses for
itself, those that contribute least there; means over the classes (and the worst of them). The last
is the most that so many units can do at layer4, where contributions are exact: the head is linear.

With `--atoms` units are not channels, but the atoms of a dictionary: what each shape adds to the
layer, and what is always there, by least squares over pictures at random. Needs mti-sae.
"""

import argparse
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import torch
from torch import Tensor

from mti_lightning import Backbone, BoundFeature, Feature, IntGrad, Layer, VetoedShapes, attribute
from mti_lightning.vetoed_shapes.shapes import KINDS
from mti_lightning.vetoed_shapes.world import veto_of

RANKED, TESTED, DRAWS, SINGLE, FITTED = 60, 40, 10, 1500, 400
NETWORK: Final = "vetoed_shapes_resnet"


@torch.no_grad()
def pooled(backbone: Backbone, layer: Layer, pictures: Tensor) -> Tensor:
    """Return mean activations over positions, [N, C]."""
    parts = pictures.split(50)
    return torch.cat([backbone.run(part, [layer])[layer].mean((2, 3)) for part in parts])


def with_atoms(layer: str) -> Backbone:
    """Return the network in which what each shape adds to a layer is a unit of `layer.codes`."""
    import_module("mti_sae.spliced")  # registers it
    plain, world = Backbone(NETWORK), VetoedShapes(FITTED, seed=3)
    samples = [world[index] for index in range(FITTED)]
    shapes = torch.stack([one["present"] for one in samples]).float()
    known = torch.cat([shapes, torch.ones(FITTED, 1)], 1)
    shown = pooled(plain, Layer(layer), torch.stack([one["picture"] for one in samples]))
    with TemporaryDirectory() as folder:
        file = Path(folder) / "atoms.npy"
        np.save(file, torch.linalg.lstsq(known, shown).solution.numpy())
        of = {"network": NETWORK, "layer": layer, "dictionary": str(file)}
        return Backbone("with_dictionary", arguments=of)


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
    parser.add_argument("--counts", nargs="+", type=int, help="8 and 16, or 1 atom, by default.")
    parser.add_argument("--atoms", action="store_true", help="Of a dictionary, for channels.")
    given = parser.parse_args()
    count, counts = len(KINDS), given.counts or ([1] if given.atoms else [8, 16])
    tense = VetoedShapes(count * (RANKED + TESTED), seed=7, contents="tense")
    world = VetoedShapes(SINGLE, seed=8)
    samples = [world[index] for index in range(SINGLE)]
    alone = [one for one in samples if one["present"].sum() == 1]
    single = torch.stack([one["picture"] for one in alone])
    shape = torch.stack([one["present"] for one in alone]).argmax(1)
    print("| layer | named | driven by the veto | all active | switched on | random | own |")
    print("|---|---|---|---|---|---|---|")
    for name in given.layers:
        backbone = with_atoms(name) if given.atoms else Backbone(NETWORK)
        layer = Layer(f"{name}.codes" if given.atoms else name)
        activations = pooled(backbone, layer, single)
        rows: dict[int, list[list[float]]] = {named: [] for named in counts}
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
            for named in counts:
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
            print(f"| {layer} | {named} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
