"""The vetoed shapes' backbones, small ResNets registered with timm, and what trains them.

`timm.create_model("vetoed_shapes_resnet", pretrained=True)` loads the weights shipped beside this
file; they were made by `make train`. So does "vetoed_shapes_narrow", whose last stage has fewer
channels than the world has shapes: there features have to share dimensions.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from safetensors.torch import load_file, save_file
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn
from torchmetrics.classification import MultilabelAveragePrecision

from mti_lightning.images.spectrum import frequency_radius
from mti_lightning.vetoed_shapes.world import KINDS, PICTURE_SIZE, Sample

WEIGHTS = {
    f"vetoed_shapes_{name}": Path(__file__).with_name(f"{name}.safetensors")
    for name in ("resnet", "narrow")
}

default_cfgs = generate_default_cfgs(
    {
        name: {
            "file": str(file),
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


def disturb(pictures: Tensor) -> Tensor:
    """Return pictures [N, 3, H, W] in 0..1 as they might look elsewhere.

    In each respect half of them are changed: greyer or more colourful, flatter or harsher, noisy
    (white to 1/f), inverted, blurred.
    """
    count, size = len(pictures), pictures.shape[-1]

    def draw(low: float, high: float, neutral: float) -> Tensor:
        drawn = low + (high - low) * torch.rand(count, 1, 1, 1, device=pictures.device)
        return torch.where(torch.rand_like(drawn) < 0.5, drawn, neutral)

    grey = pictures.mean(1, keepdim=True)
    pictures = grey + (pictures - grey) * draw(0, 1.2, 1)
    mean = pictures.mean((1, 2, 3), keepdim=True)
    pictures = mean + (pictures - mean) * draw(0.5, 1.5, 1)
    pictures = 0.5 + (pictures - 0.5) * torch.where(draw(0, 1, 1) < 0.5, -1.0, 1.0)
    slope = frequency_radius(size, size).to(pictures.device) ** draw(0, 1.2, 1)
    noise = torch.fft.irfft2(torch.fft.rfft2(torch.randn_like(pictures)) / slope, s=(size, size))
    pictures = pictures + noise / noise.std((1, 2, 3), keepdim=True) * draw(0, 0.15, 0)
    kernel = torch.tensor([1.0, 2.0, 1.0], device=pictures.device) / 4
    kernel = (kernel[:, None] * kernel).expand(3, 1, 3, 3)
    blurred = nn.functional.conv2d(pictures, kernel, padding=1, groups=3)
    return torch.where(draw(0, 1, 1) < 0.5, blurred, pictures).clamp(0, 1)


class VetoedShapesClassifier(LightningModule):
    """Train a timm model on the vetoed shapes.

    At the end `weights.safetensors` is written into the log folder.

    Args:
        model_name: Any timm model; it gets eight outputs.
        target: `label`: which classes are present, vetoes heeded. `present`: which shapes are
            there.
        disturbed: Train on pictures that were disturbed at random; validation sees them as they
            are.
        adversarial: Size of one adversarial step before each training step (Wong et al. 2020), in
            the unit of pictures; 0 for none. The gradients of a network trained so follow what a
            person sees, and what is optimised against it can be recognised.
        start: File of weights to start from, or the name of a backbone whose weights are shipped.
        trained: Modules that are trained, such as `layer4`; all by default. The others are those of
            `start`, and stay as they are. All by default.
        learning_rate: Peak of the one-cycle schedule.
        weight_decay: AdamW's.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model_name: str = "vetoed_shapes_resnet",
        target: Literal["label", "present"] = "label",
        disturbed: bool = False,
        adversarial: float = 0.0,
        start: str | None = None,
        trained: Sequence[str] = (),
        learning_rate: float = 4e-3,
        weight_decay: float = 0.05,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        network: Any = timm.create_model(model_name, num_classes=len(KINDS))
        if start is not None:
            state = load_file(WEIGHTS.get(start, start))
            if trained:
                own = network.state_dict()
                state |= {name: own[name] for name in own if name.startswith(tuple(trained))}
            network.load_state_dict(state)
        # Normalisation, too, stays as it is in what is not trained.
        self._fixed = [m for n, m in network.named_children() if trained and n not in trained]
        for module in self._fixed:
            module.requires_grad_(False)
        # A third of the time on CPU, for the same numbers.
        self.network: nn.Module = network.to(memory_format=torch.channels_last)
        self.target, self.disturbed, self.adversarial = target, disturbed, adversarial
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.average_precision = MultilabelAveragePrecision(len(KINDS))
        cfg = network.pretrained_cfg
        self.register_buffer("mean", torch.tensor(cfg["mean"])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(cfg["std"])[:, None, None], persistent=False)

    def forward(self, picture: Tensor) -> Tensor:
        """Return logits, [N, 8], for pictures [N, 3, H, W] in 0..1."""
        logits: Tensor = self.network((picture - self.mean) / self.std)
        return logits

    def on_train_epoch_start(self) -> None:
        for module in self._fixed:
            module.eval()

    def _truth(self, batch: Sample) -> Tensor:
        return batch["label"] if self.target == "label" else batch["present"]

    def _loss(self, pictures: Tensor, truth: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(self(pictures), truth)

    def _attack(self, pictures: Tensor, truth: Tensor) -> Tensor:
        """Move each picture one step up the loss, by the same distance, from a random start."""
        start = pictures + self.adversarial * (2 * torch.rand_like(pictures) - 1)
        start.requires_grad_()
        (gradient,) = torch.autograd.grad(self._loss(start, truth), start)
        moved = start.detach() + 1.25 * self.adversarial * gradient.sign()
        return pictures + (moved - pictures).clamp(-self.adversarial, self.adversarial)

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        pictures, truth = batch["picture"], self._truth(batch)
        if self.disturbed:
            pictures = disturb(pictures)
        if self.adversarial:
            pictures = self._attack(pictures, truth)
        loss = self._loss(pictures, truth)
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
