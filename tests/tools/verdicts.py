"""What the judge says of rendered pictures, and how well measures rank tense pictures.

`python -m tests.tools.verdicts` prints the figures of docs/evidence.md.
"""

import argparse
import warnings
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from lightning import Trainer
from torch import Tensor
from torchmetrics.functional.classification import multilabel_average_precision

from mti_lightning import (
    AtlasInversion,
    Backbone,
    Chart,
    MaximallyTense,
    SignedInversion,
    Sweep,
    SweepStore,
    VetoedShapesPictures,
    render,
)
from mti_lightning.attribution.methods import ActGrad, attribute
from mti_lightning.compose import composite, opacity
from mti_lightning.objectives.base import Objective
from mti_lightning.sweep.measures import MEASURES as STORE_MEASURES
from mti_lightning.vetoed_shapes.judge import judge_scores
from mti_lightning.vetoed_shapes.shapes import KINDS
from mti_lightning.vetoed_shapes.training import disturb
from mti_lightning.vetoed_shapes.world import Contents, VetoedShapes, veto_of

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
    response, (pairs, measured) = objective.measure()["response"], objective.measure_sources()
    of_pair = dict(zip(pairs, measured["response"], strict=True))
    before = torch.stack([of_pair[entry.source, entry.feature] for entry in objective.entries])
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
    for bound_feature in objective.bound_features:
        tension = [
            objective.tension(
                attribute(
                    objective.backbone,
                    part,
                    [bound_feature] * len(part),
                    objective.layer,
                    ActGrad(),
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


@dataclass(frozen=True)
class FaceVerdict:
    """What one face shows of the cells of an atlas in which most pictures are tense."""

    cells: int
    found: int  # on which the judge finds the shape that was asked for: its logit is above 0
    strongest: int  # on which that shape's logit is the highest of all eight
    claimed: float  # of the six that are neither shape nor veto, how many it finds on a face


def judge_atlas(
    kind: int,
    store: Path,
    layer: str = "layer4",
    pictures: int = 2000,
    seed: int = 3,
    chart: dict[str, Any] | None = None,
    **options: Any,
) -> dict[str, FaceVerdict]:
    """Make the + and − faces of an atlas of a class, of random pictures, by default as the demo's.

    Of the whole atlas only the icons of those cells in which more than half of the pictures hold
    the shape and its veto: they do not depend on the others. A face that is left out as too faint
    counts as one on which nothing is found.

    Returns:
        A verdict for +, which should show the shape, and for −, which should show the veto.
    """
    shape, veto = kind, veto_of(kind)
    data = VetoedShapesPictures(pictures, seed=seed, contents="random")
    objective = AtlasInversion(
        Backbone("vetoed_shapes_resnet"),
        [CLASSES[kind]],
        layer,
        chart=Chart(str(store), **(chart or {"size": (20, 20), "quiet": 0})),
        faces=("positive", "negative"),
        keep=pictures,
        batch_size=64,
        **options,
    )
    objective.build_bank(data)
    assert objective.map is not None
    held = objective.map.layout.pictures.tolist()
    tense = np.array([{shape, veto} <= {*data.world.kinds(place)} for place in held])
    chosen = {i for i, cell in enumerate(objective.map.cells) if tense[cell.members].mean() > 0.5}
    shown = objective.shows
    objective.shows = lambda source, face: source in chosen and shown(source, face)
    objective.bank = torch.nn.ModuleList()
    render(objective, data, **QUIET)
    scores = judge_scores(pictures_of(objective)[0])  # [N, 8]
    others = [k for k in range(len(KINDS)) if k not in (shape, veto)]
    verdicts = {}
    for sign, wanted in (("+", shape), ("-", veto)):
        of_sign = scores[[entry.sign == sign for entry in objective.entries]]
        verdicts[sign] = FaceVerdict(
            len(chosen),
            int((of_sign[:, wanted] > 0).sum()),
            int((of_sign.argmax(1) == wanted).sum()),
            (of_sign[:, others] > 0).sum(1).float().mean().item(),
        )
    return verdicts


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


def rate_judge(contents: Contents, disturbed: bool = False, pictures: int = 1024) -> list[float]:
    """Return of the judge on fresh pictures its mean average precision, how often the strongest
    shape is there, and the shares of shapes that are there, and that are not, with a logit above 0.
    """
    world = VetoedShapes(pictures, 31, contents=contents)
    scores, held = [], []
    torch.manual_seed(0)
    for start in range(0, pictures, 64):
        samples = [world[row] for row in range(start, min(start + 64, pictures))]
        shown = torch.stack([sample["picture"] for sample in samples])
        scores.append(judge_scores(disturb(shown) if disturbed else shown))
        held += [sample["present"] for sample in samples]
    every, present = torch.cat(scores), torch.stack(held).long()
    return [
        float(multilabel_average_precision(every.sigmoid(), present, len(KINDS))),
        float(present.gather(1, every.argmax(1, keepdim=True)).float().mean()),
        float((every > 0)[present == 1].float().mean()),
        float((every > 0)[present == 0].float().mean()),
    ]


def print_judge() -> None:
    """Print how good the judge is."""
    print("| pictures | mean average precision | strongest is there | found | claimed |")
    print("|---|---|---|---|---|")
    shown: list[tuple[Contents, bool]] = [(c, False) for c in ("random", "tense", "overlap")]
    for contents, disturbed in [*shown, ("random", True)]:
        precise, *shares = rate_judge(contents, disturbed)
        told = f"{contents}, disturbed" if disturbed else contents
        print(f"| {told} | {precise:.3f} | {' | '.join(f'{s:.0%}' for s in shares)} |", flush=True)


def main() -> None:
    """Print how good the judge is, and its verdicts of several layers, ways and contents."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=int, default=64)
    parser.add_argument("--judge", action="store_true", help="Print no more than that.")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    print_judge()
    if given.judge:
        return
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
    measures = ("tension", "tension_centred", "minimum", "harmonic", "tension_l2")
    print("| pictures | attribution layer | " + " | ".join(measures) + " |")
    print("|---" * (2 + len(measures)) + "|")
    with TemporaryDirectory() as folder:
        for contents, layer in (
            *product(("random",), ("layer4", "layer3", "layer2")),
            *product(("overlap",), ("layer4", "layer3")),
        ):
            ranked = rank_tense(layer, Path(folder, f"{contents}_{layer}.zarr"), contents=contents)
            figures = " | ".join(f"{ranked[measure]:.3f}" for measure in measures)
            print(f"| {contents} | {layer} | {figures} |", flush=True)
        for kind in range(len(KINDS)):
            for sign, face in judge_atlas(kind, Path(folder, f"{kind}.zarr")).items():
                print(
                    f"atlas of {CLASSES[kind]}, {sign} faces of {face.cells} cells of tense "
                    f"pictures: found on {face.found}, strongest on {face.strongest}, "
                    f"{face.claimed:.1f} of six others claimed",
                    flush=True,
                )


if __name__ == "__main__":
    main()
