"""The feature grammar, and what a bound_feature reads where."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mti_lightning.backbone import Backbone, Layer
from mti_lightning.errors import InputError
from mti_lightning.features.bound import BoundFeature
from mti_lightning.features.feature import Feature

VIT = "vit_tiny_patch16_224"
_BACKBONES: dict[str, Backbone] = {}


def backbone(name: str) -> Backbone:
    """Return a backbone of random weights, made once."""
    if name not in _BACKBONES:
        sizes = {"resnet18": (96, 160), VIT: (64, 96), "convnext_tiny": (96, 64)}
        _BACKBONES[name] = Backbone(name, weights="random", input_size=sizes.get(name))
    return _BACKBONES[name]


def read(name: str, feature: str | dict[str, object] | Feature) -> tuple[Tensor, Tensor]:
    """Return the target layer's activations and the responses, for three random pictures."""
    network = backbone(name)
    bound_feature = BoundFeature(Feature.parse(feature), network)
    pictures = torch.rand(3, 3, *network.preprocessing.size)
    activations = network.run(pictures, [bound_feature.layer])[bound_feature.layer]
    return activations, bound_feature(activations)


# The short form has no way to write a path that itself looks like a number, a vector or a position.
paths = st.from_regex(r"[a-z_./][a-zA-Z0-9_./ -]*\.(npy|pt)(#\d)?", fullmatch=True)
numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**6), 10**6)
positions = (
    st.sampled_from([None, "centre", "peak", "mean"])
    | st.integers(0, 999)
    | st.lists(st.integers(0, 999), min_size=2, max_size=2)
)
features = st.fixed_dictionaries(
    {
        "layer": st.from_regex(r"[a-z][a-z0-9_.]*(/input|/output)?", fullmatch=True),
        "position": positions,
    }
).flatmap(
    lambda fixed: st.one_of(
        st.integers(-5, 5000).map(lambda channel: {**fixed, "channel": channel}),
        (paths | st.lists(numbers, min_size=1, max_size=5)).map(
            lambda direction: {**fixed, "direction": direction}
        ),
    )
)


@given(features)
def test_the_structured_and_the_short_form_say_the_same(structured: dict[str, object]) -> None:
    feature = Feature.parse(yaml.safe_load(yaml.safe_dump(structured)))
    assert Feature.parse(str(feature)) == feature
    assert str(Feature.parse(str(feature))) == str(feature)
    assert Feature.parse(feature) is feature
    assert hash(Feature.parse(str(feature))) == hash(feature)


