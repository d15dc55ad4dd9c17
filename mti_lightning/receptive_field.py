"""Exact receptive-field windows: what part of a picture a feature at one position depends on."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from mti_lightning.backbone import Backbone, Layer
from mti_lightning.feature import ProbeGroup

# Of the largest value: other sizes get other kernels, which sum in another order.
TOLERANCE = 1e-5
_GROWTHS = 3
Box = tuple[int, int, int, int]  # top, left, height, width


@final
@dataclass(frozen=True)
class Window:
    """The part of a picture that some features at one position depend on.

    Attributes:
        box: Top, left, height and width in pixels.
        map_box: The same of the attribution layer's map, [h, w] of it: what a picture cut to `box`
            gives there is that part of the whole picture's map, wherever the features depend on it.
        group: The features, their position as it is in a cut picture.
        head: How to get from the map to the features alone; None where that is not found.
    """

    box: Box
    map_box: Box
    group: ProbeGroup
    head: "Head | None" = None

    def crop(self, pictures: Tensor) -> Tensor:
        """Cut pictures [N, 3, H, W] to the window, [N, 3, h, w]."""
        return cut(pictures, self.box)


@final
@dataclass(frozen=True)
class Head:
    """The part of the attribution layer's map that the features depend on.

    Attributes:
        box: Top, left, height and width in the map of a picture that was cut to the window.
        picture_size: Height and width of pictures for which the layer's map has just that size.
        group: The features, their position as it is for such pictures.
    """

    box: Box
    picture_size: tuple[int, int]
    group: ProbeGroup

    @property
    def position(self) -> tuple[int, ...]:
        """Where the features are read."""
        assert isinstance(self.group.position, tuple)
        return self.group.position


def cut(maps: Tensor, box: Box) -> Tensor:
    """Cut a box out of pictures or maps, [N, C, H, W]."""
    top, left, height, width = box
    return maps[:, :, top : top + height, left : left + width]


def find_window(backbone: Backbone, layer: Layer, group: ProbeGroup) -> Window | str:
    """Find the window of features at one position, and make sure of it on random pictures.

    Where the gradient of the features is not zero is a guess at their receptive field; it is
    aligned to the strides of the maps, and taken only if responses and attributions of cut and
    whole pictures agree to `TOLERANCE`, and nothing outside changes any response by a bit.

    Args:
        backbone: The network.
        layer: The attribution layer.
        group: The features.

    Returns:
        The window; or, where there is none smaller than the picture, why.
    """
    position, target = group.position, group.probes[0].site
    site = backbone.site(layer)
    if not isinstance(position, tuple) or target.is_tokens or target.grid is None:
        return "they are not read at one position of a map"
    if site.is_tokens or site.grid is None or site.channel_dim != 1 or target.channel_dim != 1:
        return f"{layer} or their layer is no map with its channels first"
    size = backbone.preprocessing.size
    pictures = _pictures(size)
    # A single feature may hang on units that are silent in these pictures.
    every = group.every_channel()
    whole = _run(backbone, layer, every, pictures)
    field = _support(whole.pictures)
    if field[2:] == size:
        return "they depend on the whole picture"
    strides = [2 ** int(math.log2(size[axis] / target.grid[axis])) for axis in (0, 1)]
    steps = [2 ** int(math.log2(size[axis] / site.grid[axis])) for axis in (0, 1)]
    for box in _grown(field, strides, size):
        moved = (position[0] - box[0] // strides[0], position[1] - box[1] // strides[1])
        try:
            part = _run(backbone, layer, every.moved(moved), cut(pictures, box))
        except (IndexError, RuntimeError):  # a map got too small
            continue
        height, width = part.activations.shape[2:]
        map_box = (box[0] // steps[0], box[1] // steps[1], height, width)
        if _agree(whole, part, map_box) and _is_local(backbone, every, pictures, box):
            window = Window(box, map_box, every.moved(moved))
            head = _find_head(backbone, layer, window, whole, strides, steps)
            if head is not None:
                head = replace(head, group=group.moved(head.position))
            return Window(box, map_box, group.moved(moved), head)
    return "cut pictures do not give the same numbers as whole ones"


def _find_head(
    backbone: Backbone,
    layer: Layer,
    window: Window,
    whole: "_Run",
    strides: list[int],
    steps: list[int],
) -> Head | None:
    """Find the smallest part of the map that the features depend on, and make sure of it."""
    position = window.group.position
    assert isinstance(position, tuple)
    inner = cut(whole.gradient.abs().sum(1, keepdim=True), window.map_box)
    ratios = [stride // step for stride, step in zip(strides, steps, strict=True)]
    height, width = inner.shape[2:]
    # A valid convolution eats at the borders: then a map belongs to a somewhat larger picture.
    grid = backbone.site(layer).grid
    assert grid is not None
    spare = [backbone.preprocessing.size[axis] - grid[axis] * steps[axis] for axis in (0, 1)]
    inside = cut(whole.activations, window.map_box)
    for box in _grown(_support(inner), ratios, (height, width)):
        for more in ([0, 0], spare):
            picture_size = (box[2] * steps[0] + more[0], box[3] * steps[1] + more[1])
            moved = window.group.moved(
                (position[0] - box[0] // ratios[0], position[1] - box[1] // ratios[1])
            )
            head = Head(box, picture_size, moved)
            try:
                found = run_head(backbone, layer, head, cut(inside, box))
            except (IndexError, RuntimeError):
                continue
            map_box = (window.map_box[0] + box[0], window.map_box[1] + box[1], *box[2:])
            if _agree(whole, found, map_box):
                return head
    return None


def run_head(backbone: Backbone, layer: Layer, head: Head, activations: Tensor) -> "_Run":
    """Run the network from a part of the attribution layer's map, [N, C, h, w], to the features."""
    leaf = activations.detach().clone().requires_grad_()
    responses = respond(backbone, layer, head, leaf)
    (gradient,) = torch.autograd.grad(_mixed(responses), leaf)
    return _Run(leaf.detach(), responses.detach(), gradient, gradient)


