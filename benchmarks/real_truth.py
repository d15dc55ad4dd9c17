"""What attributions say of known parts of pictures, on networks trained on ImageNet.

Two cut-outs, A and B, stand side by side on a photograph. What a part does to the logit of A is
measured by leaving it out, e = r(picture) − r(picture without it): two forward passes, and nothing
that an attribution method is made of. The table has the rank correlation of e with the attribution
of the part's place, of A, which mostly excites, and of B, which mostly inhibits; and that of
√(max(e, 0) · max(−e, 0)), summed over the parts, with the tension of the whole picture.

Needs mti-efficientnet-lite[all], scipy, and of Debian tuxpaint-stamps-default, photographs with
transparency, and backgrounds: lomiri-wallpapers, mate-backgrounds, plasma-workspace-wallpapers,
ukui-wallpapers.
"""

import argparse
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Final, final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.functional import interpolate

from mti_lightning import (
    ActGrad,
    Attribution,
    Backbone,
    BoundFeature,
    Feature,
    IntGrad,
    Layer,
    Sweep,
    Tension,
    attribute,
)
from mti_lightning.attribution.effects import attributed_to_parts, true_signs
from mti_lightning.attribution.steps import choose_steps

INSTALLED: Final = Path("/usr/share")
STAMPS: Final = "tuxpaint/stamps"
# Others are kept for testing.
FOLDERS: Final = ("birds", "insects", "fish", "shellfish", "food", "plants")
DRAWN: Final = {"cartoon", "toys", "plastic"}
BACKGROUNDS: Final = ("backgrounds/**/*.jpg", "wallpapers/*/contents/images/1920x1080.jpg")
NETWORKS: Final = tuple(f"efficientnet_lite{size}_in1k" for size in range(3))
SIZE: Final = 260  # pixels; smaller networks see it scaled down
AT_ONCE: Final = 16
# One and two stages behind an attribution layer, before the activation function.
BEHIND: Final = {
    "blocks.5": ("blocks.6.0.bn2.act/input",),
    "blocks.4": ("blocks.5.0.bn2.act/input", "blocks.6.0.bn2.act/input"),
    "blocks.3": ("blocks.4.0.bn2.act/input", "blocks.5.0.bn2.act/input"),
}


@final
@dataclass(frozen=True)
class Composites:
    """Pictures of two parts.

    Attributes:
        shown: The picture, the same without A and without B, uint8 [3, N, 3, S, S].
        masks: How much of A and of B is in each pixel, uint8 [N, 2, S, S].
        classes: Of A and of B, [N, 2].
    """

    shown: Tensor
    masks: Tensor
    classes: Tensor

    def rows(self, chosen: Tensor) -> "Composites":
        """Return some of them."""
        return Composites(self.shown[:, chosen], self.masks[chosen], self.classes[chosen])


def cut_outs(folder: Path) -> Iterator[Image.Image]:
    """Yield the photographs of things below a folder, cropped to what is opaque."""
    found = [kind for name in FOLDERS for kind in (folder / STAMPS).rglob(name)]
    files = [file for kind in found for file in kind.rglob("*.png")]
    for file in sorted(set(files)):
        stamp = Image.open(file).convert("RGBA")
        alpha = np.asarray(stamp)[..., 3]
        if DRAWN & {*file.parts} or (alpha > 128).mean() > 0.97 or alpha.max() < 128:
            continue
        yield stamp.crop(Image.fromarray((alpha > 16).astype(np.uint8) * 255).getbbox())


def backgrounds(folder: Path) -> list[Image.Image]:
    """Return the photographs below a folder to put cut-outs on."""
    found = [file for one in BACKGROUNDS for file in sorted(folder.glob(one))]
    return [Image.open(file).convert("RGB") for file in found]


class Composer:
    """Puts cut-outs on backgrounds, at random."""

    def __init__(self, seed: int, photographs: Sequence[Image.Image]) -> None:
        self.random, self.photographs = np.random.default_rng(seed), photographs

    def ground(self) -> NDArray[np.float32]:
        """Return a part of a photograph, [S, S, 3]."""
        photograph = self.photographs[self.random.integers(len(self.photographs))]
        side = int(min(photograph.size) * self.random.uniform(0.5, 1))
        left, top = (int(self.random.integers(0, full - side + 1)) for full in photograph.size)
        part = photograph.crop((left, top, left + side, top + side))
        return np.asarray(part.resize((SIZE, SIZE), Image.Resampling.LANCZOS), np.float32)

    def layer(self, stamp: Image.Image, left: float) -> NDArray[np.float32]:
        """Return a cut-out in a half of the picture, [S, S, 4] in 0..255."""
        random = self.random
        scale = min(0.48 * SIZE / stamp.width, 0.9 * SIZE / stamp.height) * random.uniform(0.85, 1)
        size = max(int(stamp.width * scale), 8), max(int(stamp.height * scale), 8)
        x = int(left * SIZE + (SIZE / 2 - size[0]) * random.uniform(0.3, 0.7))
        y = int((SIZE - size[1]) * random.uniform(0.2, 0.8))
        layer = np.zeros((SIZE, SIZE, 4), np.float32)
        small = stamp.resize(size, Image.Resampling.LANCZOS)
        layer[y : y + size[1], x : x + size[0]] = np.asarray(small)
        return layer


