"""What other networks see in inversions of pictures of two things, on networks trained on ImageNet.

Two cut-outs, A and B, stand side by side on a photograph. Taken are pictures in which, by leaving
a part out, A excites the class of A in EfficientNet-Lite0 and B inhibits it. The + inversion should
then show A and the - inversion what of B inhibits. Two judges that had no part in making them,
Lite2 and Lite1, name them: A among the first 5 of 1,000 classes in +, B among the first 50 in -.
The table has the mean of both judges over the pictures that were made, and how many had no target.
Its first rows are what the judges name in the photographs themselves: in the picture of both parts,
and in those of A alone (under +) and of B alone (under -). With `--own` no attribution has a part
in it: each part's own activations are inverted, in its known place. Neither method nor target can
be expected to show more than that.

    python -m benchmarks.judged_pairs [--pairs 64] [--layers blocks.6 blocks.5 blocks.4] [--own]

Needs what benchmarks/real_truth.py needs. `--folder` names another place than /usr/share for the
pictures: cut-outs below tuxpaint/stamps, photographs below backgrounds.
"""

import argparse
import json
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
from torch.nn.functional import adaptive_avg_pool2d

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
from mti_lightning import Backbone, Layer, PictureData, SignedInversion, render
from mti_lightning.backbone import Preprocessing
from mti_lightning.compose import composite, opacity
from mti_lightning.data.datasets import Picture, Pictures
from mti_lightning.errors import RenderError
from mti_lightning.objectives.chunk import Entry
from mti_lightning.objectives.inversion import Inversion, Target

SIGNS: Final = {"+": (0, 5), "-": (1, 50)}  # the part that should be named, and among how many
HELD: Final = 0.1  # of a position has to be a part's, for it to be of the part's place
# With --also: earlier stages whose maps are at most twice as fine.
BEFORE: Final = {
    "blocks.6": ["blocks.3", "blocks.4", "blocks.5"],
    "blocks.5": ["blocks.3", "blocks.4"],
}
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


@final
class OwnActivations(Inversion):
    """Inversions of a part's own activations in its known place: A for +, B for -.

    Args:
        masks: How much of A and of B is in each pixel of each source, uint8 [N, 2, S, S].
    """

    signs = ("+", "-")

    def __init__(self, *args: Any, masks: Tensor, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert self.layout.grid is not None
        self.places = adaptive_avg_pool2d(masks.float() / 255, self.layout.grid) > HELD

    @torch.no_grad()
    def targets_of(self, entries: Sequence[Entry], layer: Layer | None = None) -> Target:
        assert self.sources is not None
        shown = [entry.source or 0 for entry in entries]
        parts = [SIGNS[entry.sign or "+"][0] for entry in entries]
        activations = self.backbone.run(self.sources[shown].to(self.device), [self.layer])
        places = self.places[shown, parts, None].to(activations[self.layer])  # [N, 1, h, w]
        return activations[self.layer] * places, places


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


def judge_photographs(judges: Mapping[str, Backbone], made: Composites) -> dict[str, Any]:
    """Let others name what is in the pictures that are inverted, and in those of one part alone."""
    both, without_a, without_b = made.shown
    return {
        look: {
            sign: {"without_target": 0, "ranks": ranks(judges, of, made.classes[:, part])}
            for (sign, (part, _)), of in zip(SIGNS.items(), shown, strict=True)
        }
        for look, shown in (("both", (both, both)), ("alone", (without_b, without_a)))
    }


def ranks(judges: Mapping[str, Backbone], pictures: Tensor, wanted: Tensor) -> dict[str, list[int]]:
    """Return for each judge the rank of the class that should be named, from 0, of each picture."""
    found = {}
    for name, other in judges.items():
        scores = logits(other, pictures)
        found[name] = (scores > scores.gather(1, wanted[:, None])).sum(1).tolist()
    return found


def judge(
    network: Backbone,
    judges: Mapping[str, Backbone],
    made: Composites,
    layer: str,
    device: str,
    *,
    own: bool,
    epochs: int = 5,
    **options: Any,
) -> dict[str, Any]:
    """Invert pictures at a layer and let others name what they show.

    With `own`, the parts' own activations. `options` are the objective's.

    Returns:
        Of each look and sign, how many had no target, and for each judge the rank of the class
        that should be named, from 0, of each picture that was made.
    """
    start = time.monotonic()
    features = [f"classifier:{int(c)}" for c in made.classes[:, 0]]
    at_once = 16 if device == "cpu" else 64
    options |= {"pair": "matched", "batch_size": at_once}
    objective: Inversion = SignedInversion(network.cpu(), features, layer, **options)
    if own:
        objective = OwnActivations(network, features, layer, masks=made.masks, **options)
    quiet: dict[str, Any] = {"enable_progress_bar": False, "devices": 1}
    accelerator = "cpu" if device == "cpu" else "gpu"
    try:
        render(
            objective,
            Given(fitted(network, made.shown[0])),
            epochs,
            accelerator=accelerator,
            **quiet,
        )
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
            named = ranks(judges, pictures[rows], made.classes[sources, part])
            told = {"without_target": len(made.classes) - len(rows), "pairs": sources}
            looks.setdefault(look, {})[sign] = {**told, "ranks": named}
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
    return f"| {' | '.join(cells)} | {found.get('seconds', '')} |"


def main() -> None:
    """Print the table, and write all ranks to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--layers", nargs="+", default=["blocks.6", "blocks.5", "blocks.4"])
    parser.add_argument("--folder", type=Path, default=INSTALLED, help="What holds the pictures.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--own", action="store_true", help="Invert the parts' own activations.")
    parser.add_argument("--also", action="store_true", help="Match earlier stages as well.")
    parser.add_argument("--epochs", type=int, default=5, help="Of 20 steps each.")
    parser.add_argument("--json", type=Path, default=Path("tb_logs/judged_pairs.json"))
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
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
    photographed = judge_photographs(judges, made)
    for look in photographed:
        print(row("photographs", look, photographed), flush=True)
    layers: dict[str, Any] = {"photographs": photographed}
    for layer in given.layers:
        also = BEFORE.get(layer, []) if given.also else []
        layers[layer] = judge(
            network,
            judges,
            made,
            layer,
            given.device,
            own=given.own,
            epochs=given.epochs,
            also=also,
        )
        for look in ("plain", "masked"):
            print(row(layer, look, layers[layer]), flush=True)
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({**told, "layers": layers}, indent=1))


if __name__ == "__main__":
    main()
