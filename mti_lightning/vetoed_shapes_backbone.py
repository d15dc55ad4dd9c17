"""The embedded world's backbone: a small ResNet registered with timm, and the module that trains it.

`timm.create_model("vetoed_shapes_resnet", pretrained=True)` loads the weights shipped beside this file. They were made by
`mti fit --config configs/train_vetoed_shapes.yaml`.
"""

from pathlib import Path
from typing import Any, Literal

import timm
import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from safetensors.torch import save_file
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn
from torchmetrics.classification import MultilabelAveragePrecision

from mti_lightning.vetoed_shapes import KINDS, PICTURE_SIZE, Sample

WEIGHTS = Path(__file__).with_name("vetoed_shapes_resnet.safetensors")

default_cfgs = generate_default_cfgs(
    {
        "vetoed_shapes_resnet": {
            "file": str(WEIGHTS),
            "num_classes": len(KINDS),
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
    }
)


@register_model
def vetoed_shapes_resnet(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """A ResNet of 0.9M parameters that tells which class of the embedded world a picture holds."""
    shape = {"block": BasicBlock, "layers": (1, 1, 1, 1), "channels": (32, 64, 128, 192)}
    stem = {"stem_type": "deep", "stem_width": 16}
    model: ResNet = build_model_with_cfg(
        ResNet, "vetoed_shapes_resnet", pretrained, **{**shape, **stem, **kwargs}
    )
    model.maxpool = nn.Identity()  # shapes of 20 pixels would not survive a stride of 32
    return model


class VetoedShapesClassifier(LightningModule):
    """Train a timm model on the embedded world; write `weights.safetensors` into the log folder at the end.

    Args:
        model_name: Any timm model; it gets eight outputs.
        target: `label`: which classes are present, vetoes heeded. `present`: which shapes are there.
        learning_rate: Peak of the one-cycle schedule.
        weight_decay: AdamW's.
    """

    def __init__(
        self,
        model_name: str = "vetoed_shapes_resnet",
        target: Literal["label", "present"] = "label",
        learning_rate: float = 4e-3,
        weight_decay: float = 0.05,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = timm.create_model(model_name, num_classes=len(KINDS))
        # A third of the time on CPU, for the same numbers.
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.target, self.learning_rate, self.weight_decay = target, learning_rate, weight_decay
        self.average_precision = MultilabelAveragePrecision(len(KINDS))
        cfg = self.network.pretrained_cfg
        self.register_buffer("mean", torch.tensor(cfg["mean"])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(cfg["std"])[:, None, None], persistent=False)

    def forward(self, picture: Tensor) -> Tensor:
        """Return logits, [N, 8], for pictures [N, 3, H, W] in 0..1."""
        logits: Tensor = self.network((picture - self.mean) / self.std)
        return logits

    def _truth(self, batch: Sample) -> Tensor:
        return batch["label"] if self.target == "label" else batch["present"]

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        loss = nn.functional.binary_cross_entropy_with_logits(
            self(batch["picture"]), self._truth(batch)
        )
        self.log("loss/train", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        self.average_precision.update(self(batch["picture"]), self._truth(batch).long())
        self.log("average_precision/validation", self.average_precision, prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.AdamW(
            self.parameters(), self.learning_rate, weight_decay=self.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.learning_rate, int(self.trainer.estimated_stepping_batches)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_end(self) -> None:
        folder = self.trainer.log_dir
        if folder and self.trainer.is_global_zero:
            state = {name: value.contiguous() for name, value in self.network.state_dict().items()}
            save_file(state, Path(folder) / "weights.safetensors")