def laid(ground: NDArray[np.float32], *layers: NDArray[np.float32]) -> Tensor:
    """Return a picture, uint8 [3, S, S]."""
    for layer in layers:
        alpha = layer[..., 3:] / 255
        ground = ground * (1 - alpha) + layer[..., :3] * alpha
    return torch.from_numpy(ground).round().clamp(0, 255).byte().permute(2, 0, 1)


def named_alike(
    networks: Sequence[Backbone], stamps: Sequence[Image.Image], photographs: Sequence[Image.Image]
) -> tuple[list[Image.Image], list[int]]:
    """Return the cut-outs that all networks name alike on several backgrounds, and their names."""
    composer, views = Composer(12345, photographs[::5]), 4
    pictures = [
        laid(composer.ground(), composer.layer(stamp, composer.random.choice([0, 0.25, 0.5])))
        for stamp in stamps
        for _ in range(views)
    ]
    names = []
    for network in networks:
        scores = logits(network, torch.stack(pictures)).log_softmax(-1)
        names.append(scores.view(len(stamps), views, -1).mean(1).argmax(1))
    alike = (torch.stack(names) == names[0]).all(0).tolist()
    kept = [place for place, same in enumerate(alike) if same]
    return [stamps[place] for place in kept], [int(names[0][place]) for place in kept]


def compose(
    stamps: Sequence[Image.Image],
    names: Sequence[int],
    photographs: Sequence[Image.Image],
    count: int,
    seed: int,
) -> Composites:
    """Make pictures of different pairs of cut-outs of different names."""
    composer, pairs = Composer(seed, photographs), set[tuple[int, int]]()
    shown, masks, classes = [], [], []
    while len(pairs) < count:
        a, b = (int(i) for i in composer.random.integers(0, len(stamps), 2))
        if names[a] == names[b] or (a, b) in pairs:
            continue
        pairs.add((a, b))
        ground, left = composer.ground(), float(composer.random.choice([0, 0.5]))
        parts = composer.layer(stamps[a], left), composer.layer(stamps[b], 0.5 - left)
        shown.append(torch.stack([laid(ground, *p) for p in (parts, parts[1:], parts[:1])]))
        masks.append(torch.stack([torch.from_numpy(part[..., 3]).byte() for part in parts]))
        classes.append([names[a], names[b]])
    return Composites(torch.stack(shown, 1), torch.stack(masks), torch.tensor(classes))


def fitted(network: Backbone, pictures: Tensor) -> Tensor:
    """Return pictures, uint8, as a network takes them, in 0..1."""
    size = network.preprocessing.size
    return interpolate(pictures.float() / 255, size, mode="bilinear", antialias=True)


def there(network: Backbone, pictures: Tensor) -> Tensor:
    """Return pictures as a network takes them, where it is."""
    return fitted(network, pictures).to(network.mean.device)


@torch.no_grad()
def logits(network: Backbone, pictures: Tensor) -> Tensor:
    """Return all logits of pictures, uint8 [N, 3, S, S] or in 0..1; found where the network is."""
    parts = (part.to(network.mean.device) for part in pictures.split(AT_ONCE))
    scaled = (part if part.dtype == torch.uint8 else part * 255 for part in parts)
    return torch.cat([network(fitted(network, part)).cpu() for part in scaled])


def effects(network: Backbone, made: Composites) -> Tensor:
    """Return what A and B do to the logit of A, [N, 2]."""
    found = torch.stack([logits(network, pictures) for pictures in made.shown])  # [3, N, 1000]
    responses = found.gather(2, made.classes[None, :, :1].expand(3, -1, -1))[..., 0]
    return (responses[:1] - responses[1:]).T