def test_short_forms_are_read_as_written() -> None:
    assert Feature.parse("layer3.0.act2/input:12@centre") == Feature(
        "layer3.0.act2/input", 12, position="centre"
    )
    assert Feature.parse("fc:3") == Feature("fc", 3)
    assert Feature.parse(" layer4:3@[2, 5] ") == Feature("layer4", 3, position=(2, 5))
    assert Feature.parse("blocks.2:3@0").position == 0
    assert Feature.parse("fc:[0.5, 0, -1]@peak") == Feature(
        "fc", direction=(0.5, 0.0, -1.0), position="peak"
    )
    assert str(Feature("fc", direction=(0.5, 0, -1))) == "fc:[0.5,0,-1]"
    assert str(Feature("fc", direction=(-0.0, 1e300))) == "fc:[0,1e+300]"
    assert Feature.parse(r"fc:C:\vectors\a.npy#3").direction == r"C:\vectors\a.npy#3"


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("layer3", "feature 'layer3' is not of the form LAYER[/input]:CHANNEL[@POSITION], such as"),
        ("", "feature '' is not of the form"),
        (7, "feature 7 is not of the form"),
        ("fc:[1,", "feature 'fc:[1,': [1, is no vector; write it as [0.5,0,-1]"),
        ("fc:[1,'a']", "is no vector; write it as [0.5,0,-1]"),
        ('fc:[1,"a"]', "feature of layer 'fc': not all of direction [1, 'a'] are numbers"),
        ("fc:[1,NaN]", "not all of direction [1, nan] are numbers"),
        ("fc:[[1,2]]", "not all of direction [[1, 2]] are numbers"),
        (
            "fc:3@middle",
            "position 'middle' is none of centre, peak, mean, [row, column] or a token",
        ),
        ("fc:3@-1", "position '-1' is none of"),
        ("fc:3@1,2,3", "position '1,2,3' is none of"),
        ({"layer": "fc"}, "feature of layer 'fc': give either a channel or a direction"),
        (
            {"layer": "fc", "channel": 1, "direction": "a.npy"},
            "give either a channel or a direction",
        ),
        (
            {"layer": "fc", "chanel": 1},
            "takes layer, channel or direction, and position; not chanel",
        ),
        (
            {"channel": 1},
            (
                "feature {'channel': 1}: takes layer, channel or direction, and position; "
                "the layer is missing"
            ),
        ),
        ({"layer": 3, "channel": 1}, "feature of layer 3: give a layer's name"),
        ({"layer": "fc", "channel": "3"}, "feature of layer 'fc': channel '3' is no whole number"),
        ({"layer": "fc", "channel": 1.5}, "channel 1.5 is no whole number"),
        ({"layer": "fc", "channel": True}, "channel True is no whole number"),
        ({"layer": "fc", "direction": 3}, "direction 3 is neither a file nor a list"),
        ({"layer": "fc", "direction": {"a": 1}}, "direction {'a': 1} is neither a file nor a list"),
        ({"layer": "fc", "direction": ["1"]}, "not all of direction ['1'] are numbers"),
        ({"layer": "fc", "channel": 1, "position": [1, 2, 3]}, "position [1, 2, 3] is none of"),
        ({"layer": "fc", "channel": 1, "position": [1, -2]}, "position [1, -2] is none of"),
        ({"layer": "fc", "channel": 1, "position": -1}, "position -1 is none of"),
        ({"layer": "fc", "channel": 1, "position": 1.5}, "position 1.5 is none of"),
        ({"layer": "fc", "channel": 1, "position": True}, "position True is none of"),
        ({"layer": "fc", "channel": 1, "position": {"row": 1}}, "position {'row': 1} is none of"),
    ],
)
def test_what_is_no_feature_is_refused(written: object, told: str) -> None:
    with pytest.raises(InputError) as error:
        Feature.parse(written)  # type: ignore[arg-type]
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_positions_of_a_map() -> None:
    a, responses = read("resnet18", "layer2.0.act1/input:12@[3,7]")
    assert a.shape == (3, 128, 12, 20)
    torch.testing.assert_close(responses, a[:, 12, 3, 7])
    for centre in ("layer2.0.act1/input:12@centre", "layer2.0.act1/input:12"):
        a, responses = read("resnet18", centre)
        torch.testing.assert_close(responses, a[:, 12, 6, 10])
    a, responses = read("resnet18", "layer2.0.act1/input:12@peak")
    torch.testing.assert_close(responses, a[:, 12].amax((1, 2)))
    a, responses = read("resnet18", "layer2.0.act1/input:12@mean")
    torch.testing.assert_close(responses, a[:, 12].mean((1, 2)))
    a, responses = read("resnet18", "layer4:3")
    torch.testing.assert_close(responses, a[:, 3, 1, 2])
    a, responses = read("resnet18", "fc:3")
    torch.testing.assert_close(responses, a[:, 3])


