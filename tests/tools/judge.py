"""The judge: a network that names the shapes in a picture, and had no part in making it.

Its architecture, seed and task are not the backbone's, and it never saw a rendered picture: a small
DenseNet, trained on which shapes are present in pictures of the embedded world, apart and over each
other, that were disturbed at random, and then on adversarial ones, so that it goes by what a person
sees.

`python -m tests.tools.judge` trains it, in about 15 minutes on 4 cores.
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
from torch.utils.data import DataLoader, Dataset

from mti_lightning.vetoed_shapes import (
    KINDS,
    PICTURE_SIZE,
    Sample,
    VetoedShapes,
    VetoedShapesData,
)
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


class JudgeData(VetoedShapesData):
    """Every fourth training picture holds two shapes over each other."""

    def __init__(self, steps: int, seed: int) -> None:
        super().__init__(steps * 128, validation_size=1024, seed=seed)
        self.overlapping = VetoedShapes(len(self.train), seed, "train", "overlap")

    def train_dataloader(self) -> DataLoader[Sample]:
        apart = self.train

        class Mixed(Dataset[Sample]):
            def __len__(self) -> int:
                return len(apart)

            def __getitem__(_, index: int) -> Sample:  # noqa: N805  self is the data's
                return (apart if index % 4 else self.overlapping)[index]

        return self._loader(Mixed())


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
    """Train the judge as the backbone was, and put its weights beside this file."""
    for name, steps, part in (
        ("judge", 1800, {}),
        (
            "judge_hardened",
            800,
            {"adversarial": 0.03, "learning_rate": 2e-3, "start": str(WEIGHTS)},
        ),
    ):
        seed_everything(SEED)
        trainer = Trainer(
            max_epochs=1,
            logger=CSVLogger("tb_logs", name),
            enable_checkpointing=False,
            accelerator="cpu",
            precision="bf16-mixed",
            val_check_interval=steps // 4,
        )
        training = VetoedShapesClassifier("vetoed_shapes_judge", "present", disturbed=True, **part)
        trainer.fit(training, JudgeData(steps, SEED + (name != "judge")))
        (Path(trainer.log_dir or "") / "weights.safetensors").replace(WEIGHTS)


if __name__ == "__main__":
    main()
