"""Windows: what they give against the whole computation, how tight they are, and who has none."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mti_lightning.backbone import Backbone, Layer
from mti_lightning.feature import Feature, Probe, ProbeGroup
from mti_lightning.receptive_field import Box, Window, cut, find_window, respond
from tests.test_attribution import close, reference
from tests.test_backbone import hooks, liven, plain

# Where the window and, in the layer's map, the head's box begin and how large they are.
CASES: list[tuple[str, tuple[int, int], str, str, tuple[int, int], Box, Box | None]] = []


def make(name: str, size: tuple[int, int] | None = None) -> Backbone:
    backbone = Backbone(name, weights="random", input_size=size)
    liven(backbone.network)
    return backbone


def bind(backbone: Backbone, target: str, position: object) -> ProbeGroup:
    features = [Feature(target, channel=i, position=position) for i in (5, 2)]
    return ProbeGroup([Probe(feature, backbone) for feature in features])


def find(backbone: Backbone, layer: str, group: ProbeGroup) -> Window:
    found = find_window(backbone, Layer.parse(layer), group)
    assert isinstance(found, Window)
    return found


def draw(backbone: Backbone, count: int = 2) -> Tensor:
    return torch.rand(count, 3, *backbone.preprocessing.size)


def place(values: Tensor, whole: Tensor, *corners: Box) -> Tensor:
    """Put a part of a map in its place on a map of zeros."""
    placed = torch.zeros_like(whole)
    top, left = sum(corner[0] for corner in corners), sum(corner[1] for corner in corners)
    cut(placed, (top, left, *values.shape[2:])).copy_(values)
    return placed


@pytest.mark.parametrize(("name", "size", "layer", "target", "position", "box", "head"), CASES)
def test_a_window_gives_what_the_whole_picture_gives(
    name: str,
    size: tuple[int, int],
    layer: str,
    target: str,
    position: tuple[int, int],
    box: Box,
    head: Box | None,
) -> None:
    backbone = make(name, size)
    group = bind(backbone, target, position)
    window = find(backbone, layer, group)
    pictures, at = draw(backbone), Layer.parse(layer)
    read = backbone.site(group.probes[0].layer).channel_dim
    index = (slice(None), 5, *position) if read == 1 else (slice(None), *position, 5)
    activations, expected, responses = reference(
        plain(backbone), pictures, layer, target, index
    )

    tapped = backbone.run(window.crop(pictures), [at, group.probes[0].layer], cut=at)
    part, given = tapped[at], window.group(tapped[group.probes[0].layer])[:, 0]
    (gradient,) = torch.autograd.grad(given.sum(), part)
    close(given.detach(), responses)
    close(place((part * gradient).detach(), activations, window.map_box), expected)
    assert window.box == box
    assert window.map_box[2:] == part.shape[2:]
    assert group.position == position

    assert (window.head and window.head.box) == head
    if window.head is not None:
        leaf = cut(part.detach(), window.head.box).clone().requires_grad_()
        given = respond(backbone, at, window.head, leaf)[:, 0]
        (gradient,) = torch.autograd.grad(given.sum(), leaf)
        close(given.detach(), responses)
        attribution = (leaf * gradient).detach()
        close(place(attribution, activations, window.map_box, window.head.box), expected)
    assert not hooks(backbone.network)
