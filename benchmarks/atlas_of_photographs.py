"""Whether an atlas of photographs can be read: pictures of two known things, on a real network.

Cut-outs that three networks name alike stand in pairs on photographs, and the pictures are swept
for three class logits of EfficientNet-Lite0. What a thing does to a logit is measured by leaving it
out. Of each map the table has

- the cells that have an icon, and the pictures in them;
- purity: of a cell's pictures the share in which the same kind of thing excites (inhibits) most,
  the mean over cells, and the same with the pictures permuted;
- neighbours: the share of a picture's ten nearest on the map in which the same kind excites
  (inhibits) most, of random ones, and on a map of plain activations of the same pictures.

`today` is one map of both signs on 20×20 cells. With `--judge N` N icons of each sign, of cells in
which one kind is that of most pictures, are shown to EfficientNet-Lite2 and Lite1: how often is it
among the first 5 classes of + icons, the first 50 of − icons? The sweep is kept in `--out` and used
again. Needs what benchmarks/real_truth.py needs.
"""

import argparse
import json
import re
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from timm.data import ImageNetInfo
from torch import Tensor

from benchmarks.real_truth import (
    INSTALLED,
    NETWORKS,
    backgrounds,
    cut_outs,
    logits,
    named_alike,
)
from mti_lightning import (
    AtlasInversion,
    Backbone,
    Chart,
    CompositePictures,
    Feature,
    Layer,
    Sweep,
    SweepStore,
    render,
)
from mti_lightning.atlas.embedding import embed
from mti_lightning.atlas.icons import icons_of
from mti_lightning.atlas.layout import Face
from mti_lightning.atlas.map import Map, open_map
from mti_lightning.atlas.sweeping import ensure_sweep
from mti_lightning.attribution.signs import Sign
from mti_lightning.sweep.measures import Array
from mti_lightning.sweep.pictures import pictures_of

CLASSES: Final = (309, 985, 949)  # bee, daisy, strawberry
LEAST: Final = 0.3  # of the logit, that a thing has to do to count
FACES: Final[dict[Sign, Face]] = {"+": "positive", "-": "negative"}
TOP: Final[dict[Sign, int]] = {"+": 5, "-": 50}
NEIGHBOURS, AT_ONCE, TIMES = 10, 32, 9


