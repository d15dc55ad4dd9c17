"""Small networks of every family, and what PyTorch alone makes of them."""

import copy

import torch
from torch import Tensor, nn

from mti_lightning.backbone import Backbone

# Small pictures where the family allows them; None is the model's own size.
FAMILIES: dict[str, tuple[int, int] | None] = {
    "resnet18": (96, 160),
    "resnet50": (64, 64),
    "convnext_tiny": (64, 96),
    "efficientnet_b0": (96, 64),
    "vit_tiny_patch16_224": (64, 96),
    "mobilenetv3_small_100": (96, 64),
    "regnety_002": (96, 64),
    "densenet121": (96, 64),
    "swin_tiny_patch4_window7_224": None,
}


def liven(network: nn.Module) -> None:
    """Draw the parameters that start as 0 or 1, so that no branch is switched off."""
    generator = torch.Generator().manual_seed(1)
    values = (*network.named_parameters(), *network.named_buffers())
    for name, value in values:
        if value.ndim == 1 and value.is_floating_point():
            scale = "weight" in name or "gamma" in name or "var" in name
            drawn = torch.rand(value.shape, generator=generator)
            value.data.copy_(drawn + 0.5 if scale else 0.2 * drawn - 0.1)


def plain(backbone: Backbone) -> nn.Module:
    """Return a copy of the network in which nothing works in place."""
    network = copy.deepcopy(backbone.network)
    for module in network.modules():
        if getattr(module, "inplace", False):
            module.inplace = False
    return network


def normalised(network: nn.Module, pictures: Tensor) -> Tensor:
    mean, std = (
        torch.tensor(network.pretrained_cfg[key]).view(3, 1, 1).to(pictures)
        for key in ("mean", "std")
    )
    return (pictures - mean) / std


def hooks(network: nn.Module) -> list[int]:
    return [
        hook
        for module in network.modules()
        for hook in (*module._forward_hooks, *module._forward_pre_hooks)
    ]
