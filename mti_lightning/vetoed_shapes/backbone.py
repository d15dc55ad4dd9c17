"""The vetoed shapes' backbones, small ResNets registered with timm.

`timm.create_model("vetoed_shapes_resnet", pretrained=True)` loads the weights shipped beside this
file; they were made by `make train`. So does "vetoed_shapes_narrow", whose last stage has fewer
channels than the world has shapes: there features have to share dimensions.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

from mti_lightning.vetoed_shapes.shapes import KINDS, PICTURE_SIZE

WEIGHTS = {
    f"vetoed_shapes_{name}": Path(__file__).with_name(f"{name}.safetensors")
    for name in ("resnet", "narrow")
}

default_cfgs = generate_default_cfgs(
    {
        name: {
            "file": str(file),
            "num_classes": len(KINDS),
            "label_names": KINDS,
            "input_size": (3, PICTURE_SIZE, PICTURE_SIZE),
            "pool_size": (6, 6),
            "mean": (0.5, 0.5, 0.5),
            "std": (0.25, 0.25, 0.25),
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "first_conv": "conv1.0",
            "classifier": "fc",
            "license": "mit",
        }
        for name, file in WEIGHTS.items()
    }
)


def _build(name: str, last: int, pretrained: bool, arguments: Mapping[str, Any]) -> ResNet:
    shape = {"block": BasicBlock, "layers": (1, 1, 1, 1), "channels": (32, 64, 128, last)}
    stem = {"stem_type": "deep", "stem_width": 16}
    model: ResNet = build_model_with_cfg(ResNet, name, pretrained, **{**shape, **stem, **arguments})
    # Shapes of 20 pixels would not survive a stride of 32.
    model.maxpool = nn.Identity()  # type: ignore[assignment]
    return model


@register_model
def vetoed_shapes_resnet(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """A ResNet of 0.9M parameters that tells which class of the vetoed shapes a picture holds."""
    return _build("vetoed_shapes_resnet", 192, pretrained, kwargs)


@register_model
def vetoed_shapes_narrow(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """The same with 6 channels for the 8 shapes in its last stage; the others are the same."""
    return _build("vetoed_shapes_narrow", 6, pretrained, kwargs)
