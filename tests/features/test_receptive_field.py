"""Windows: what they give against the whole computation, how tight they are, and who has none."""

import pytest
import torch
from torch import Tensor, nn

from mti_lightning.backbone import Backbone, Layer
from mti_lightning.features.bound import BoundFeature, FeatureGroup
from mti_lightning.features.feature import Feature, Position
from mti_lightning.features.receptive_field import find_window
from mti_lightning.features.window import Window, respond
from mti_lightning.images.boxes import Box, cut
from tests.attribution.autograd import EVERY, close, reference
from tests.backbone.networks import hooks, liven, plain

# The window; and the head's box, in the map of a picture cut to it. At row 6 of resnet18: rows 9 to
# 15 of the map count (3x3 at stride 2, 3x3), 5 to 19 behind the pool (four 3x3), 15 to 81 of the
# picture (3x3 and 7x7 at stride 2); out to multiples of the strides, 8 up to 16 and 8 up to 88.
Found = tuple[tuple[int, int], Box, Box | None]
CASES: list[tuple[str, tuple[int, int], str, str, list[Found]]] = [
    (
        "resnet18",
        (96, 160),
        "layer1",
        "layer2.0.act2/input",
        [
            ((6, 10), (8, 40, 80, 80), (6, 6, 8, 8)),
            ((0, 0), (0, 0, 40, 40), (0, 0, 4, 4)),
            ((11, 7), (48, 16, 48, 80), (6, 6, 6, 8)),
            ((5, 19), (0, 112, 80, 48), (6, 6, 8, 6)),
        ],
    ),
    # No multiple of the stride.
    (
        "resnet18",
        (101, 150),
        "layer1",
        "layer2.0.act2/input",
        [
            ((6, 10), (8, 40, 80, 80), (6, 6, 8, 8)),
            ((12, 18), (56, 104, 45, 46), (6, 6, 6, 6)),
        ],
    ),
    # Inside a block: its shortcut goes round the layer, so the map alone does not do.
    (
        "resnet50",
        (96, 64),
        "layer1.2.act1/input",
        "layer2.0.act1/input",
        [((6, 4), (4, 0, 40, 36), None)],
    ),
    # Convolutions without padding, pools beside convolutions.
    (
        "inception_v3",
        (171, 139),
        "Mixed_5b",
        "Mixed_5d.branch1x1.bn.act/input",
        [
            ((9, 0), (32, 0, 104, 64), (3, 0, 5, 3)),
            ((18, 14), (104, 72, 67, 67), (3, 3, 3, 3)),
        ],
    ),
    # Channels last at the target.
    (
        "convnext_tiny",
        (192, 96),
        "stages.0",
        "stages.1.blocks.0.mlp.act/input",
        [
            ((12, 6), (32, 0, 136, 96), (10, 6, 14, 14)),
            ((23, 11), (120, 24, 72, 72), (10, 10, 8, 8)),
        ],
    ),
    (
        "densenet121",
        (96, 128),
        "features.pool0",
        "features.denseblock1.denselayer3",
        [((12, 16), (28, 44, 40, 40), (2, 2, 7, 7)), ((0, 31), (0, 104, 20, 24), (0, 2, 4, 4))],
    ),
    (
        "vgg11",
        (64, 96),
        "features.5",
        "features.8",
        [((8, 12), (20, 36, 28, 28), (1, 1, 5, 5))],
    ),
    # Padding as in TensorFlow: of even sizes more at the end.
    (
        "tf_mobilenetv3_large_100",
        (64, 96),
        "blocks.0",
        "blocks.1",
        [((8, 12), (24, 40, 24, 24), (2, 2, 8, 8)), ((15, 0), (52, 0, 12, 16), (2, 0, 4, 6))],
    ),
]


def make(name: str, size: tuple[int, int] | None = None) -> Backbone:
    backbone = Backbone(name, weights="random", input_size=size)
    liven(backbone.network)
    return backbone


