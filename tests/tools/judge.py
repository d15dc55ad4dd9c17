"""The judge: a network that names the shapes in a picture, and had no part in making it.

Its architecture, seed and task are not the backbone's, and it never saw a rendered picture: a small
DenseNet, trained on which shapes are present in pictures of the embedded world that were made
greyer, flatter, inverted, noisy and blurred at random.

`python -m tests.tools.judge` trains it, in about 20 minutes on 4 cores.
"""

from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.densenet import DenseNet
from torch import Tensor, nn

from mti_lightning.spectrum import frequency_radius
from mti_lightning.vetoed_shapes import KINDS, PICTURE_SIZE, Sample, VetoedShapesData
from mti_lightning.vetoed_shapes_backbone import VetoedShapesClassifier
from mti_lightning.views import whole

WEIGHTS = Path(__file__).with_name("judge.safetensors")
SEED = 1

default_cfgs = generate_default_cfgs(
    {
        "vetoed_shapes_judge": {
            "file": str(WEIGHTS),
            "num_classes": len(KINDS),
            "input_size": (3, PICTURE_SIZE, PICTURE_SIZE),
            "mean": (0.5, 0.5, 0.5),
            "std": (0.25, 0.25, 0.25),
            "first_conv": "features.conv0",
            "classifier": "classifier",
        }
    }
)


@register_model
def vetoed_shapes_judge(pretrained: bool = False, **kwargs: Any) -> DenseNet:
    """A DenseNet of 0.5M parameters."""
    shape = {"growth_rate": 24, "block_config": (2, 3, 4, 3), "stem_type": "deep"}
    return build_model_with_cfg(DenseNet, "vetoed_shapes_judge", pretrained, **{**shape, **kwargs})


def disturb(pictures: Tensor) -> Tensor:
    """Return pictures [N, 3, H, W] in 0..1 as they might look elsewhere: half of them changed in
    each respect.
    """
    count, size = len(pictures), pictures.shape[-1]

    def uniform(low: float, high: float, neutral: float) -> Tensor:
        drawn = low + (high - low) * torch.rand(count, 1, 1, 1)
        return torch.where(torch.rand(count, 1, 1, 1) < 0.5, drawn, neutral)

    grey = pictures.mean(1, keepdim=True)
    pictures = grey + (pictures - grey) * uniform(0, 1.2, 1)
    mean = pictures.mean((1, 2, 3), keepdim=True)
    pictures = mean + (pictures - mean) * uniform(0.5, 1.5, 1)
    pictures = 0.5 + (pictures - 0.5) * (1 - 2 * (torch.rand(count, 1, 1, 1) < 0.25).float())
    noise = torch.fft.rfft2(torch.randn_like(pictures)) / frequency_radius(size, size) ** uniform(
        0, 1.2, 1
    )
    noise = torch.fft.irfft2(noise, s=(size, size))
    pictures = pictures + noise / noise.std((1, 2, 3), keepdim=True) * uniform(0, 0.15, 0)
    kernel = torch.tensor([1.0, 2.0, 1.0]) / 4
    blurred = nn.functional.conv2d(
        pictures, (kernel[:, None] * kernel).expand(3, 1, 3, 3), padding=1, groups=3
    )
    pictures = torch.where(torch.rand(count, 1, 1, 1) < 0.3, blurred, pictures)
    return pictures.clamp(0, 1)


class JudgeTraining(VetoedShapesClassifier):
    """Trains the judge on disturbed pictures."""

    def __init__(self) -> None:
        super().__init__("vetoed_shapes_judge", target="present")

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        return super().training_step({**batch, "picture": disturb(batch["picture"])}, batch_idx)


@cache
def load_judge() -> nn.Module:
    """Return the trained judge in eval mode."""
    return timm.create_model("vetoed_shapes_judge", pretrained=True).eval().requires_grad_(False)


def judge_scores(pictures: Tensor) -> Tensor:
    """Return for pictures [N, 3, H, W] in 0..1 a logit for the presence of each of the eight
    shapes, [N, 8].
    """
    pictures = whole(pictures.detach(), (PICTURE_SIZE, PICTURE_SIZE))
    return torch.cat([load_judge()((part - 0.5) / 0.25) for part in pictures.split(64)])


def main() -> None:
    """Train the judge and put its weights beside this file."""
    seed_everything(SEED)
    logger = CSVLogger("tb_logs", "judge")
    data = VetoedShapesData(train_size=2200 * 128, validation_size=1024, seed=SEED)
    trainer = Trainer(
        max_epochs=1,
        logger=logger,
        enable_checkpointing=False,
        accelerator="cpu",
        val_check_interval=550,
    )
    trainer.fit(JudgeTraining(), data)
    (Path(logger.log_dir) / "weights.safetensors").rename(WEIGHTS)


if __name__ == "__main__":
    main()