def correlate(network: Backbone, made: Composites, layer: Layer, method: Attribution) -> str:
    """Return a row of the table: rank correlations for A, for B, and for the tension."""
    pictures, effect = there(network, made.shown[0]), effects(network, made)
    asked = [BoundFeature(Feature("classifier", c), network) for c in made.classes[:, 0].tolist()]
    chosen = choose_steps(method, network, layer, asked, [pictures])
    layout, parts, tension = network.layout(layer), [], []
    for start in range(0, len(pictures), AT_ONCE):
        rows = slice(start, start + AT_ONCE)
        found = attribute(network, pictures[rows], asked[rows], layer, chosen)[1]
        places = (made.masks[rows] > 64).to(found)
        parts.append(attributed_to_parts(found, places, layout).cpu())
        of = Tension() if isinstance(method, IntGrad) else Tension(scale=0, norm=1)
        tension.append(of(found, layout).cpu())
    by = (*torch.cat(parts).T, torch.cat(tension))
    truth = (*effect.T, true_signs(effect)[2])
    figures = [float(spearmanr(x, y).statistic) for x, y in zip(by, truth, strict=True)]
    how = f"{type(chosen).__name__} {getattr(chosen, 'steps', '')}".strip()
    return f"{how} | " + " | ".join(f"{figure:.2f}" for figure in figures)


def correlate_channels(
    network: Backbone, made: Composites, layer: str, target: str, count: int
) -> Iterator[str]:
    """Yield rows for channels of a later layer, their mean over positions: medians over channels.

    Of each the rank correlation over parts, the share of signs that are right of those parts that
    do most, and the rank correlation of tension.
    """
    channels = network.layout(Layer.parse(target)).channels
    features = [f"{target}:{index * channels // count}@mean" for index in range(count)]
    pictures, *without = (there(network, shown) for shown in made.shown)
    masks = there(network, made.masks)
    for method, tension in ((ActGrad(), Tension(scale=0, norm=1)), (IntGrad(), Tension())):
        sweep = Sweep(network, features, layer, method, tension, rivals=0)
        sweep.settle([pictures])
        sweep.prepare()
        assert sweep.measurement is not None
        found: dict[str, list[Tensor]] = {}
        for start in range(0, len(pictures), AT_ONCE):
            rows = slice(start, start + AT_ONCE)
            of_parts = torch.stack([one[rows] for one in without], 1), masks[rows]
            for name, values in sweep.measurement.measure(pictures[rows], (), *of_parts)[0].items():
                found.setdefault(name, []).append(values.cpu())
        of = {name: torch.cat(values).movedim(1, 0).flatten(1) for name, values in found.items()}
        strong = of["effect"].abs() >= of["effect"].abs().median(1, keepdim=True).values
        right = (of["effect"].sign() == of["part_attribution"].sign()) & strong
        figures = (
            _ranked(of["part_attribution"], of["effect"]),
            float((right.sum(1) / strong.sum(1)).median()),
            _ranked(of["tension"], of["true_tension"]),
        )
        chosen = sweep.attribution
        how = f"{type(chosen).__name__} {getattr(chosen, 'steps', '')}".strip()
        yield f"{layer} | {target} | {how} | " + " | ".join(f"{one:.2f}" for one in figures)


def _ranked(found: Tensor, truth: Tensor) -> float:
    """Return the median over channels of the rank correlation, of [F, ...] each, where it is known.

    It is not where all is the same, as where no part inhibits.
    """
    pairs = zip(found, truth, strict=True)
    return float(np.nanmedian([spearmanr(x, y).statistic for x, y in pairs]))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--networks", nargs="+", default=NETWORKS[:2], choices=NETWORKS)
    parser.add_argument("--layers", nargs="+", default=[f"blocks.{k}" for k in (6, 5, 4, 3)])
    parser.add_argument("--channels", type=int, default=0, help="Of later layers, for logits.")
    parser.add_argument("--folder", type=Path, default=INSTALLED, help="What holds the pictures.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    import_module("mti_efficientnet_lite")  # registers the networks
    networks = {name: Backbone(name).to(given.device) for name in NETWORKS}
    photographs = backgrounds(given.folder)
    named = named_alike([*networks.values()], [*cut_outs(given.folder)], photographs)
    made = compose(*named, photographs, given.pictures, given.seed)
    for name in given.networks:
        network = networks[name]
        if given.channels:
            print("| network | layer | channels of | attribution | part | signs | tension |")
            print("|---|---|---|---|---|---|---|")
            for layer in given.layers:
                for target in BEHIND.get(layer, ()):
                    of = (network, made, layer, target, given.channels)
                    for row in correlate_channels(*of):
                        print(f"| {name} | {row} |", flush=True)
            continue
        print("| network | layer | attribution | A | B | tension |\n|---|---|---|---|---|---|")
        for layer in given.layers:
            for method in (ActGrad(), IntGrad()):
                row = correlate(network, made, Layer.parse(layer), method)
                print(f"| {name} | {layer} | {row} |", flush=True)


if __name__ == "__main__":
    main()
