"""What other networks see in inversions of pictures of two things, on networks trained on ImageNet.

Two cut-outs, A and B, stand side by side on a photograph. Taken are pictures in which, by leaving
a part out, A excites the class of A in EfficientNet-Lite0 and B inhibits it. The + inversion should
then show A and the - inversion what of B inhibits. Two judges that had no part in making them,
Lite2 and Lite1, name them: A among the first 5 of 1,000 classes in +, B among the first 50 in -.
The table has the mean of both judges over the pictures that were made, and how many had no target.

    python -m benchmarks.judged_pairs [--pairs 64] [--layers blocks.6 blocks.5 blocks.4]

Needs what benchmarks/real_truth.py needs. `--folder` names another place than /usr/share for the
pictures: cut-outs below tuxpaint/stamps, photographs below backgrounds.
"""

import argparse
import json
import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import torch
from PIL import Image
from timm.data import ImageNetInfo
from torch import Tensor

from benchmarks.real_truth import (
    INSTALLED,
    NETWORKS,
    Composites,
    backgrounds,
    compose,
    cut_outs,
    effects,
    fitted,
    logits,
    named_alike,
)
from mti_lightning import Backbone, PictureData, SignedInversion, render
from mti_lightning.backbone import Preprocessing
from mti_lightning.compose import composite, opacity
from mti_lightning.data.datasets import Picture, Pictures
from mti_lightning.errors import RenderError

SIGNS: Final = {"+": (0, 5), "-": (1, 50)}  # the part that should be named, and among how many
CLEAR: Final = 1.0  # of the logit, that A adds and that B takes away


class _Given(Pictures):
    def __init__(self, pictures: Tensor) -> None:
        self.given, self.keys = pictures, [f"{row}.png" for row in range(len(pictures))]

    def __getitem__(self, index: int) -> Picture:
        return {"picture": self.given[index], "key": self.keys[index]}


@final
class Given(PictureData):
    """Pictures that are there already, as the network takes them."""

    def __init__(self, pictures: Tensor) -> None:
        super().__init__()
        self.given = pictures

    def _open(self, preprocessing: Preprocessing) -> Pictures:
        return _Given(self.given)


def clear_pairs(
    network: Backbone,
    stamps: Sequence[Image.Image],
    names: Sequence[int],
    photographs: Sequence[Image.Image],
    count: int,
    seed: int,
) -> tuple[Composites, Tensor]:
    """Return pictures in which A excites the class of A clearly and B inhibits it, and how much.

    Raises:
        SystemExit: If there are not so many.
    """
    tried = 4 * count
    while tried < len(names) * (len(names) - 1) // 2:
        made = compose(stamps, names, photographs, tried, seed)
        effect = effects(network, made)
        clear = ((effect[:, 0] > CLEAR) & (effect[:, 1] < -CLEAR)).nonzero()[:count, 0]
        if len(clear) == count:
            return made.rows(clear), effect[clear]
        tried *= 2
    raise SystemExit(f"not {count} pairs of these cut-outs; give fewer --pairs")