@pytest.mark.parametrize(
    ("name", "layer", "grid"),
    [
        ("convnext_tiny", "stages.1.blocks.0.mlp.act/input", (12, 8)),
        ("swin_tiny_patch4_window7_224", "layers.1.blocks.0", (28, 28)),
    ],
)
def test_positions_where_channels_are_last(name: str, layer: str, grid: tuple[int, int]) -> None:
    rows, columns = grid
    a, responses = read(name, f"{layer}:5@2,6")
    assert a.shape[1:3] == grid
    torch.testing.assert_close(responses, a[:, 2, 6, 5])
    a, responses = read(name, f"{layer}:5@centre")
    torch.testing.assert_close(responses, a[:, rows // 2, columns // 2, 5])
    a, responses = read(name, f"{layer}:5@peak")
    torch.testing.assert_close(responses, a[..., 5].amax((1, 2)))
    a, responses = read(name, f"{layer}:5@mean")
    torch.testing.assert_close(responses, a[..., 5].mean((1, 2)))


@pytest.mark.parametrize(
    ("name", "layer", "prefix", "columns"),
    [
        (VIT, "blocks.3.mlp.act/input", 1, 6),
        (VIT, "patch_embed", 0, 6),
        ("swin_tiny_patch4_window7_224", "layers.1.blocks.0.mlp.act/input", 0, 28),
    ],
)
def test_positions_of_tokens(name: str, layer: str, prefix: int, columns: int) -> None:
    a, responses = read(name, f"{layer}:5@0")
    torch.testing.assert_close(responses, a[:, 0, 5])
    a, responses = read(name, f"{layer}:5@2,4")
    torch.testing.assert_close(responses, a[:, prefix + 2 * columns + 4, 5])
    a, responses = read(name, f"{layer}:5")
    rows = (a.shape[1] - prefix) // columns
    torch.testing.assert_close(responses, a[:, prefix + rows // 2 * columns + columns // 2, 5])
    a, responses = read(name, f"{layer}:5@peak")
    torch.testing.assert_close(responses, a[..., 5].amax(1))
    a, responses = read(name, f"{layer}:5@mean")
    torch.testing.assert_close(responses, a[..., 5].mean(1))


def test_the_gradient_of_a_peak_lies_at_one_position() -> None:
    bound_feature = BoundFeature(
        Feature("layer2.0.act1/input", 12, position="peak"), backbone("resnet18")
    )
    flat = torch.ones(2, 128, 12, 20, requires_grad=True)
    (gradient,) = torch.autograd.grad(bound_feature(flat).sum(), flat)
    assert gradient.count_nonzero((1, 2, 3)).tolist() == [1, 1]
    assert gradient.sum() == 2


@pytest.mark.parametrize("position", ["@peak", "@mean", "@1,2", ""])
def test_a_direction_is_the_same_inline_and_from_every_kind_of_file(
    tmp_path: Path, position: str
) -> None:
    matrix = torch.randn(3, 512)
    np.save(tmp_path / "one.npy", matrix[1].numpy())
    np.save(tmp_path / "matrix.npy", matrix.double().numpy())
    torch.save(matrix[1], tmp_path / "one.pt")
    torch.save(matrix, tmp_path / "matrix.pt")
    inline = "[" + ",".join(map(str, matrix[1].tolist())) + "]"
    files = [f"{tmp_path}/{f}" for f in ("one.npy", "matrix.npy#1", "one.pt", "matrix.pt#1")]
    for vector in (inline, *files):
        torch.manual_seed(0)
        a, responses = read("resnet18", f"layer4:{vector}{position}")
        values = torch.einsum("nchw,c->nhw", a, matrix[1])
        expected = {
            "@peak": values.amax((1, 2)),
            "@mean": values.mean((1, 2)),
            "@1,2": values[:, 1, 2],
            "": values[:, 1, 2],
        }[position]
        torch.testing.assert_close(responses, expected)


def test_a_direction_along_an_axis_is_that_channel() -> None:
    axis = tuple(float(i == 7) for i in range(1000))
    torch.manual_seed(0)
    _, by_direction = read("resnet18", Feature("fc", direction=axis))
    torch.manual_seed(0)
    _, by_channel = read("resnet18", "fc:7")
    torch.testing.assert_close(by_direction, by_channel)


@pytest.mark.parametrize(
    ("feature", "told"),
    [
        (
            "layer3:256",
            (
                "feature 'layer3:256': channel 256 is out of range; layer 'layer3' of resnet18 "
                "has channels 0..255"
            ),
        ),
        ("layer3:-1", "channel -1 is out of range"),
        (
            "layer3:0@6,0",
            (
                "feature 'layer3:0@6,0': position 6,0 is outside the map of layer 'layer3', "
                "rows 0..5, columns 0..9"
            ),
        ),
        ("layer3:0@0,10", "position 0,10 is outside the map"),
        (
            "layer3:0@7",
            "a single index names a token, and layer 'layer3' is a map; give row,column",
        ),
        ("fc:0@centre", "feature 'fc:0@centre': layer 'fc' has no positions; leave @centre out"),
        ("fc:0@1,2", "layer 'fc' has no positions; leave @1,2 out"),
        ("fc:[1,2]", "the direction is [2]; layer 'fc' takes a vector of 1000 values, [1000]"),
        ("fc:no.npy", "feature 'fc:no.npy': no file 'no.npy'; a direction is a .npy or .pt file"),
        ("layer3/inptu:0", "'inptu' is no side of a module; write layer3/input or layer3/output"),
    ],
)
def test_a_feature_that_does_not_exist_is_refused(feature: str, told: str) -> None:
    with pytest.raises(InputError) as error:
        BoundFeature(Feature.parse(feature), backbone("resnet18"))
    assert told in str(error.value)


def test_a_token_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InputError, match=r"layer 'blocks\.1' has tokens 0\.\.24"):
        BoundFeature(Feature.parse("blocks.1:0@25"), backbone(VIT))
    with pytest.raises(InputError, match="position 4,0 is outside the map"):
        BoundFeature(Feature.parse("blocks.1:0@4,0"), backbone(VIT))


@pytest.mark.parametrize(
    ("file", "content", "row", "told"),
    [
        ("a.npy", np.zeros((3, 1000)), "#x", "holds [3, 1000], which has no row 'x'"),
        ("a.npy", np.zeros((3, 1000)), "#3", "holds [3, 1000], which has no row '3'"),
        ("a.npy", np.zeros((3, 1000)), "#-1", "which has no row '-1'"),
        ("a.npy", np.zeros(1000), "#0", "holds [1000], which has no row '0'"),
        ("a.npy", np.zeros((3, 1000)), "", "the direction is [3, 1000]; layer 'fc' takes"),
        ("a.npy", np.full(1000, np.nan), "", "not all values of the direction are finite"),
        ("a.npy", np.array([{"no": "numbers"}]), "", "holds no array of numbers"),
        ("a.npy", b"", "", "holds no array of numbers, or it is no .npy or .pt file"),
        ("a.txt", b"1 2 3", "", "holds no array of numbers, or it is no .npy or .pt file"),
        ("a.pt", {"weight": torch.zeros(3)}, "", "holds no array of numbers"),
        ("a.pt", Path("x"), "", "holds no array of numbers"),  # pickled: refused unread
        ("a.pt", b"1 2 3", "", "holds no array of numbers"),
    ],
)
def test_a_file_that_holds_no_such_direction_is_refused(
    tmp_path: Path, file: str, content: object, row: str, told: str
) -> None:
    path = tmp_path / file
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, np.ndarray):
        np.save(path, content, allow_pickle=True)
    else:
        torch.save(content, path)
    with pytest.raises(InputError) as error:
        BoundFeature(Feature("fc", direction=f"{path}{row}"), backbone("resnet18"))
    assert told in str(error.value)
    assert str(path) in str(error.value)


def test_the_output_side_may_be_named() -> None:
    assert Layer.parse("layer2.0.act1/output") == Layer("layer2.0.act1")
