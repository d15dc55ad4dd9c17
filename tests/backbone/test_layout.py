"""How activations lie is found, and layers are named."""

import pytest
import torch

from mti_lightning.backbone import ActivationLayout, Backbone, Layer
from mti_lightning.backbone.layers import usable_layers
from mti_lightning.backbone.layout import infer_layout
from mti_lightning.errors import InputError
from tests.backbone.networks import FAMILIES, liven


@pytest.mark.parametrize(
    ("name", "layer", "site"),
    [
        ("resnet18", "layer3", ActivationLayout((256, 6, 10), 1, (6, 10))),
        ("resnet18", "global_pool", ActivationLayout((512,), -1, None)),
        ("efficientnet_b0", "blocks.3.0.se.conv_reduce", ActivationLayout((10, 1, 1), 1, (1, 1))),
        ("efficientnet_b0", "blocks.3.0.bn2.act/input", ActivationLayout((240, 6, 4), 1, (6, 4))),
        ("convnext_tiny", "stages.1.blocks.0", ActivationLayout((192, 8, 12), 1, (8, 12))),
        (
            "convnext_tiny",
            "stages.1.blocks.0.mlp.act/input",
            ActivationLayout((8, 12, 768), -1, (8, 12)),
        ),
        ("vit_tiny_patch16_224", "blocks.3", ActivationLayout((25, 192), -1, (4, 6), 1)),
        ("vit_tiny_patch16_224", "patch_embed", ActivationLayout((24, 192), -1, (4, 6), 0)),
        ("vit_tiny_patch16_224", "head", ActivationLayout((1000,), -1, None)),
        (
            "swin_tiny_patch4_window7_224",
            "layers.2.blocks.0",
            ActivationLayout((14, 14, 384), -1, (14, 14)),
        ),
        (
            "swin_tiny_patch4_window7_224",
            "layers.2.blocks.0.mlp.act/input",
            ActivationLayout((196, 1536), -1, (14, 14)),
        ),
    ],
)
def test_how_activations_lie(name: str, layer: str, site: ActivationLayout) -> None:
    size = {"convnext_tiny": (64, 96)}.get(name, FAMILIES[name])
    backbone = Backbone(name, weights="random", input_size=size)
    assert backbone.layout(Layer.parse(layer)) == site
    channels = {1: site.shape[0], -1: site.shape[-1]}[site.channel_dim]
    assert site.channels == channels
    assert len(site.position_dims) == len(site.shape) - 1


@pytest.mark.parametrize(
    ("name", "size", "layer", "site"),
    [
        # As many rows as columns and channels.
        (
            "convnext_tiny",
            (384, 384),
            "stages.0.blocks.0.norm",
            ActivationLayout((96, 96, 96), -1, (96, 96)),
        ),
        ("test_convnext", (96, 96), "stages.0", ActivationLayout((24, 24, 24), 1, (24, 24))),
        (
            "test_convnext",
            (96, 96),
            "stages.0.blocks.0.norm",
            ActivationLayout((24, 24, 24), -1, (24, 24)),
        ),
        (
            "test_convnext",
            (96, 96),
            "stages.0.blocks.0.mlp.drop2",
            ActivationLayout((24, 24, 24), -1, (24, 24)),
        ),
        # A layer norm of maps, which is a subclass of one of tokens.
        (
            "vitamin_small_224",
            None,
            "patch_embed.backbone.stem.norm1",
            ActivationLayout((64, 112, 112), 1, (112, 112)),
        ),
        # As many channels as a pooled map could have rows.
        ("tinynet_e", None, "blocks.1.0.se.act1", ActivationLayout((2, 1, 1), 1, (1, 1))),
        # Nothing moves: every position sees the whole picture alike, or a branch is switched off.
        ("test_vit", None, "blocks.5.attn.proj", ActivationLayout((101, 64), -1, (10, 10), 1)),
        ("test_resnet", None, "layer3.0.bn3", ActivationLayout((192, 10, 10), 1, (10, 10))),
    ],
)
def test_channels_are_told_from_rows_of_the_same_number(
    name: str, size: tuple[int, int] | None, layer: str, site: ActivationLayout
) -> None:
    backbone = Backbone(name, "random", input_size=size)
    assert backbone.layout(Layer(layer)) == site


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("test_vit", "blocks.0.attn.q_norm"),  # heads, tokens, values of a query
        ("test_vit4", "blocks.0.attn.k_norm"),
        ("swin_tiny_patch4_window7_224", "layers.3.blocks.0.attn.softmax"),  # of tokens by tokens
        ("mixer_s32_224", "blocks.0.mlp_tokens.fc2"),  # channels, tokens
        ("mixer_s32_224", "blocks.0.mlp_tokens.fc1"),  # channels, mixtures of tokens
    ],
)
def test_what_is_no_map_of_channels_is_refused_and_not_listed(name: str, layer: str) -> None:
    backbone = Backbone(name, "random")
    with pytest.raises(InputError, match="cannot be told which are its channels"):
        backbone.layout(Layer(layer))
    assert layer not in {str(one.layer) for one in usable_layers(backbone)}


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("deit_tiny_distilled_patch16_224", ["head", "head_dist"]),
        ("crossvit_9_240", ["head.0", "head.1"]),
        ("volo_d1_224", ["head"]),
        ("levit_128s", ["head.linear", "head_dist.linear"]),
    ],
)
def test_a_part_of_the_networks_output_is_not_taken_for_its_classes(
    name: str, layers: list[str]
) -> None:
    backbone = Backbone(name, "random")
    liven(backbone.network)
    for layer in layers:
        with pytest.raises(InputError, match="its channels are not the network's classes"):
            backbone.layout(Layer(layer))


