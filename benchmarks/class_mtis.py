"""What maximally tense images of classes of ImageNet hold, on EfficientNet-Lite0.

Of each class a cut-out is laid beside each other cut-out on a photograph; what the other one does
to the class's logit is measured by leaving it out. The classes of those that lower it most are the
class's inhibitors. Of the images that `MaximallyTense` makes for the class the table has, and of
several the least or the median:

- tension, as a multiple of the most tense of those pictures, and of the 99th percentile of
  photographs, both for the same class; and balance, min(E+, E-) / max(E+, E-);
- what the place that excites and the one that inhibits, at the scale of tension, do to the logit:
  by how much more it is than with the place blurred away. Beside it the same in the pictures with
  cut-outs, and, of the images, in Lite2 and Lite1, which had no part in them;
- at which place of 1,000, from 0, these two have the class, in the image and without either place;
- how often they have one of its inhibitors among their first 50 without the place that excites;
  beside it, one of the class's inhibitors in the images of the other classes.

    python -m benchmarks.class_mtis [--layers blocks.6 blocks.5] [--out mtis.png]

Needs what benchmarks/real_truth.py needs.
"""

import argparse
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final, final

import torch
from PIL import Image
from timm.data import ImageNetInfo
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.functional import gaussian_blur

from benchmarks.real_truth import (
    AT_ONCE,
    INSTALLED,
    NETWORKS,
    Composer,
    backgrounds,
    cut_outs,
    fitted,
    laid,
    logits,
    named_alike,
)
from mti_lightning import Backbone, MaximallyTense, Sweep, attribute, render
from mti_lightning.attribution.signs import at_scale, balance, signed_map
from mti_lightning.compose import composite, grid, opacity, to_image

INHIBITORS: Final = 5  # of each class
PHOTOGRAPHS: Final = 128
AMONG: Final = 50  # classes of a judge, where one of the inhibitors should be
SHARES: Final = 2  # of the figures in a row


@final
@dataclass(frozen=True)
class Class:
    """A class, and pictures of a cut-out of it beside each other one.

    Attributes:
        label: Its number.
        pictures: uint8 [N, 3, S, S].
        inhibitors: Classes whose cut-outs lower its logit most, the strongest first.
        effects: What each of these does to the logit, on the mean.
    """

    label: int
    pictures: Tensor
    inhibitors: list[int]
    effects: list[float]


def beside_others(
    network: Backbone,
    stamps: Sequence[Image.Image],
    names: Sequence[int],
    photographs: Sequence[Image.Image],
    chosen: int,
    seed: int,
) -> Class:
    """Lay a cut-out beside each one of another class."""
    composer, label, shown, others = Composer(seed, photographs), names[chosen], [], []
    for other, name in enumerate(names):
        if name == label:
            continue
        ground, left = composer.ground(), float(composer.random.choice([0, 0.5]))
        a, b = composer.layer(stamps[chosen], left), composer.layer(stamps[other], 0.5 - left)
        shown.append(torch.stack([laid(ground, a, b), laid(ground, a)]))
        others.append(name)
    with_b, without_b = (logits(network, part)[:, label] for part in torch.stack(shown, 1))
    of_name: dict[int, list[float]] = {}
    for name, effect in zip(others, (with_b - without_b).tolist(), strict=True):
        of_name.setdefault(name, []).append(effect)
    means = sorted((sum(told) / len(told), name) for name, told in of_name.items())[:INHIBITORS]
    pictures = torch.stack([pair[0] for pair in shown])
    return Class(label, pictures, [name for _, name in means], [mean for mean, _ in means])


