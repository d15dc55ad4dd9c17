"""Finding exact receptive-field windows, and making sure of them."""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from mti_lightning.backbone import Backbone, Layer
from mti_lightning.features.bound import FeatureGroup
from mti_lightning.features.probe import (
    TOO_SMALL,
    Pair,
    Run,
    find_field,
    find_map_field,
    random_pictures,
    respond_to,
    run_head,
    run_pictures,
    strides_of,
    support_box,
)
from mti_lightning.features.window import Head, Window
from mti_lightning.images.boxes import Box, cut

# Of the largest value: other sizes get other kernels, which sum in another order.
TOLERANCE = 1e-5
_GROWTHS = 3


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
    pictures = random_pictures(size).to(backbone.mean)
    # A single feature may hang on units that are silent in these pictures.
    every = group.every_channel()
    whole = run_pictures(backbone, layer, every, pictures)
    strides = strides_of(backbone, [layer, group.bound_features[0].layer])
    if strides is None:
        return "the network takes pictures of one size only, or its maps do not grow with them"
    steps, jumps = strides
    aligned = (math.lcm(steps[0], jumps[0]), math.lcm(steps[1], jumps[1]))
    guess = support_box(whole.pictures)
    field = find_field(
        lambda shown: respond_to(backbone, every, shown), pictures[:1], guess, aligned
    )
    if field[2:] == size:
        return "they depend on the whole picture"
    for box in _grown(field, aligned, size):
        if box[2:] == size:
            break
        moved = (position[0] - box[0] // jumps[0], position[1] - box[1] // jumps[1])
        shown = cut(pictures, box)
        try:
            part = run_pictures(backbone, layer, every.moved(moved), shown)
        except TOO_SMALL:
            continue
        height, width = part.activations.shape[2:]
        map_box = (box[0] // steps[0], box[1] // steps[1], height, width)
        needed = find_map_field(backbone, layer, every.moved(moved), shown, part)
        if _agree(whole, part, map_box, needed) and _is_local(backbone, every, pictures, box):
            head = _find_head(
                backbone, layer, every.moved(moved), part, needed, (steps, jumps, aligned)
            )
            if head is not None:
                head = replace(head, group=group.moved(head.position))
            return Window(box, map_box, group.moved(moved), head)
    return "cut pictures do not give the same numbers as whole ones"


def _find_head(
    backbone: Backbone,
    layer: Layer,
    group: FeatureGroup,
    part: Run,
    needed: Box,
    strides: tuple[Pair, Pair, Pair],
) -> Head | None:
    """Find the smallest part of a cut picture's map that gives the features, and make sure of it.

    Args:
        backbone: The network.
        layer: The attribution layer.
        group: The features, their position as it is in a cut picture.
        part: What cut pictures give.
        needed: The part of their map that the features depend on.
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
    for box in _grown(needed, ratios, (height, width)):
        row, column = (position[i] - box[i] * steps[i] // jumps[i] for i in (0, 1))
        for more in ([0, 0], spare):
            picture_size = (box[2] * steps[0] + more[0], box[3] * steps[1] + more[1])
            head = Head(box, picture_size, group.moved((row, column)))
            try:
                found = run_head(backbone, layer, head, cut(part.activations, box))
            except TOO_SMALL:
                continue
            within = (needed[0] - box[0], needed[1] - box[1], *needed[2:])
            if _agree(part, found, box, within):
                return head
    return None


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


def _agree(whole: Run, part: Run, map_box: Box, needed: Box) -> bool:
    """Say whether responses, gradient and the activations that count are the same.

    Args:
        whole: What is to be had.
        part: What a part gives.
        map_box: The part, in the map of the whole.
        needed: What counts, in the map of the part.
    """
    inside = cut(whole.gradient, map_box)
    if (
        inside.shape != part.gradient.shape
        or inside.count_nonzero() != whole.gradient.count_nonzero()
    ):
        return False
    counted = (cut(cut(whole.activations, map_box), needed), cut(part.activations, needed))
    pairs = [(whole.responses, part.responses), (inside, part.gradient), counted]
    return all(bool((a - b).abs().max() <= TOLERANCE * a.abs().max()) for a, b in pairs)


@torch.no_grad()
def _is_local(backbone: Backbone, group: FeatureGroup, pictures: Tensor, box: Box) -> bool:
    """Say whether responses stay the same, to the bit, when all pixels outside the box change."""
    changed, pictures = pictures[1:].clone(), pictures[:-1]
    cut(changed, box).copy_(cut(pictures, box))
    first, second = (respond_to(backbone, group, shown) for shown in (pictures, changed))
    return torch.equal(first, second)