@pytest.mark.parametrize("shape", [(196, 196, 4), (4, 196, 196)])
def test_heads_of_tokens_by_tokens_are_no_map(shape: tuple[int, int, int]) -> None:
    """As in CaiT, whose linear layers mix the heads of an attention matrix."""
    last = shape[-1] == 4
    assert infer_layout(shape, (224, 224), None, last, sequences={14, 15}) is not None
    assert infer_layout(shape, (224, 224), None, last, sequences={196}) is None


def test_registers_lie_outside_the_grid() -> None:
    backbone = Backbone("test_vit3", weights="random")
    prefix = backbone.network.num_prefix_tokens
    site = backbone.layout(Layer("blocks.1"))
    assert site.prefix_tokens == prefix
    assert site.grid is not None
    assert site.shape[0] == prefix + site.grid[0] * site.grid[1]


def test_the_string_form_of_a_layer_reads_back() -> None:
    for text in ("layer3", "layer3.0.act2/input"):
        assert str(Layer.parse(text)) == text
    assert str(Layer.parse("layer3/output")) == "layer3"


@pytest.mark.parametrize(
    "layout",
    [
        ActivationLayout((5, 2, 3), 1, (2, 3)),
        ActivationLayout((2, 3, 5), -1, (2, 3)),
        ActivationLayout((6, 5), -1, (2, 3)),
        ActivationLayout((5,), -1, None),
    ],
)
def test_channels_and_positions_are_found_in_every_layout(layout: ActivationLayout) -> None:
    values = torch.rand(4, *layout.shape)  # [N, ...]
    last = values if layout.channel_dim == -1 else values.permute(0, 2, 3, 1)
    flat = last.reshape(4, -1, 5)  # [N, P, C]
    per_channel = torch.rand(5)
    scaled = (values * layout.per_channel(per_channel)).movedim(layout.channel_dim, -1)
    assert torch.equal(scaled, last * per_channel)
    # Whatever stands before the layer's own dimensions, such as features.
    stacked = torch.stack([values, 2 * values])
    for pooled, expected in (
        (layout.pool_mean, flat.mean(1)),
        (layout.pool_sum, flat.sum(1)),
    ):
        torch.testing.assert_close(pooled(values), expected)
        torch.testing.assert_close(pooled(stacked), torch.stack([expected, 2 * expected]))
    if len(layout.shape) == 1:
        assert torch.equal(layout.at(values, None), values)
    else:
        assert torch.equal(layout.at(values, "mean"), flat)
        place = (4,) if layout.is_tokens else (1, 1)  # the fifth of six positions
        assert torch.equal(layout.at(values, place), flat[:, 4])