def bind(backbone: Backbone, target: str, position: Position) -> FeatureGroup:
    features = [Feature(target, channel=i, position=position) for i in (5, 2)]
    return FeatureGroup([BoundFeature(feature, backbone) for feature in features])


def find(backbone: Backbone, layer: str, group: FeatureGroup) -> Window:
    found = find_window(backbone, Layer.parse(layer), group)
    assert isinstance(found, Window)
    return found


def draw(backbone: Backbone, count: int = 2) -> Tensor:
    return torch.rand(count, 3, *backbone.preprocessing.size)


def read(backbone: Backbone, group: FeatureGroup, pictures: Tensor) -> Tensor:
    target = group.bound_features[0].layer
    responses: Tensor = group(backbone.run(pictures, [target])[target])
    return responses.detach()


def put_behind_the_pool(backbone: Backbone, module: nn.Module) -> None:
    backbone.network.maxpool = nn.Sequential(backbone.network.get_submodule("maxpool"), module)


def place(values: Tensor, whole: Tensor, *corners: Box) -> Tensor:
    """Put a part of a map in its place on a map of zeros."""
    placed = torch.zeros_like(whole)
    top, left = (sum(corner[axis] for corner in corners) for axis in (0, 1))
    cut(placed, (top, left, *values.shape[2:])).copy_(values)
    return placed


@pytest.mark.parametrize(
    ("name", "size", "layer", "target", "position", "box", "head"),
    [(*case, *found) for *case, several in CASES for found in several],
)
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
    row, column = position
    channels_first = group.bound_features[0].layout.channel_dim == 1
    index = (EVERY, 5, row, column) if channels_first else (EVERY, row, column, 5)
    activations, expected, responses = reference(plain(backbone), pictures, layer, target, index)

    tapped = backbone.run(window.crop(pictures), [at, group.bound_features[0].layer], cut=at)
    part, given = tapped[at], window.group(tapped[group.bound_features[0].layer])[:, 0]
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


@pytest.mark.parametrize(
    ("name", "layer", "target", "position"),
    [
        ("resnet18", "layer1", "layer2.0.act2/input", (6, 10)),
        ("resnet18", "layer1", "layer2.0.act2/input", (11, 0)),
        ("convnext_tiny", "stem", "stages.0.blocks.1.mlp.act/input", (12, 20)),
        ("tf_mobilenetv3_large_100", "blocks.0", "blocks.1", (12, 20)),
    ],
)
def test_pixels_outside_change_no_bit_and_the_strips_along_each_side_do(
    name: str, layer: str, target: str, position: tuple[int, int]
) -> None:
    backbone = make(name, (96, 160))
    group = bind(backbone, target, position).every_channel()
    window = find(backbone, layer, group)
    stride = 4 if name == "convnext_tiny" else 8
    pictures = draw(backbone, 4)

    expected = read(backbone, group, pictures)
    for change in (1 - pictures, torch.zeros_like(pictures), torch.full_like(pictures, 1e6)):
        cut(change, window.box).copy_(window.crop(pictures))
        assert torch.equal(read(backbone, group, change), expected)

    # A window one stride smaller on any side, unless the picture ends there, would not do.
    top, left, height, width = window.box
    sides = [
        (top, left, stride, width, top > 0),
        (top + height - stride, left, stride, width, top + height < 96),
        (top, left, height, stride, left > 0),
        (top, left + width - stride, height, stride, left + width < 160),
    ]
    assert any(inside for *_, inside in sides)
    for *strip, inside in sides:
        if inside:
            changed = pictures.clone()
            there = cut(changed, (strip[0], strip[1], strip[2], strip[3]))
            there.copy_(1 - there)
            assert not torch.equal(read(backbone, group, changed), expected)