def respond(backbone: Backbone, layer: Layer, head: Head, activations: Tensor) -> Tensor:
    """Return the features' responses, [N, F], for a part of the map, [N, C, h, w]."""
    # What such a picture gives before the layer is thrown away; only its size counts.
    blank = activations.new_zeros(len(activations), 3, *head.picture_size)
    target = head.group.probes[0].layer
    tapped = backbone.run(blank, [target], insert={layer: activations})
    responses: Tensor = head.group(tapped[target])
    return responses


@dataclass(frozen=True)
class _Run:
    activations: Tensor  # [N, C, h, w], at the attribution layer
    responses: Tensor  # [N, F]
    gradient: Tensor  # [N, C, h, w], of a mixture of the responses
    pictures: Tensor  # [N, 3, H, W], its gradient in the pictures


def _run(backbone: Backbone, layer: Layer, group: ProbeGroup, pictures: Tensor) -> _Run:
    target = group.probes[0].layer
    with torch.enable_grad():
        shown = pictures.clone().requires_grad_()
        tapped = backbone.run(shown, [layer, target])
        responses = group(tapped[target])
        gradients = torch.autograd.grad(_mixed(responses), [tapped[layer], shown])
    return _Run(tapped[layer].detach(), responses.detach(), *gradients)


def _mixed(responses: Tensor) -> Tensor:
    """Return a scalar that depends on all of the responses, on each in another measure."""
    weights = torch.linspace(1, 2, responses.shape[1])
    return (responses * weights.to(responses)).sum()


def _pictures(size: tuple[int, int]) -> Tensor:
    """Return a white, a smooth and a harsh picture, [3, 3, H, W]."""
    noise = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(0))
    coarse = torch.nn.functional.interpolate(noise[1:2, :, ::8, ::8], size, mode="bilinear")
    return torch.cat([noise[:1], coarse, noise[2:].round()])


def _support(values: Tensor) -> Box:
    """Return the smallest box outside of which all values are zero."""
    there = values.abs().sum((0, 1)) > 0  # [H, W]
    rows, columns = (there.any(axis).nonzero().flatten().tolist() for axis in (1, 0))
    if not rows:
        return 0, 0, *values.shape[2:]
    return rows[0], columns[0], rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1


def _grown(field: Box, strides: list[int], size: tuple[int, int]) -> Iterator[Box]:
    """Align a box to the strides, and grow it stride by stride up to a given size."""
    for growth in range(_GROWTHS):
        starts, lengths = [], []
        for axis in (0, 1):
            stride = strides[axis]
            start = max(field[axis] // stride - growth, 0) * stride
            stop = (-(-(field[axis] + field[axis + 2]) // stride) + growth) * stride
            starts.append(start)
            lengths.append(min(stop, size[axis]) - start)
        yield starts[0], starts[1], lengths[0], lengths[1]


def _agree(whole: _Run, part: _Run, map_box: Box) -> bool:
    """Say whether responses, gradient and the activations that count are the same."""
    inside = cut(whole.gradient, map_box)
    if (
        inside.shape != part.gradient.shape
        or inside.count_nonzero() != whole.gradient.count_nonzero()
    ):
        return False
    counted = (inside != 0).any(1, keepdim=True)
    activations = (cut(whole.activations, map_box) * counted, part.activations * counted)
    pairs = [(whole.responses, part.responses), (inside, part.gradient), activations]
    return all(bool((a - b).abs().max() <= TOLERANCE * a.abs().max()) for a, b in pairs)


@torch.no_grad()
def _is_local(backbone: Backbone, group: ProbeGroup, pictures: Tensor, box: Box) -> bool:
    """Say whether responses stay the same, to the bit, when all pixels outside the box change."""
    target = group.probes[0].layer
    changed = pictures.flip(0)
    cut(changed, box).copy_(cut(pictures, box))
    first, second = (group(backbone.run(p, [target])[target]) for p in (pictures, changed))
    return torch.equal(first, second)
