"""What the toys cost beside one start at a time, and how well interference is told from inhibition.

`python -m benchmarks.superposition` prints five tables, which takes hours; `make bench` prints the
first two, docs/evidence-superposition.md holds the last two. Speed: a step of 1,000 starts as a
model, run by the trainer, beside a step of one network in plain PyTorch on samples drawn
beforehand. Loss: the same starts on the same samples, one by one and as one model. Halving: where
the start that ends best stood when others are dropped. Interference: AUROC of telling genuine
tension from interference, over toys of several sizes and sparsities; 0.5 is chance. Narrow: the
same in a vision network with fewer channels than the world has shapes, with the tension of signs
that are split at each position and with that of signs that are split after positions are summed.
"""

import argparse
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_auroc

from mti_lightning import Backbone, Sweep, SweepStore, VetoedShapesPictures
from mti_lightning.attribution.signs import cosine
from mti_lightning.attribution.tension import Tension
from mti_lightning.images.seeds import derive_seed, generator_at
from mti_lightning.superposition import interference
from mti_lightning.superposition.networks import Weights, tension_causes
from mti_lightning.superposition.toys import AbsoluteValue, ExclusiveOr, Toy
from mti_lightning.vetoed_shapes.world import VETO_OFFSET, VetoedShapes

STEPS = 20_000
AS_THE_AUTHORS: dict[type[Toy], dict[str, float]] = {
    AbsoluteValue: {"probability": 0.01, "batch_size": 400},
    ExclusiveOr: {"probability": 0.05, "batch_size": 600},
}
SIZES: list[tuple[type[Toy], int, int, float]] = [  # that the index was chosen on, with seed 0
    *((ExclusiveOr, n, m, 0.05) for n, m in ((6, 12), (6, 8), (6, 6), (8, 8), (10, 8))),
    *((ExclusiveOr, 6, 8, probability) for probability in (0.02, 0.15)),
    *((AbsoluteValue, n, m, 0.01) for n, m in ((6, 12), (6, 8), (6, 6))),
    (AbsoluteValue, 6, 8, 0.15),
]
OTHER_SIZES: list[tuple[type[Toy], int, int, float]] = [
    (ExclusiveOr, 12, 12, 0.05),
    (AbsoluteValue, 10, 8, 0.05),
]
CLEAR = 0.1  # tension above it counts; a response that is fully on is 1
FEWEST = 20  # samples of either kind in a network that is judged

Row = dict[str, float | str]  # of a table


# --- speed and loss ---


