"""What the judge says of rendered pictures. `python -m tests.tools.verdicts` prints the table of
the README.
"""

import argparse
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor
from torchmetrics.functional.classification import multilabel_average_precision

from mti_lightning import (
    Backbone,
    MaximallyTense,
    SignedInversion,
    Sweep,
    SweepStore,
    VetoedShapesPictures,
    render,
)
from mti_lightning.attribution import ActGrad, attribute
from mti_lightning.compose import composite, opacity
from mti_lightning.objectives import Objective
from mti_lightning.store import MEASURES as STORE_MEASURES
from mti_lightning.vetoed_shapes import KINDS, Contents, VetoedShapes, veto_of
from mti_lightning.vetoed_shapes_judge import judge_scores

CLASSES = [f"fc:{kind}" for kind in range(len(KINDS))]
QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


@dataclass(frozen=True)
class Verdict:
    """Shares of pictures, 0..1."""

    named: float  # whose strongest shape, by the judge, is the one that was asked for
    named_where_it_looked: float  # the same, of the picture laid over grey by its transparency
    moved: float  # whose response moved the right way from the source's


def pictures_of(objective: Objective) -> tuple[Tensor, Tensor]:
    """Return the pictures, plain and laid over grey by their transparency, [N, 3, H, W] each."""
    with torch.no_grad():
        plain = torch.cat([chunk() for chunk in objective.chunks])
        alpha = torch.cat([opacity(chunk.saliency()) for chunk in objective.chunks])
    return plain, composite(plain, alpha)


def judge_inversions(
    layer: str, sources: int = 64, contents: Contents = "tense", seed: int = 101, **options: Any
) -> dict[str, Verdict]:
    """Invert fresh pictures that hold a shape and its veto; return a verdict for + and for −."""
    objective = SignedInversion(
        Backbone("vetoed_shapes_resnet"), CLASSES, layer, pair="matched", batch_size=64, **options
    )
    render(objective, VetoedShapesPictures(sources, seed=seed, contents=contents), **QUIET)
    plain, masked = pictures_of(objective)
    named = [judge_scores(pictures).argmax(1) for pictures in (plain, masked)]
    response, before = (
        objective.measure()["response"],
        objective.measure(of_sources=True)["response"],
    )
    verdicts = {}
    for sign in ("+", "-"):
        rows = torch.tensor([entry.sign == sign for entry in objective.entries])
        classes = [entry.feature for entry in objective.entries if entry.sign == sign]
        wanted = torch.tensor([kind if sign == "+" else veto_of(kind) for kind in classes])
        moved = response > before if sign == "+" else response < before
        shares = [(kinds[rows] == wanted).float().mean().item() for kinds in named]
        verdicts[sign] = Verdict(*shares, moved[rows].float().mean().item())
    return verdicts


@dataclass(frozen=True)
class TenseVerdict:
    """What maximally tense images of every class show."""

    both_found: float  # share of the images in which the judge finds both the shape and its veto
    balance: Tensor  # [N], 0..1
    tension: Tensor  # [N], in units of the response
    natural: Tensor  # [N], the 99th percentile of the same class over natural pictures


def judge_tense(layer: str, seeds: int = 4, natural: int = 2000, **options: Any) -> TenseVerdict:
    """Synthesise MTIs of every class logit and compare them with natural pictures."""
    objective = MaximallyTense(
        Backbone("vetoed_shapes_resnet"), CLASSES, layer, seeds=seeds, batch_size=32, **options
    )
    render(objective, epochs=8, **QUIET)
    scores = judge_scores(pictures_of(objective)[0])  # [N, 8]
    kinds = torch.tensor([entry.feature for entry in objective.entries])
    vetoes = torch.tensor([veto_of(int(kind)) for kind in kinds])
    rows = torch.arange(len(kinds))
    both = (scores[rows, kinds] > 0) & (scores[rows, vetoes] > 0)
    measures = objective.measure()
    world = VetoedShapes(natural, seed=103)
    pictures = torch.stack([world[index]["picture"] for index in range(natural)])
    percentiles = []
    for probe in objective.probes:
        tension = [
            objective.tension(
                attribute(
                    objective.backbone, part, [probe] * len(part), objective.layer, ActGrad()
                )[1]
            )
            for part in pictures.split(250)
        ]
        percentiles.append(torch.quantile(torch.cat(tension), 0.99))
    return TenseVerdict(
        both.float().mean().item(),
        measures["balance"],
        measures["tension"],
        torch.stack(percentiles)[kinds],
    )


def rank_tense(
    layer: str, store: Path, pictures: int = 2048, contents: Contents = "random"
) -> dict[str, float]:
    """Sweep fresh pictures for every class logit; return for each measure how well it ranks those
    that hold the class's shape and its veto first: average precision, macro average over classes.
    """
    sweep = Sweep(Backbone("vetoed_shapes_resnet"), ["fc:*"], layer, store=str(store))
    data = VetoedShapesPictures(pictures, seed=107, contents=contents)
    Trainer(logger=False, enable_model_summary=False, **QUIET).predict(
        sweep, datamodule=data, return_predictions=False
    )
    swept = SweepStore(store)
    tense = torch.stack([data.world[index]["tense"] for index in range(pictures)]).long()
    return {
        measure: float(
            multilabel_average_precision(
                torch.from_numpy(swept.values(measure)).double().argsort(0).argsort(0) / pictures,
                tense,
                len(KINDS),
            )
        )
        for measure in STORE_MEASURES
    }


def main() -> None:
    """Print the verdicts of several layers, ways and contents."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=int, default=64)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    print(
        "| attribution layer | sources | way | + names the shape (masked) | − names the veto "
        "(masked) | moved +, − |"
    )
    print("|---|---|---|---|---|---|")
    for contents in ("tense", "overlap"):
        for layer in ("layer4", "layer3", "layer2"):
            for way, options in (("default", {}), ("authors'", {"coherent": False})):
                if contents == "overlap" and options:
                    continue
                plus, minus = judge_inversions(layer, given.sources, contents, **options).values()
                print(
                    f"| {layer} | {contents} | {way} | {plus.named:.0%} "
                    f"({plus.named_where_it_looked:.0%}) | "
                    f"{minus.named:.0%} ({minus.named_where_it_looked:.0%}) | "
                    f"{plus.moved:.0%}, {minus.moved:.0%} |",
                    flush=True,
                )
    for layer in ("layer4", "layer3"):
        tense = judge_tense(layer)
        print(
            f"MTIs at {layer}: both found {tense.both_found:.0%}, balance at least "
            f"{tense.balance.min():.2f}, "
            f"tension {(tense.tension / tense.natural).min():.1f} times the 99th percentile or more"
        )


if __name__ == "__main__":
    main()
