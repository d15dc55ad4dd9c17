"""The judge: a network that names the shapes in a picture, and has no part in making it.

Its architecture, seed and task are not the vetoed shapes' backbone's, and it never saw a rendered
picture: a small DenseNet, registered with timm as `vetoed_shapes_judge`. benchmarks/train_judge.py
made its weights, docs/evidence.md says how good it is.
"""

from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.densenet import DenseNet
from torch import Tensor, nn

from mti_lightning.images.views import whole
from mti_lightning.vetoed_shapes.shapes import KINDS, PICTURE_SIZE

WEIGHTS = Path(__file__).with_name("judge.safetensors")

default_cfgs = generate_default_cfgs(
    {
        "vetoed_shapes_judge": {
            "file": str(WEIGHTS),
            "num_classes": len(KINDS),
            "label_names": KINDS,
            "input_size": (3, PICTURE_SIZE, PICTURE_SIZE),
            "mean": (0.5, 0.5, 0.5),
            "std": (0.25, 0.25, 0.25),
            "first_conv": "features.conv0",
            "classifier": "classifier",
            "license": "mit",
        }
    }
)


@register_model
def vetoed_shapes_judge(pretrained: bool = False, **kwargs: Any) -> DenseNet:
    """A DenseNet of 0.4M parameters that tells which shapes a picture holds."""
    shape = {"growth_rate": 24, "block_config": (2, 3, 4, 3), "stem_type": "deep"}
    model: DenseNet = build_model_with_cfg(
        DenseNet, "vetoed_shapes_judge", pretrained, **{**shape, **kwargs}
    )
    return model


@cache
def load_judge() -> nn.Module:
    """Return the trained judge in eval mode."""
    judge: nn.Module = timm.create_model("vetoed_shapes_judge", pretrained=True)
    return judge.eval().requires_grad_(False)


def judge_scores(pictures: Tensor) -> Tensor:
    """Return a logit for the presence of each of the eight shapes, [N, 8].

    Args:
        pictures: [N, 3, H, W] in 0..1.
    """
    pictures = whole(pictures.detach(), (PICTURE_SIZE, PICTURE_SIZE))
    judge = load_judge().to(pictures.device)
    return torch.cat([judge((part - 0.5) / 0.25) for part in torch.split(pictures, 64)])