def fit(toy: Toy, epochs: int, *callbacks: Callback) -> float:
    """Train a toy, and return the seconds that it took."""
    trainer = Trainer(
        callbacks=list(callbacks),
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    start = time.perf_counter()
    trainer.fit(toy)
    return time.perf_counter() - start


def one(toy: Toy, start: int) -> nn.Sequential:
    """Return one start of a toy as a plain network."""
    weights = toy.weights.at(start)
    hidden, inputs = weights.hidden.shape
    first = nn.Linear(inputs, hidden, bias=toy.biased)
    network = nn.Sequential(first, nn.ReLU(), nn.Linear(hidden, toy.features), nn.ReLU())
    with torch.no_grad():
        first.weight.copy_(weights.hidden)
        network[2].weight.copy_(weights.output)
        network[2].bias.copy_(weights.output_bias)
        if toy.biased:
            first.bias.copy_(weights.hidden_bias)
    return network


def batches(toy: Toy, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw what the toy draws at each step, every sample for itself, and the answers."""
    for step in range(steps):
        inputs, counts = toy.draw(toy.batch_size, generator_at(derive_seed("toy", toy.seed), step))
        inputs = inputs.repeat_interleave(counts.long(), 0)
        yield inputs, toy.answer(inputs)


def train_one(network: nn.Sequential, data: Iterable[tuple[Tensor, Tensor]], toy: Toy) -> None:
    """Train a plain network, a step on each batch."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for inputs, answers in data:
        optimizer.zero_grad()
        error = ((network(inputs) - answers).square() * toy.importance).sum(1).mean()
        error.backward()
        optimizer.step()


def compare_speed(kind: type[Toy], starts: int, rounds: int = 5) -> dict[str, float]:
    """Time a step of all starts as one model and of one alone, in turn."""
    toy = kind(starts=starts, steps_per_epoch=200, **AS_THE_AUTHORS[kind])
    data = list(batches(toy, 500))
    fit(kind(starts=starts, steps_per_epoch=20, **AS_THE_AUTHORS[kind]), 1)  # warm
    pairs = []
    for _ in range(rounds):
        together = fit(toy, 1) / toy.steps_per_epoch / starts
        begun = time.perf_counter()
        train_one(one(toy, 0), data, toy)
        pairs.append((together, (time.perf_counter() - begun) / len(data)))
    return {
        "together_us": statistics.median(pair[0] for pair in pairs) * 1e6,
        "alone_us": statistics.median(pair[1] for pair in pairs) * 1e6,
        "ratio": statistics.median(pair[1] / pair[0] for pair in pairs),
        # What 1,000 starts take when none is dropped.
        "minutes": statistics.median(pair[0] for pair in pairs) * 1000 * STEPS / 60,
    }


def compare_loss(kind: type[Toy], starts: int, steps: int) -> dict[str, float]:
    """Train the same starts on the same samples both ways; return the best errors."""
    toy = kind(starts=starts, steps_per_epoch=steps, **AS_THE_AUTHORS[kind])
    networks = [one(toy, start) for start in range(starts)]
    begun = time.perf_counter()
    for network in networks:
        train_one(network, batches(toy, steps), toy)
    alone_s = time.perf_counter() - begun
    together_s = fit(toy, 1)
    errors = toy.error.clone()
    for start, network in enumerate(networks):
        trained = Weights(
            network[0].weight,
            network[0].bias if toy.biased else toy.weights.hidden_bias[start],
            network[2].weight,
            network[2].bias,
        )
        for weight, value in zip(toy.weights, trained, strict=True):
            weight.data[start] = value.data
    alone = toy.test_error()
    return {
        "together_s": together_s,
        "alone_s": alone_s,
        "together_best": float(errors.min()),
        "alone_best": float(alone.min()),
        "together_median": float(errors.median()),
        "alone_median": float(alone.median()),
    }


class Errors(Callback):
    """Keeps the errors of all starts after each epoch."""

    def __init__(self) -> None:
        self.by_epoch: list[Tensor] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.by_epoch.append(pl_module.error.clone())


def rank_best(kind: type[Toy], starts: int) -> dict[str, float]:
    """Train all starts to the end; say where the best of them stood when halves are dropped.

    It is kept if its rank is below a half, a quarter, an eighth of the starts.
    """
    toy, errors = kind(starts=starts, **AS_THE_AUTHORS[kind]), Errors()
    fit(toy, 20, errors)
    best = int(toy.error.argmin())
    return {
        f"rank_after_{epoch}": int((errors.by_epoch[epoch] < errors.by_epoch[epoch][best]).sum())
        for epoch in (8, 12, 16)
    }


# --- interference ---


def train_best(
    kind: type[Toy], features: int, hidden: int, probability: float, groups: int, seed: int
) -> tuple[Toy, list[Weights]]:
    """Train groups of 20 starts; return the toy and the best network of each group."""
    batch_size = int(AS_THE_AUTHORS[kind]["batch_size"])
    sizes = {"starts": 20 * groups, "batch_size": batch_size, "steps_per_epoch": STEPS}
    toy = kind(features, hidden, probability, seed=seed, **sizes)
    fit(toy, 1)
    best = toy.error.view(groups, 20).argmin(1) + 20 * torch.arange(groups)
    return toy, [Weights(*(w.detach() for w in toy.weights.at([i]))) for i in best.tolist()]


def label(toy: Toy, weights: Weights, inputs: Tensor, tension: Tensor) -> tuple[Tensor, Tensor]:
    """Return what is genuine and what is interference, [N, n] each; the rest is mixed.

    Genuine: all of the output's own inputs are on, and with them alone there is tension, too.
    Interference: none of them is on, but others are. Both only where `tension`, [N, n], is CLEAR.
    Between them, one of two XOR inputs, the feature is expressed.
    """
    own = toy.own()
    on = torch.stack([(inputs[:, mask] != 0).sum(1) for mask in own], 1)  # [N, n]
    caused, _ = tension_causes(weights, inputs, own)
    tense = tension > CLEAR
    other = (on == 0) & inputs.any(1, keepdim=True)
    return (on == toy.width) & (caused > CLEAR) & tense, other & tense


def scores(toy: Toy, weights: Weights, samples: int, seed: int) -> dict[str, float]:
    """Return the AUROC of each way to tell genuine tension from interference in a network.

    What they need they take from other samples, without their labels. Empty where too few samples
    are tense for either reason.
    """
    measured = []
    for split in ("reference", "test"):
        inputs, counts = toy.draw(samples, generator_at(derive_seed("toy", split, seed), 0))
        inputs = inputs.repeat_interleave(counts.long(), 0)
        activations = weights.activate(inputs)[0]  # [N, m]
        measured.append((inputs, activations, weights.respond(activations[None])[0]))
    (_, reference, reached), (inputs, activations, responses) = measured
    output, mean = weights.output[0], reference.mean(0)
    profiles = interference.profiles(reference, (reference - mean)[:, None] * output, reached)
    attributions = (activations - mean)[:, None] * output  # [N, n, m]
    minimum = Tension("minimum")
    tension = minimum(attributions.flatten(0, 1)).view_as(responses)
    raw = (activations[:, None] * output).flatten(0, 1)
    excitation = attributions.clamp(min=0)
    alike = cosine(excitation.flatten(0, 1), profiles.excitation.repeat(len(inputs), 1))
    expressed = profiles.expressed
    residual = interference.residual(activations, profiles).clamp(min=1e-6)
    ways = {
        "tension": minimum(raw).view_as(responses),
        "tension_centred": tension,
        "response": responses,
        "cosine": alike.view_as(responses),
        "strength": interference.share_against_rival(
            interference.strength(attributions, profiles), expressed
        ),
        "explained": interference.share_against_rival(
            interference.explained(activations, profiles), expressed
        ),
        "residual": interference.share_against_rival(1 / residual, expressed),
        "index": -interference.interference_index(activations, attributions, profiles),
    }
    genuine, other = label(toy, weights, inputs, tension)
    chosen = (genuine | other) & expressed
    truth = genuine[chosen].long()
    if min(truth.sum(), (1 - truth).sum()) < FEWEST:
        return {}
    return aurocs(ways, chosen, truth) | {"genuine": float(truth.float().mean())}


def aurocs(ways: dict[str, Tensor], chosen: Tensor, truth: Tensor) -> dict[str, float]:
    """Return the AUROC of each way's values where `chosen`."""
    # Ranks, since binary_auroc takes scores outside 0..1 for logits, and squeezes them.
    ranks = {way: values[chosen].unique(return_inverse=True)[1] for way, values in ways.items()}
    return {
        way: float(binary_auroc(rank / rank.max().clamp(min=1), truth))
        for way, rank in ranks.items()
    }


def tell_apart(size: tuple[type[Toy], int, int, float], groups: int, seeds: Sequence[int]) -> Row:
    """Return the mean AUROC of each way over networks of one size, and the index's lowest."""
    found = []
    for seed in seeds:
        toy, networks = train_best(*size, groups, seed)
        found += [scores(toy, network, 20_000, seed) for network in networks]
    judged = [row for row in found if row]
    kind, features, hidden, probability = size
    row: Row = {"toy": kind.__name__, "n": features, "m": hidden, "on": probability}
    row |= {"networks": len(judged)}
    if judged:
        row |= {way: statistics.fmean(of[way] for of in judged) for way in judged[0]}
        row |= {"index_lowest": min(of["index"] for of in judged)}
    print(row, flush=True)
    return row


def tell_apart_in_pictures(summed: Literal["channels", "positions"], pictures: int = 1500) -> Row:
    """Return the AUROC of each measure of a sweep of the narrow backbone, over all classes."""
    data = VetoedShapesPictures(pictures, seed=41, contents="random")
    with TemporaryDirectory() as folder:
        store = Path(folder, "sweep.zarr")
        sweep = Sweep(
            Backbone("vetoed_shapes_narrow"),
            ["fc:*"],
            "layer4",
            tension=Tension(summed=summed),
            store=str(store),
            calibrate=1024,
        )
        trainer = Trainer(logger=False, enable_progress_bar=False, accelerator="cpu")
        trainer.predict(sweep, datamodule=data, return_predictions=False)
        found = SweepStore(store)
        measures = ("tension", "tension_centred", "response", "interference")
        values = {name: torch.from_numpy(found.values(name)) for name in measures}
    chosen, truth = causes_in_pictures(data.world)
    values["index"] = -values.pop("interference")
    return {"summed": summed} | aurocs(values, chosen, truth)


def causes_in_pictures(world: VetoedShapes) -> tuple[Tensor, Tensor]:
    """Return for which pictures and classes it is known what causes tension, and whether genuinely.

    Genuine: shape and veto are in the picture. Interference: neither is, whatever tension there is.

    Returns:
        [N, 8], True where one or the other is so; of those, in their order, 1 where it is genuine.
    """
    held = [world[index] for index in range(len(world))]
    present, tense = (torch.stack([of[name] for of in held]) for name in ("present", "tense"))
    neither = (present + present.roll(-VETO_OFFSET, 1)) == 0
    chosen = neither | (tense == 1)
    return chosen, tense[chosen].long()


def main() -> None:
    """Print the tables, and write them where asked."""
    tables = ("speed", "loss", "halving", "interference", "narrow")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=tables, default=tables)
    parser.add_argument(
        "--starts", type=int, default=1000, help="Of the tables on speed and halving."
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="Of the table on loss.")
    parser.add_argument("--groups", type=int, default=3, help="Networks of each size and seed.")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[1], help="The index was chosen on seed 0."
    )
    parser.add_argument("--out", type=Path, help="Writes OUT.md and OUT.json.")
    given = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*num_workers|.*LeafSpec|.*many workers|.*logging interval")
    kinds = tuple(AS_THE_AUTHORS)
    rows: dict[str, Callable[[], list[Row]]] = {
        "speed": lambda: [{"toy": k.__name__, **compare_speed(k, given.starts)} for k in kinds],
        "loss": lambda: [{"toy": k.__name__, **compare_loss(k, 20, given.steps)} for k in kinds],
        "halving": lambda: [{"toy": k.__name__, **rank_best(k, given.starts)} for k in kinds],
        "interference": lambda: [
            tell_apart(size, given.groups, given.seeds) for size in [*SIZES, *OTHER_SIZES]
        ],
        "narrow": lambda: [tell_apart_in_pictures("channels"), tell_apart_in_pictures("positions")],
    }
    written = {name: rows[name]() for name in tables if name in given.only}
    page = "\n".join(f"## {name}\n\n{table(of)}" for name, of in written.items())
    print(page)
    if given.out:
        given.out.with_suffix(".md").write_text(page)
        given.out.with_suffix(".json").write_text(json.dumps(written, indent=2))


def table(rows: Sequence[Row]) -> str:
    """Return rows as Markdown; a row need not have all columns."""
    columns = dict.fromkeys(name for row in rows for name in row)
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        values = (row.get(name, "") for name in columns)
        cells = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in values)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