def write_parts(folder: Path, installed: Path) -> None:
    """Write cut-outs, named by their class, and photographs to put them on."""
    if (folder / "cut_outs").is_dir():
        return
    photographs = backgrounds(installed)
    networks = [Backbone(name) for name in NETWORKS]
    stamps, classes = named_alike(networks, [*cut_outs(installed)], photographs)
    words = [told.partition(",")[0] for told in ImageNetInfo().label_descriptions()]
    for name in ("photographs", "unfinished"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, photograph in enumerate(photographs):
        photograph.thumbnail((640, 640))
        photograph.save(folder / f"photographs/{number:03d}.jpg", quality=92)
    for number, (stamp, label) in enumerate(zip(stamps, classes, strict=True)):
        stamp.thumbnail((400, 400))
        word = words[label].replace(" ", "_")
        stamp.save(folder / f"unfinished/{label:03d}_{word}_{number}.png")
    (folder / "unfinished").rename(folder / "cut_outs")


class Truth:
    """Which kind of thing excites and which inhibits most in each picture, by intervention."""

    def __init__(self, store: SweepStore) -> None:
        named = [re.match(r"\d+ (\d+).* \+ (\d+)", key) for key in store.keys]
        self.kinds = np.array([(int(m[1]), int(m[2])) for m in named if m])  # [P, 2]
        self.effects = store.of_parts("effect")  # [P, F, 2]

    def strongest(self, feature: int, pictures: Array, sign: Sign) -> Array:
        """Return the kind, or -1 where nothing does enough, of some pictures, [M]."""
        effects = self.effects[pictures, feature] * (1 if sign == "+" else -1)  # [M, 2]
        first, every = effects.argmax(1), np.arange(len(pictures))
        return np.where(effects[every, first] > LEAST, self.kinds[pictures][every, first], -1)


def purity(cells: Sequence[Array], kinds: Array) -> float:
    """Return the mean over cells of the commonest kind's share."""
    of_cells = [kinds[cell][kinds[cell] >= 0].tolist() for cell in cells]
    shares = [Counter(of).most_common(1)[0][1] / len(of) for of in of_cells if len(of) > 1]
    return float(np.mean(shares)) if shares else float("nan")


def alike(points: Array, kinds: Array) -> float:
    """Return the share of nearest neighbours whose kind is a picture's own, where it has one."""
    count = min(NEIGHBOURS + 1, len(points))
    nearest = NearestNeighbors(n_neighbors=count).fit(points).kneighbors(points)[1][:, 1:]
    same = (kinds[nearest] == kinds[:, None]) & (kinds >= 0)[:, None]
    return float(same[kinds >= 0].mean())


def activations(store: SweepStore, network: Backbone, layer: str, path: Path) -> Array:
    """Return the mean activation of each channel in each picture, [P, C]; kept beside the sweep."""
    if not path.exists():
        at, pictures = Layer.parse(layer), pictures_of(store)
        found = []
        with torch.no_grad():
            for start in range(0, len(pictures), AT_ONCE):
                places = range(start, min(start + AT_ONCE, len(pictures)))
                shown = torch.stack([pictures[place]["picture"] for place in places])
                found.append(network.layout(at).pool_mean(network.run(shown, [at])[at]))
        np.save(path, torch.cat(found).numpy())
    return np.asarray(np.load(path))


def today(chart: Chart) -> Chart:
    """Return one map of both signs on 20×20 cells."""
    return replace(chart, apart=False, quiet=0, size=(20, 20), minimum=6)


def rows(store: SweepStore, truth: Truth, plain: Array, chart: Chart) -> Iterator[str]:
    """Yield the table's lines."""
    random = np.random.default_rng(0)
    for place, feature in enumerate(store.features):
        for sign in FACES:
            for name, of, own in (("own map", chart, sign), ("today", today(chart), None)):
                found = open_map(of, feature, sign=own)
                layout = found.layout
                kinds = truth.strongest(place, layout.pictures, sign)
                cells = [cell.members for cell in found.cells]
                mixed = [random.permutation(kinds) for _ in range(TIMES)]
                pure, chance = purity(cells, kinds), np.mean([purity(cells, k) for k in mixed])
                near = alike(layout.points, kinds)
                by_chance = np.mean([alike(layout.points, k) for k in mixed[:3]])
                by_plain = alike(embed(plain[layout.pictures]), kinds)
                yield (
                    f"| {store.shown[place]} {sign} | {name} | {len(cells)} of {layout.size[0]}×"
                    f"{layout.size[1]} | {sum(map(len, cells)) / len(cells):.0f} | {pure:.2f} | "
                    f"{chance:.2f} | {pure / chance:.1f} | {near:.2f} | {by_chance:.2f} | "
                    f"{by_plain:.2f} |"
                )


def readable(found: Map, truth: Truth, sign: Sign, count: int) -> dict[tuple[int, int], int]:
    """Return cells in which one kind is that of most pictures, evenly spread, and that kind."""
    kinds = truth.strongest(found.features[0], found.layout.pictures, sign)
    of = {}
    for cell in found.cells:
        kind, often = Counter(kinds[cell.members].tolist()).most_common(1)[0]
        if kind >= 0 and 2 * often > cell.count:
            of[cell.row, cell.column] = kind
    chosen = np.unique(np.linspace(0, len(of) - 1, min(count, len(of))).astype(int))
    places = [*of]
    return {places[index]: of[places[index]] for index in chosen}


class Few(AtlasInversion):  # type: ignore[misc]  # the same icons, but not all
    """An atlas of some cells."""

    wanted: dict[Face, Any]

    def shows(self, source: int, face: Face) -> bool:
        cell = self.cell(source)
        return (cell.row, cell.column) in self.wanted[face] and super().shows(source, face)


def judged(
    network: Backbone, judges: dict[str, Backbone], truth: Truth, chart: Chart, given: Any
) -> Iterator[dict[str, Any]]:
    """Make icons, and yield how far up the judges name what they should, for each map and sign."""
    for feature in SweepStore(str(chart.sweep)).features:
        for name, of in (("own map", chart), ("today", today(chart))):
            start = time.monotonic()
            faces = (*FACES.values(),)
            options: Any = {"faces": faces, "steps_per_epoch": given.steps, "batch_size": 16}
            made = Few(network, [feature], given.layer, chart=of, **options)
            maps = {s: open_map(of, feature, sign=s if of.apart else None) for s in FACES}
            wanted = {s: readable(maps[s], truth, s, given.judge) for s in FACES}
            made.wanted = {FACES[s]: cells for s, cells in wanted.items()}
            render(made, None, 1, enable_progress_bar=False, devices=1)
            icons = icons_of(made)
            for sign, cells in wanted.items():
                shown = {p: icon for p, icon in icons[FACES[sign]].items() if p in cells}
                ranks = {
                    judge: _ranks(other, [*shown.values()], [cells[p] for p in shown])
                    for judge, other in judges.items()
                }
                seconds = round(time.monotonic() - start)
                told = {"feature": feature, "map": name, "sign": sign, "seconds": seconds}
                yield {**told, "cells": len(maps[sign].cells), "ranks": ranks}


def _ranks(judge: Backbone, icons: Sequence[Any], kinds: Sequence[int]) -> list[int]:
    """Return the rank of a class, from 0, for each icon as the page shows it, on white."""
    if not icons:
        return []
    shown = []
    for icon in icons:
        values = np.asarray(icon.convert("RGBA"), np.float32) / 255
        values = values[..., :3] * values[..., 3:] + 1 - values[..., 3:]
        shown.append(torch.from_numpy(values).permute(2, 0, 1))
    scores: Tensor = logits(judge, torch.stack(shown))
    ranks = (scores > scores.gather(1, torch.tensor(kinds)[:, None])).sum(1)
    return [int(rank) for rank in ranks]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--layer", default="blocks.4")
    parser.add_argument("--folder", type=Path, default=INSTALLED, help="What holds the pictures.")
    parser.add_argument("--out", type=Path, default=Path("tb_logs/atlas_of_photographs"))
    parser.add_argument("--judge", type=int, default=0, help="So many icons of each sign.")
    parser.add_argument("--steps", type=int, default=100, help="Of each icon.")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    import_module("mti_efficientnet_lite")  # registers the networks
    write_parts(given.out, given.folder)
    network = Backbone(NETWORKS[0])
    path = given.out / f"{given.layer}_{given.pictures}.zarr"
    parts = given.out / "photographs", given.out / "cut_outs"
    data = CompositePictures(*parts, size=given.pictures, seed=1, batch_size=16)
    features = [str(Feature("classifier", label)) for label in CLASSES]
    swept = Sweep(network, features, given.layer)
    ensure_sweep(swept, data, path, keep=given.pictures, rivals=0)
    store, chart = SweepStore(path), Chart(str(path), apart=True)
    truth = Truth(store)
    if given.judge:
        judges = {name: Backbone(name) for name in NETWORKS[1:]}
        print("| class | map | cells | icons | named by Lite1 | by Lite2 | seconds |")
        print("|---|---|---|---|---|---|---|")
        every = []
        for found in judged(network, judges, truth, chart, given):
            every.append(found)
            top = TOP[found["sign"]]
            shares = [f"{np.mean(np.array(r) < top):.0%}" for r in found["ranks"].values()]
            icons = len(next(iter(found["ranks"].values())))
            head = f"{found['feature']} {found['sign']} | {found['map']} | {found['cells']}"
            print(f"| {head} | {icons} | {' | '.join(shares)} | {found['seconds']} |", flush=True)
            (given.out / "judged.json").write_text(json.dumps(every, indent=1))
        return
    plain = activations(store, network, given.layer, given.out / f"{path.stem}_plain.npy")
    print(
        "| class | map | cells | pictures of each | purity | permuted | ratio | neighbours alike |"
    )
    print("by chance | on plain activations |\n|---|---|---|---|---|---|---|---|---|---|")
    for line in rows(store, truth, plain, chart):
        print(line, flush=True)


if __name__ == "__main__":
    main()