def covered(pictures: Tensor, places: Tensor) -> Tensor:
    """Blur pictures [N, 3, H, W] away where a map [N, 1, h, w] says."""
    side = pictures.shape[-1]
    blurred = gaussian_blur(pictures, [2 * (side // 4) + 1] * 2, [side / 8] * 2)
    where = interpolate(places, pictures.shape[-2:], mode="bilinear")
    return pictures + where * (blurred - pictures)


@dataclass(frozen=True)
class Measured:
    """Pictures as an objective measures them for a class.

    Attributes:
        tension: [N].
        balance: [N].
        shown: The pictures, and without the place that excites and that inhibits, [3, N, 3, H, W].
    """

    tension: Tensor
    balance: Tensor
    shown: Tensor

    def effects(self, network: Backbone, label: int) -> Tensor:
        """Return what the two places do to a class's logit, by covering them, [2, N]."""
        whole, *without = (logits(network, shown)[:, label] for shown in self.shown)
        return whole - torch.stack(without)


def measured(objective: MaximallyTense, pictures: Tensor, feature: int) -> Measured:
    """Measure pictures in 0..1 for a feature of an objective."""
    layout, found = objective.layout, []
    for part in pictures.split(AT_ONCE):
        read = [objective.bound_features[feature]] * len(part)
        of = (objective.backbone, part, read, objective.layer, objective.attribution)
        attribution = attribute(*of)[1].detach()
        signed = signed_map(attribution, layout.channel_dim)
        smooth = at_scale(signed, objective.tension.scale, layout)
        without = [covered(part, (sign * smooth > 0).float()) for sign in (1, -1)]
        split = objective.tension.split(attribution, layout)
        tension = objective.tension(attribution, layout)
        found.append((tension, balance(*split), torch.stack([part, *without], 1)))
    tension, balanced, shown = (torch.cat(values) for values in zip(*found, strict=True))
    return Measured(tension, balanced, shown.transpose(0, 1))


def tension_of(objective: MaximallyTense, pictures: Tensor) -> Tensor:
    """Return the tension of pictures in 0..1 for all features of an objective, [N, F]."""
    shown = [str(feature) for feature in objective.features]
    of = (objective.backbone, shown, str(objective.layer), objective.attribution)
    sweep = Sweep(*of, objective.tension, rivals=0)
    sweep.prepare()
    return torch.cat([sweep.measure(part)["tension"] for part in pictures.split(AT_ONCE)])


def images_of(
    network: Backbone, classes: Sequence[Class], layer: str, **options: Any
) -> tuple[MaximallyTense, Tensor]:
    """Make images of classes, [N, 3, H, W], those of one class next to each other.

    Returns:
        What made them, too.
    """
    features = [f"classifier:{one.label}" for one in classes]
    objective = MaximallyTense(network, features, layer, **options)
    render(objective, accelerator="cpu", enable_progress_bar=False, devices=1)
    with torch.no_grad():
        return objective, torch.cat([chunk() for chunk in objective.chunks])


def picture_of(objective: MaximallyTense, seeds: int) -> Image.Image:
    """Return one image of each class, over grey where the objective did not look."""
    with torch.no_grad():
        plain = torch.cat([chunk() for chunk in objective.chunks])
        opaque = torch.cat([opacity(chunk.saliency()) for chunk in objective.chunks])
    shown = composite(plain, opaque)[::seeds]
    return to_image(grid(shown, -(-len(shown) // 2)))


def rows_of(
    objective: MaximallyTense,
    images: Tensor,
    judges: Sequence[Backbone],
    classes: Sequence[Class],
    photographs: Tensor,
) -> Iterator[str]:
    """Yield a row for each class, and of their medians.

    Args:
        objective: Measures.
        images: As `images_of` returns them.
        judges: Networks that had no part in them.
        classes: The classes.
        photographs: In 0..1, [P, 3, H, W].
    """
    words = [word.partition(",")[0] for word in ImageNetInfo().label_descriptions()]
    network, natural = objective.backbone, tension_of(objective, photographs)
    of_class = images.unflatten(0, (len(classes), -1))
    found = [measured(objective, of, number) for number, of in enumerate(of_class)]
    shown = torch.stack([one.shown for one in found], 1)  # [3, F, S, 3, H, W]
    places = torch.stack(
        [logits(judge, shown.flatten(0, 2)).argsort(1, True).argsort(1) for judge in judges]
    ).unflatten(1, shown.shape[:3])  # [J, 3, F, S, 1000]
    every = []
    for number, (one, image) in enumerate(zip(classes, found, strict=True)):
        composites = measured(objective, fitted(network, one.pictures), number)
        elsewhere = torch.stack([image.effects(judge, one.label) for judge in judges], 1)
        inhibited = (places[:, 1, ..., one.inhibitors].amin(-1) < AMONG).float()  # [J, F, S]
        others = [other for other in range(len(classes)) if other != number]
        figures = [
            image.tension.min() / composites.tension.max(),
            image.tension.min() / natural[:, number].quantile(0.99),
            image.balance.min(),
            *image.effects(network, one.label).median(1).values,
            *composites.effects(network, one.label).median(1).values,
            *elsewhere.flatten(1).median(1).values,
            *places[:, :, number, :, one.label].float().transpose(0, 1).flatten(1).median(1).values,
            inhibited[:, number].mean(),
            inhibited[:, others].mean(),
        ]
        every.append(torch.stack(figures))
        strongest = ", ".join(words[name] for name in one.inhibitors[:2])
        yield f"{words[one.label]} | {strongest} | {_cells(figures)}"
    figures = [*torch.stack(every)[:, :-SHARES].median(0).values]
    figures += [*torch.stack(every)[:, -SHARES:].mean(0)]
    yield f"medians, of shares the mean | | {_cells(figures)}"


def _cells(figures: Sequence[Tensor]) -> str:
    return " | ".join(
        [f"{float(figure):.3g}" for figure in figures[:-SHARES]]
        + [f"{float(figure):.0%}" for figure in figures[-SHARES:]]
    )


def main() -> None:
    """Print a table of each layer, and write a picture of the first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", nargs="+", default=["blocks.6", "blocks.5"])
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=2, help="Images of each class.")
    parser.add_argument("--folder", type=Path, default=INSTALLED, help="What holds the pictures.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="A picture of the images.")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    import_module("mti_efficientnet_lite")  # registers the networks
    networks = [Backbone(name) for name in NETWORKS]
    grounds = backgrounds(given.folder)
    named = named_alike(networks, [*cut_outs(given.folder)], grounds)
    first = [*{name: place for place, name in reversed([*enumerate(named[1])])}.values()]
    chosen = sorted(first)[:: max(1, len(first) // given.classes)][: given.classes]
    classes = [beside_others(networks[0], *named, grounds, at, given.seed) for at in chosen]
    composer = Composer(given.seed, grounds)
    crops = torch.stack([laid(composer.ground()) for _ in range(PHOTOGRAPHS)])
    photographs = fitted(networks[0], crops)
    options = {"seeds": given.seeds, "seed": given.seed, "batch_size": 10}
    heads = (
        *("class", "strongest inhibitors", "times the most tense", "times the 99th percentile"),
        *("balance", "exciting place", "inhibiting", "in pictures: exciting", "inhibiting"),
        *("to others: exciting", "inhibiting", "the class's place", "without what excites"),
        *("without what inhibits", f"inhibitor, top {AMONG}", "in other images"),
    )
    for layer in given.layers:
        objective, images = images_of(networks[0], classes, layer, **options)
        print(f"{layer}\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
        for row in rows_of(objective, images, networks[:0:-1], classes, photographs):
            print(f"| {row} |", flush=True)
        if given.out and layer == given.layers[0]:
            picture_of(objective, given.seeds).save(given.out)


if __name__ == "__main__":
    main()
