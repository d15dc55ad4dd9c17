"""Exact receptive-field windows: what part of a picture a feature at one position depends on."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from mti_lightning.backbone.network import Backbone, Layer
from mti_lightning.features.bound import FeatureGroup
from mti_lightning.images.boxes import Box, cut

# Of the largest value: other sizes get other kernels, which sum in another order.
TOLERANCE = 1e-5
_GROWTHS = 3
_LONGER = 96  # pixels; most strides divide it
# What networks raise for pictures that they cannot take.
_TOO_SMALL = (AssertionError, IndexError, RuntimeError, ValueError)
Pair = tuple[int, int]  # of rows, of columns


@final
@dataclass(frozen=True)
class Window:
    """The part of a picture that some features at one position depend on.

    Attributes:
        box: Top, left, height and width in pixels.
        map_box: The same in the attribution layer's map: what a picture cut to `box` gives there
            is that part of the whole picture's map, wherever the features depend on it.
        group: The features, their position as it is in a cut picture.
        head: How to get from the map to the features alone; None where that is not found.
    """

    box: Box
    map_box: Box
    group: FeatureGroup
    head: "Head | None" = None

    def of(self, group: FeatureGroup) -> "Window":
        """Return the same for other channels: they depend on the same part."""
        head = self.head and replace(self.head, group=group.moved(self.head.position))
        return replace(self, group=group.moved(self.group.position), head=head)

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
    group: FeatureGroup

    @property
    def position(self) -> tuple[int, ...]:
        """Where the features are read."""
        assert isinstance(self.group.position, tuple)
        return self.group.position


# cuDNN rounds to TF32, and its fast algorithms mix pixels and take the mixture apart again.
@torch.backends.cudnn.flags(enabled=False)
def find_window(backbone: Backbone, layer: Layer, group: FeatureGroup) -> Window | str:
    """Find the window of features at one position, and make sure of it on random pictures.

    What makes the features NaN when it is NaN is their receptive field, whatever the weights and
    however the units are gated. Aligned to the strides of the maps it is the window, taken only if
    responses, attributions and the activations that count agree to `TOLERANCE` between cut and
    whole pictures, and nothing outside changes any response by a bit.

    Args:
        backbone: The network.
        layer: The attribution layer, one that feeds the features.
        group: The features.

    Returns:
        The window; or, where there is none smaller than the picture, why.
    """
    position, target = group.position, group.bound_features[0].layout
    layout = backbone.layout(layer)
    if not isinstance(position, tuple) or target.is_tokens:
        return "they are not read at one position of a map"
    if layout.is_tokens or layout.channel_dim != 1:
        return f"{layer} is no map with its channels first"
    size = backbone.preprocessing.size
    pictures = _pictures(size).to(backbone.mean)
    # A single feature may hang on units that are silent in these pictures.
    every = group.every_channel()
    whole = _run(backbone, layer, every, pictures)
    strides = _strides(backbone, [layer, group.bound_features[0].layer])
    if strides is None:
        return "the network takes pictures of one size only, or its maps do not grow with them"
    steps, jumps = strides
    aligned = (math.lcm(steps[0], jumps[0]), math.lcm(steps[1], jumps[1]))
    guess = _support(whole.pictures)
    field = _reach(lambda shown: _respond(backbone, every, shown), pictures[:1], guess, aligned)
    if field[2:] == size:
        return "they depend on the whole picture"
    for box in _grown(field, aligned, size):
        if box[2:] == size:
            break
        moved = (position[0] - box[0] // jumps[0], position[1] - box[1] // jumps[1])
        shown = cut(pictures, box)
        try:
            part = _run(backbone, layer, every.moved(moved), shown)
        except _TOO_SMALL:
            continue
        height, width = part.activations.shape[2:]
        map_box = (box[0] // steps[0], box[1] // steps[1], height, width)
        reach = _map_reach(backbone, layer, every.moved(moved), shown, part)
        if _agree(whole, part, map_box, reach) and _is_local(backbone, every, pictures, box):
            head = _find_head(
                backbone, layer, every.moved(moved), part, reach, (steps, jumps, aligned)
            )
            if head is not None:
                head = replace(head, group=group.moved(head.position))
            return Window(box, map_box, group.moved(moved), head)
    return "cut pictures do not give the same numbers as whole ones"


def _find_head(
    backbone: Backbone,
    layer: Layer,
    group: FeatureGroup,
    part: "_Run",
    reach: Box,
    strides: tuple[Pair, Pair, Pair],
) -> Head | None:
    """Find the smallest part of a cut picture's map that gives the features, and make sure of it.

    Args:
        backbone: The network.
        layer: The attribution layer.
        group: The features, their position as it is in a cut picture.
        part: What cut pictures give.
        reach: The part of their map that the features depend on.
        strides: Of the layer, of the features' layer, and what both divide, in pixels.
    """
    steps, jumps, aligned = strides
    position, grid = group.position, backbone.layout(layer).grid
    assert isinstance(position, tuple)
    assert grid is not None
    ratios = (aligned[0] // steps[0], aligned[1] // steps[1])
    height, width = part.activations.shape[2:]
    # A valid convolution eats at the borders: then a map belongs to a somewhat larger picture.
    spare = [backbone.preprocessing.size[axis] - grid[axis] * steps[axis] for axis in (0, 1)]
    for box in _grown(reach, ratios, (height, width)):
        row, column = (position[i] - box[i] * steps[i] // jumps[i] for i in (0, 1))
        for more in ([0, 0], spare):
            picture_size = (box[2] * steps[0] + more[0], box[3] * steps[1] + more[1])
            head = Head(box, picture_size, group.moved((row, column)))
            try:
                found = _run_head(backbone, layer, head, cut(part.activations, box))
            except _TOO_SMALL:
                continue
            within = (reach[0] - box[0], reach[1] - box[1], *reach[2:])
            if _agree(part, found, box, within):
                return head
    return None


def respond(
    backbone: Backbone, layer: Layer, head: Head, activations: Tensor, blank: float = 0.0
) -> Tensor:
    """Return the features' responses, [N, F], for a part of the map, [N, C, h, w].

    What pictures full of `blank` give before the layer is thrown away; only their size counts.
    """
    pictures = activations.new_full((len(activations), 3, *head.picture_size), blank)
    target = head.group.bound_features[0].layer
    tapped = backbone.run(pictures, [target], insert={layer: activations})
    responses: Tensor = head.group(tapped[target])
    return responses


@dataclass(frozen=True)
class _Run:
    activations: Tensor  # [N, C, h, w], at the attribution layer
    responses: Tensor  # [N, F]
    gradient: Tensor  # [N, C, h, w], of a mixture of the responses
    pictures: Tensor  # [N, 3, H, W], its gradient in the pictures


def _run_head(backbone: Backbone, layer: Layer, head: Head, activations: Tensor) -> _Run:
    with torch.enable_grad():
        leaf = activations.clone().requires_grad_()
        # Where there is a way round the layer, the NaN takes it.
        responses = respond(backbone, layer, head, leaf, blank=torch.nan)
        (gradient,) = torch.autograd.grad(_mixed(responses), leaf)
    return _Run(activations, responses.detach(), gradient, gradient)


def _run(backbone: Backbone, layer: Layer, group: FeatureGroup, pictures: Tensor) -> _Run:
    target = group.bound_features[0].layer
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


def _respond(backbone: Backbone, group: FeatureGroup, pictures: Tensor) -> Tensor:
    """Return the features' responses, [N, F]."""
    target = group.bound_features[0].layer
    responses: Tensor = group(backbone.run(pictures, [target])[target])
    return responses


