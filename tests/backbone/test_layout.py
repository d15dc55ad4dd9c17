"""How activations lie is found, and layers are named."""

import pytest
import torch

from mti_lightning.backbone import ActivationLayout, Backbone, Layer
from tests.backbone.networks import FAMILIES


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