@pytest.mark.parametrize(
    ("name", "layer", "target", "position", "reason"),
    [
        ("efficientnet_b0", "blocks.0", "blocks.1", "centre", "whole picture"),
        ("mobilenetv3_small_100", "conv_stem", "blocks.0", "centre", "whole picture"),
        ("regnety_002", "s1", "s2", (0, 0), "whole picture"),
        ("resnet18", "layer1", "layer4", "centre", "whole picture"),
        ("resnet18", "layer1", "layer2.0.act2/input", "peak", "one position"),
        ("resnet18", "layer1", "layer2.0.act2/input", "mean", "one position"),
        ("resnet18", "layer1", "fc", None, "one position"),
        ("vit_tiny_patch16_224", "blocks.1", "blocks.2", "centre", "one position"),
        ("swin_tiny_patch4_window7_224", "layers.0", "layers.1", "centre", "channels first"),
    ],
)
def test_who_has_no_window_says_why(
    name: str, layer: str, target: str, position: Position, reason: str
) -> None:
    backbone = make(name, None if "224" in name else (64, 96))
    found = find_window(backbone, Layer.parse(layer), bind(backbone, target, position))
    assert isinstance(found, str)
    assert reason in found


class Dormant(nn.Module):
    """Looks at the whole map, but what it finds counts in very bright pictures alone."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps + (maps.mean((1, 2, 3), keepdim=True) - 2).relu()


class Placed(nn.Module):
    """Adds to each column its number."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps + 0.01 * torch.arange(maps.shape[3])


class Fixed(nn.Module):
    """Takes maps of one size only."""

    def forward(self, maps: Tensor) -> Tensor:
        assert maps.shape[2:] == (24, 40)
        return maps


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Dormant(), "whole picture"),
        (nn.InstanceNorm2d(64), "whole picture"),
        (nn.GroupNorm(4, 64), "whole picture"),
        (Placed(), "not give the same numbers"),
        (Fixed(), "one size only"),
    ],
)
def test_a_module_that_is_not_local_or_not_the_same_everywhere_leaves_no_window(
    module: nn.Module, reason: str
) -> None:
    backbone = make("resnet18", (96, 160))
    group = bind(backbone, "layer2.0.act2/input", "centre")
    assert find(backbone, "layer1", group).box == (8, 40, 80, 80)
    put_behind_the_pool(backbone, module)
    found = find_window(backbone, Layer.parse("layer1"), group)
    assert isinstance(found, str)
    assert reason in found


def test_a_path_that_hardly_any_picture_opens_is_not_lost() -> None:
    backbone = make("resnet18", (96, 160))
    group = bind(backbone, "layer2.0.act2/input", "centre")
    box = find(backbone, "layer1", group).box
    put_behind_the_pool(backbone, Dormant())
    pictures = draw(backbone)
    dark, bright = (torch.full_like(pictures, value) for value in (0.0, 100.0))
    for other in (dark, bright):
        cut(other, box).copy_(cut(pictures, box))
    expected = read(backbone, group, pictures)
    # As long as it is shut, the window holds to the bit; so no comparison of pictures tells.
    assert torch.equal(read(backbone, group, dark), expected)
    assert not torch.equal(read(backbone, group, bright), expected)
    assert isinstance(find_window(backbone, Layer.parse("layer1"), group), str)


def test_weights_that_are_zero_narrow_no_window() -> None:
    # timm starts the last norm of each block at 0, which leaves the shortcut alone.
    group = bind(asleep := Backbone("resnet18", "random", input_size=(96, 160)), "layer2", (6, 10))
    awake = make("resnet18", (96, 160))
    expected = find(awake, "layer1", bind(awake, "layer2", (6, 10)))
    assert find(asleep, "layer1", group).box == expected.box


def test_a_stride_of_three() -> None:
    backbone = make("resnet18", (96, 160))
    backbone.network.conv1 = nn.Conv2d(3, 64, 7, stride=3, padding=3)
    group = bind(backbone, "layer1.0.act1/input", "centre")
    window = find(backbone, "maxpool", group)
    # Columns 12 to 14 behind the pool, 23 to 29 before it, 66 to 90 of the picture.
    assert window.box == (36, 66, 30, 30)
    pictures = draw(backbone)
    close(read(backbone, window.group, window.crop(pictures)), read(backbone, group, pictures))
