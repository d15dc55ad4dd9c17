"""How well tension by each method ranks the truly tense pictures of the vetoed shapes.

`python plugins/mti-captum/tests/rank_tense.py` prints the table of the README, in half an hour.
"""

import argparse
import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
from mti_captum import DeepLift, GradientShap, IntegratedGradients
from torch import Tensor, nn
from torchmetrics.functional.classification import multilabel_average_precision

from mti_lightning import (
    ActGrad,
    Attribution,
    Backbone,
    BoundFeature,
    Feature,
    Layer,
    Pass,
    Tension,
    VetoedShapesPictures,
    attribute,
)

KINDS, BATCH = 8, 128


class Passing(Attribution):
    """Keeps the pass."""

    differentiable = False
    additive = False
    needs_baseline = True

    def attribute(self, forward: Pass, create_graph: bool) -> Tensor:
        self.forward = forward
        return forward.activations


def short(forward: Pass, rest: Sequence[nn.Module], kinds: Sequence[int]) -> Pass:
    """Return a pass whose head does without the layers before, for methods that hook none.

    Args:
        forward: The pass, of logits.
        rest: What comes behind the attribution layer.
        kinds: The class of each picture.
    """

    def head(values: Tensor) -> Tensor:
        for module in rest:
            values = module(values)
        return values[range(len(values)), list(kinds)]

    def at(pictures: Tensor, rows: Sequence[int]) -> Pass:
        some = replace(
            forward,
            pictures=pictures,
            activations=forward.activations[rows],
            responses=forward.responses[rows],
        )
        return short(some, rest, [kinds[row] for row in rows])

    return replace(forward, head=head, at=at)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=768)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    backbone, passing = Backbone("vetoed_shapes_resnet"), Passing()
    network = backbone.network
    data = VetoedShapesPictures(given.pictures, seed=107, contents="random")
    world = [data.world[index] for index in range(given.pictures)]
    pictures = torch.stack([one["picture"] for one in world])
    tense = torch.stack([one["tense"] for one in world]).long()
    found: dict[tuple[str, str], Tensor] = {}
    for layer in ("layer4", "layer3"):
        rest = [network.layer4, network.global_pool, network.fc][layer == "layer4" :]
        tapped = backbone.run(pictures, [Layer(layer)])[Layer(layer)].detach()
        mean = tapped.mean((0, 2, 3), keepdim=True)
        for kind in range(KINDS):
            bound_feature = BoundFeature(Feature("fc", kind), backbone)
            for start in range(0, len(pictures), BATCH):
                part = pictures[start : start + BATCH]
                attribute(backbone, part, [bound_feature] * len(part), Layer(layer), passing)
                zero = replace(passing.forward, baseline=torch.zeros_like(mean))
                centred = replace(passing.forward, baseline=mean)

                for name, method, forward in (
                    ("ActGrad", ActGrad(), zero),
                    ("IntegratedGradients", IntegratedGradients(most=0), zero),
                    ("IntegratedGradients, from the mean", IntegratedGradients(most=0), centred),
                    ("DeepLift", DeepLift(), zero),
                    ("DeepLift, from the mean", DeepLift(), centred),
                    ("GradientShap", GradientShap(), zero),
                ):
                    tension = found.setdefault(
                        (name, layer), torch.zeros(len(pictures), KINDS, dtype=torch.float64)
                    )
                    given = forward
                    if not isinstance(method, DeepLift):  # it watches the whole network
                        given = short(forward, rest, [kind] * len(part))
                    values = Tension()(method.attribute(given, False)).double()
                    tension[start : start + len(part), kind] = values
            print(layer, kind, flush=True)
    report(found, tense)


def report(found: dict[tuple[str, str], Tensor], tense: Tensor) -> None:
    """Print average precisions, mean of the classes."""
    print("| method | layer4 | layer3 |\n|---|---|---|")
    for name in dict.fromkeys(name for name, _ in found):
        scores = []
        for layer in ("layer4", "layer3"):
            ranks = found[name, layer].argsort(0).argsort(0) / len(tense)
            scores.append(float(multilabel_average_precision(ranks, tense, KINDS)))
        print(f"| {name} | {scores[0]:.3f} | {scores[1]:.3f} |")


if __name__ == "__main__":
    main()