@torch.no_grad()
def _strides(backbone: Backbone, layers: Sequence[Layer]) -> list[Pair] | None:
    """Return how many pixels lie between rows and between columns of layers' maps.

    Returns:
        None where they do not grow with the picture.
    """
    height, width = backbone.preprocessing.size
    larger = backbone.mean.new_zeros(1, 3, height + _LONGER, width + _LONGER)
    try:
        tapped = backbone.run(larger, layers)
    except _TOO_SMALL:
        return None
    strides = []
    for layer in layers:
        layout = backbone.layout(layer)
        assert layout.grid is not None
        rows, columns = (tapped[layer].shape[dim] for dim in layout.position_dims)
        more = (rows - layout.grid[0], columns - layout.grid[1])
        if min(more) < 1:
            return None
        strides.append((round(_LONGER / more[0]), round(_LONGER / more[1])))
    return strides


@torch.no_grad()
def _reach(respond: Callable[[Tensor], Tensor], maps: Tensor, guess: Box, strides: Pair) -> Box:
    """Find the smallest aligned box outside of which no NaN reaches the responses.

    Args:
        respond: Computes responses, [N, F], from maps.
        maps: Pictures or activations to put the NaN into, [1, C, H, W].
        guess: A box that lies in the one searched for.
        strides: What the box is aligned to.
    """
    size = maps.shape[2:]
    # From the guess outwards, for each side all places where the box may end.
    places: list[range] = []
    for axis in (0, 1):
        stride, stop = strides[axis], guess[axis] + guess[axis + 2]
        places.append(range(guess[axis] // stride * stride, -1, -stride))
        last = -(-size[axis] // stride) * stride
        places.append(range(-(-stop // stride) * stride, last + 1, stride))
    lows, tried, highs = [0] * 4, [0] * 4, [len(side) - 1 for side in places]
    while unsure := [side for side in range(4) if lows[side] < highs[side]]:
        struck = maps.repeat(len(unsure), 1, 1, 1)
        for one, side in zip(struck, unsure, strict=True):
            along = one.transpose(1, 1 + side // 2)  # [C, length, other]
            place = places[side][tried[side]]
            (along[:, place:] if side % 2 else along[:, :place]).fill_(torch.nan)
        clean = respond(struck).isfinite().all(1).tolist()
        for side, is_clean in zip(unsure, clean, strict=True):
            if is_clean:
                highs[side] = tried[side]
            else:
                lows[side] = tried[side] + 1
            tried[side] = (lows[side] + highs[side]) // 2
    (top, bottom), (left, right) = (
        (places[i][highs[i]], min(places[i + 1][highs[i + 1]], size[i // 2])) for i in (0, 2)
    )
    return top, left, bottom - top, right - left


def _map_reach(
    backbone: Backbone, layer: Layer, group: FeatureGroup, pictures: Tensor, part: _Run
) -> Box:
    """Find the part of the attribution layer's map that the features depend on."""
    target = group.bound_features[0].layer

    def respond(maps: Tensor) -> Tensor:
        shown = pictures[:1].expand(len(maps), -1, -1, -1)
        responses: Tensor = group(backbone.run(shown, [target], insert={layer: maps})[target])
        return responses

    return _reach(respond, part.activations[:1], _support(part.gradient), (1, 1))


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


def _grown(field: Box, strides: Pair, size: Pair) -> Iterator[Box]:
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


def _agree(whole: _Run, part: _Run, map_box: Box, reach: Box) -> bool:
    """Say whether responses, gradient and the activations that count are the same.

    Args:
        whole: What is to be had.
        part: What a part gives.
        map_box: The part, in the map of the whole.
        reach: What counts, in the map of the part.
    """
    inside = cut(whole.gradient, map_box)
    if (
        inside.shape != part.gradient.shape
        or inside.count_nonzero() != whole.gradient.count_nonzero()
    ):
        return False
    counted = (cut(cut(whole.activations, map_box), reach), cut(part.activations, reach))
    pairs = [(whole.responses, part.responses), (inside, part.gradient), counted]
    return all(bool((a - b).abs().max() <= TOLERANCE * a.abs().max()) for a, b in pairs)


@torch.no_grad()
def _is_local(backbone: Backbone, group: FeatureGroup, pictures: Tensor, box: Box) -> bool:
    """Say whether responses stay the same, to the bit, when all pixels outside the box change."""
    changed, pictures = pictures[1:].clone(), pictures[:-1]
    cut(changed, box).copy_(cut(pictures, box))
    first, second = (_respond(backbone, group, shown) for shown in (pictures, changed))
    return torch.equal(first, second)
