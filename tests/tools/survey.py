"""Are layers read as they lie, and classes as the model has them? Tried on models of timm.

`python -m tests.tools.survey [--each 3] [--out FILE]` tries some models of each of timm's modules,
at random weights and their own input size, and prints a line of each. A patch of the picture is
changed, in each corner in turn: where a layer's values change has to move along the dimensions that
are taken for rows and columns, and not along the one that is taken for channels.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import timm
import torch
from torch import Tensor

from mti_lightning.backbone import ActivationLayout, Backbone, Layer
from mti_lightning.backbone.layers import usable_layers
from mti_lightning.errors import InputError
from mti_lightning.features.classes import class_layer
from tests.backbone.networks import liven, normalised

LARGEST = 288  # pixels: what is larger takes long
_SMALL = (
    *("test", "atto", "femto", "pico", "nano", "zepto", "tiny", "xxs", "xxt", "_xs", "mini"),
    *("small", "_s", "18", "_b0", "_0", "_m0", "_t", "050", "002"),
)
_CLEAR = 0.2  # of a dimension's length


@dataclass
class Figures:
    """What was found of a model.

    Attributes:
        name: It.
        layers: How many are listed.
        clear: Of how many the probe can say how they lie.
        wrong: Those that lie otherwise.
        logits: By how much the layer of the classes differs from the model's own output, as a
            share of the largest; None where no layer is listed as such.
        refused: Why it is none at all.
    """

    name: str
    layers: int = 0
    clear: int = 0
    wrong: list[str] = field(default_factory=list)
    logits: float | None = None
    refused: str = ""
    seconds: float = 0.0


def chosen(each: int = 1) -> Iterator[str]:
    """Yield some models of each of timm's modules, small ones first."""
    for module in timm.list_modules():
        names = [
            name
            for name in timm.list_models(module=module)
            if max(timm.get_pretrained_cfg(name).input_size[1:]) <= LARGEST
        ]

        def rank(name: str) -> tuple[int, int, str]:
            small = [place for place, word in enumerate(_SMALL) if word in name]
            return min(small, default=len(_SMALL)), len(name), name

        yield from sorted(names, key=rank)[:each]


def survey(name: str) -> Figures:
    """Try a model."""
    began, found = time.perf_counter(), Figures(name)
    try:
        # Norms are not folded: in a deep network of random weights rounding grows.
        backbone = Backbone(name, "random", fold=False)
        liven(backbone.network)
        listed = usable_layers(backbone)
        found.layers = len(listed)
        verdicts = _verdicts(backbone, {one.layer: one.layout for one in listed})
        for one in listed:
            verdict = verdicts[one.layer]
            found.clear += verdict is not None
            if verdict is False:
                found.wrong.append(f"{one.layer} {list(one.layout.shape)} {one.layout.channel_dim}")
        layer = class_layer(backbone)
        if layer is not None:
            pictures = _pictures(backbone)
            with torch.no_grad():
                own = backbone.run(pictures, [layer])[layer].flatten(1)
                output = backbone.network(normalised(backbone.network, pictures))
            found.logits = float((own - output).abs().max() / output.abs().max())
    except InputError as error:
        found.refused = str(error)
    found.seconds = time.perf_counter() - began
    return found


def _pictures(backbone: Backbone) -> Tensor:
    """Return a picture, and it with another patch in each corner, [5, 3, H, W]."""
    height, width = backbone.preprocessing.size
    generator = torch.Generator().manual_seed(7)
    noise = torch.rand(2, 3, height, width, generator=generator)
    shown = noise[:1].repeat(5, 1, 1, 1)
    rows, columns = height // 4, width // 4
    corners = [(top, left) for top in (0, height - rows) for left in (0, width - columns)]
    for picture, (top, left) in zip(shown[1:], corners, strict=True):
        where = (slice(None), slice(top, top + rows), slice(left, left + columns))
        picture[where] = noise[1][where]
    return shown


def _verdicts(
    backbone: Backbone, layouts: dict[Layer, ActivationLayout]
) -> dict[Layer, bool | None]:
    """Judge what passes through layers, as plain hooks find it."""
    found: dict[Layer, bool | None] = {}

    def judge(layer: Layer, value: Tensor) -> None:
        found[layer] = _lies_so(value, layouts[layer])

    handles = []
    for layer in layouts:
        module = backbone.network.get_submodule(layer.module)
        handles.append(
            module.register_forward_pre_hook(lambda _, given, layer=layer: judge(layer, given[0]))
            if layer.side == "input"
            else module.register_forward_hook(lambda _, _in, out, layer=layer: judge(layer, out))
        )
    try:
        with torch.no_grad():
            backbone.network(normalised(backbone.network, _pictures(backbone)))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _lies_so(values: Tensor, layout: ActivationLayout) -> bool | None:
    """Say whether changes move along positions as in this layout; None if that is unclear.

    Of a map they have to move as in it rather than as in the other one.
    """
    if values.ndim < 3 or layout.grid is None or min(layout.grid) < 3:
        return None
    change = (values[1:] - values[:1]).double().square()
    if layout.is_tokens:
        tokens = change[:, layout.prefix_tokens :].reshape(4, *layout.grid, layout.channels)
        moves = _moves(tokens)
        if moves is None or max(moves) < _CLEAR:
            return None
        return min(moves[:2]) > moves[2]
    clear = [
        min(moves[:2]) - moves[2] if moves else 0.0
        for moves in (_moves(change.movedim(1, -1)), _moves(change))
    ]
    if max(clear) < _CLEAR / 2:
        return None
    return (clear[0] > clear[1]) == (layout.channel_dim == 1)


def _moves(change: Tensor) -> tuple[float, float, float] | None:
    """Return how far changes of four corners move along rows, columns and channels.

    Args:
        change: [4, rows, columns, C].
    """
    moves = []
    for dim in (1, 2, 3):
        along = change.sum([d for d in (1, 2, 3) if d != dim])
        total = along.sum(1, keepdim=True)
        if not (total > 0).all():
            return None
        places = (torch.arange(along.shape[1], dtype=torch.float64) + 0.5) / along.shape[1]
        at = (along / total) @ places  # of the four corners
        moves.append((at.view(2, 2).mean(1), at.view(2, 2).mean(0), at))
    down = float(moves[0][0][1] - moves[0][0][0])
    across = float(moves[1][1][1] - moves[1][1][0])
    return down, across, float(moves[2][2].max() - moves[2][2].min())


def main() -> None:
    """Try models, and print a line of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=1, help="Models of each module.")
    parser.add_argument("--out", type=Path, help="Figures as JSON lines.")
    parser.add_argument("--seconds", type=float, default=1e9, help="Begin none after so many.")
    given = parser.parse_args()
    began = time.perf_counter()
    done = set[str]()
    if given.out and given.out.exists():
        done = {json.loads(line)["name"] for line in given.out.read_text().splitlines()}
    for name in chosen(given.each):
        if name in done:
            continue
        if time.perf_counter() - began > given.seconds:
            break
        try:
            found = survey(name)
        except Exception as error:  # noqa: BLE001  the others are to be seen, too
            found = Figures(name, refused=f"{type(error).__name__}: {error}")
        print(json.dumps(asdict(found)), flush=True)
        if given.out:
            with given.out.open("a") as file:
                file.write(json.dumps(asdict(found)) + "\n")


if __name__ == "__main__":
    main()
