"""What features depend on, found by running the network: where a NaN reaches them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mti_lightning.backbone import Backbone, Layer
from mti_lightning.features.bound import FeatureGroup
from mti_lightning.features.window import Head, respond
from mti_lightning.images.boxes import Box

_LONGER = 96  # pixels; most strides divide it
# What networks raise for pictures that they cannot take.
TOO_SMALL = (AssertionError, IndexError, RuntimeError, ValueError)
Pair = tuple[int, int]  # of rows, of columns


@dataclass(frozen=True)
class Run:
    """What a pass gives of whole or cut pictures, or of a part of the map."""

    activations: Tensor  # [N, C, h, w], at the attribution layer
    responses: Tensor  # [N, F]
    gradient: Tensor  # [N, C, h, w], of a mixture of the responses
    pictures: Tensor  # [N, 3, H, W], its gradient in the pictures


def run_head(backbone: Backbone, layer: Layer, head: Head, activations: Tensor) -> Run:
    """Run the network from a part of the attribution layer's map on."""
    with torch.enable_grad():
        leaf = activations.clone().requires_grad_()
        # Where there is a way round the layer, the NaN takes it.
        responses = respond(backbone, layer, head, leaf, blank=torch.nan)
        (gradient,) = torch.autograd.grad(_mixed(responses), leaf)
    return Run(activations, responses.detach(), gradient, gradient)


def run_pictures(backbone: Backbone, layer: Layer, group: FeatureGroup, pictures: Tensor) -> Run:
    """Run the network from pictures on, whole or cut."""
    target = group.bound_features[0].layer
    with torch.enable_grad():
        shown = pictures.clone().requires_grad_()
        tapped = backbone.run(shown, [layer, target])
        responses = group(tapped[target])
        gradients = torch.autograd.grad(_mixed(responses), [tapped[layer], shown])
    return Run(tapped[layer].detach(), responses.detach(), *gradients)


def _mixed(responses: Tensor) -> Tensor:
    """Return a scalar that depends on all of the responses, on each in another measure."""
    weights = torch.linspace(1, 2, responses.shape[1])
    return (responses * weights.to(responses)).sum()


def respond_to(backbone: Backbone, group: FeatureGroup, pictures: Tensor) -> Tensor:
    """Return the features' responses, [N, F]."""
    target = group.bound_features[0].layer
    responses: Tensor = group(backbone.run(pictures, [target])[target])
    return responses


@torch.no_grad()
def strides_of(backbone: Backbone, layers: Sequence[Layer]) -> list[Pair] | None:
    """Return how many pixels lie between rows and between columns of layers' maps.

    Returns:
        None where they do not grow with the picture.
    """
    height, width = backbone.preprocessing.size
    larger = backbone.mean.new_zeros(1, 3, height + _LONGER, width + _LONGER)
    try:
        tapped = backbone.run(larger, layers)
    except TOO_SMALL:
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
def find_field(respond: Callable[[Tensor], Tensor], maps: Tensor, guess: Box, strides: Pair) -> Box:
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


def find_map_field(
    backbone: Backbone, layer: Layer, group: FeatureGroup, pictures: Tensor, part: Run
) -> Box:
    """Find the part of the attribution layer's map that the features depend on."""
    target = group.bound_features[0].layer

    def respond(maps: Tensor) -> Tensor:
        shown = pictures[:1].expand(len(maps), -1, -1, -1)
        responses: Tensor = group(backbone.run(shown, [target], insert={layer: maps})[target])
        return responses

    return find_field(respond, part.activations[:1], support_box(part.gradient), (1, 1))


def random_pictures(size: tuple[int, int]) -> Tensor:
    """Return a white, a smooth and a harsh picture, [3, 3, H, W]."""
    noise = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(0))
    coarse = torch.nn.functional.interpolate(noise[1:2, :, ::8, ::8], size, mode="bilinear")
    return torch.cat([noise[:1], coarse, noise[2:].round()])


def support_box(values: Tensor) -> Box:
    """Return the smallest box outside of which all values are zero."""
    there = values.abs().sum((0, 1)) > 0  # [H, W]
    rows, columns = (there.any(axis).nonzero().flatten().tolist() for axis in (1, 0))
    if not rows:
        return 0, 0, *values.shape[2:]
    return rows[0], columns[0], rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