def judge(
    network: Backbone, judges: Mapping[str, Backbone], made: Composites, layer: str, device: str
) -> dict[str, Any]:
    """Invert pictures at a layer and let others name what they show.

    Returns:
        Of each look and sign, how many had no target, and for each judge the rank of the class
        that should be named, from 0, of each picture that was made.
    """
    start = time.monotonic()
    features = [f"classifier:{int(c)}" for c in made.classes[:, 0]]
    at_once = 16 if device == "cpu" else 64
    objective = SignedInversion(network.cpu(), features, layer, pair="matched", batch_size=at_once)
    quiet: dict[str, Any] = {"enable_progress_bar": False, "devices": 1}
    accelerator = "cpu" if device == "cpu" else "gpu"
    try:
        render(objective, Given(fitted(network, made.shown[0])), accelerator=accelerator, **quiet)
    except RenderError as error:
        print(f"{layer}: {error}")
    with torch.no_grad():
        nothing = torch.empty(0, 3, *objective.canvas)
        plain = torch.cat([nothing, *(chunk().cpu() for chunk in objective.chunks)])
        opaque = [opacity(chunk.saliency().cpu()) for chunk in objective.chunks]
        masked = composite(plain, torch.cat([nothing[:, :1], *opaque]))
    looks: dict[str, Any] = {}
    for look, pictures in (("plain", plain), ("masked", masked)):
        for sign, (part, _) in SIGNS.items():
            rows = [row for row, entry in enumerate(objective.entries) if entry.sign == sign]
            sources = [objective.entries[row].source or 0 for row in rows]
            wanted = made.classes[sources, part, None]
            ranks = {}
            for name, other in judges.items():
                scores = logits(other.to(device), pictures[rows])
                ranks[name] = (scores > scores.gather(1, wanted)).sum(1).tolist()
            told = {"without_target": len(made.classes) - len(rows), "pairs": sources}
            looks.setdefault(look, {})[sign] = {**told, "ranks": ranks}
    return {"seconds": round(time.monotonic() - start), **looks}


def shares(judged: Mapping[str, Any], top: int) -> dict[str, float]:
    """Return how often each judge names what it should among its first classes."""
    return {name: float(np.mean(np.array(r) < top)) for name, r in judged["ranks"].items()}


def row(layer: str, look: str, found: Mapping[str, Any]) -> str:
    """Return a line of the table."""
    cells = [layer, look]
    for sign, (_, top) in SIGNS.items():
        judged = found[look][sign]
        if not (made := len(next(iter(judged["ranks"].values())))):
            cells += ["none made", f"{judged['without_target']}"]
            continue
        each = shares(judged, top)
        told = ", ".join(f"{share:.0%}" for share in each.values())
        mean = float(np.mean([*each.values()]))
        cells += [f"{mean:.0%} of {made} ({told})", f"{judged['without_target']}"]
    return f"| {' | '.join(cells)} | {found['seconds']} |"


def main() -> None:
    """Print the table, and write all ranks to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--layers", nargs="+", default=["blocks.6", "blocks.5", "blocks.4"])
    parser.add_argument("--folder", type=Path, default=INSTALLED, help="What holds the pictures.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, default=Path("tb_logs/judged_pairs.json"))
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    import_module("mti_efficientnet_lite")  # registers the networks
    networks = {name: Backbone(name).to(given.device) for name in NETWORKS}
    network = networks[NETWORKS[0]]
    judges = {name: networks[name] for name in reversed(NETWORKS[1:])}
    photographs = backgrounds(given.folder)
    named = named_alike([*networks.values()], [*cut_outs(given.folder)], photographs)
    made, effect = clear_pairs(network, *named, photographs, given.pairs, given.seed)
    words = [told.partition(",")[0] for told in ImageNetInfo().label_descriptions()]
    pairs = [
        {"a": words[a], "b": words[b], "effect_a": round(of_a, 2), "effect_b": round(of_b, 2)}
        for (a, b), (of_a, of_b) in zip(made.classes.tolist(), effect.tolist(), strict=True)
    ]
    told = {"device": given.device, "seed": given.seed, "cut_outs": len(named[0]), "pairs": pairs}
    print(f"{len(named[0])} cut-outs that all networks name alike, {len(pairs)} pictures")
    heads = [
        f"{sign} names {'AB'[part]}, top {top} | no target" for sign, (part, top) in SIGNS.items()
    ]
    print(f"| layer | look | {' | '.join(heads)} | seconds |\n|---|---|---|---|---|---|---|")
    layers: dict[str, Any] = {}
    for layer in given.layers:
        layers[layer] = judge(network, judges, made, layer, given.device)
        for look in ("plain", "masked"):
            print(row(layer, look, layers[layer]), flush=True)
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({**told, "layers": layers}, indent=1))


if __name__ == "__main__":
    main()
