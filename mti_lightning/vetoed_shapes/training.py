"""Training a network on the vetoed shapes: its data, and a classifier for any timm model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MultilabelAveragePrecision

from mti_lightning.errors import check_range
from mti_lightning.files import replacing
from mti_lightning.images.spectrum import frequency_radius
from mti_lightning.vetoed_shapes.backbone import WEIGHTS
from mti_lightning.vetoed_shapes.shapes import KINDS
from mti_lightning.vetoed_shapes.world import Sample, VetoedShapes


class VetoedShapesData(LightningDataModule):
    """The vetoed shapes as training and validation data.

    Args:
        train_size: Pictures to train on.
        validation_size: Pictures to validate on.
        seed: Seed of the world.
        batch_size: Pictures per batch.
        num_workers: Processes that draw pictures; 0 draws them in the main one.
    """

    def __init__(
        self,
        train_size: int = 115_200,
        validation_size: int = 2048,
        seed: int = 0,
        batch_size: int = 128,
        num_workers: int = 2,
    ) -> None:
        super().__init__()
        check_range(1, batch_size=batch_size)
        check_range(0, num_workers=num_workers)
        self.train = VetoedShapes(train_size, seed, "train")
        self.validation = VetoedShapes(validation_size, seed, "validation")
        self.batch_size, self.num_workers = batch_size, num_workers

    def _loader(self, dataset: Dataset[Sample]) -> DataLoader[Sample]:
        # Pictures are independent draws, so the order carries nothing and is not shuffled.
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def train_dataloader(self) -> DataLoader[Sample]:
        return self._loader(self.train)

    def val_dataloader(self) -> DataLoader[Sample]:
        return self._loader(self.validation)


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
            with replacing(Path(folder) / "weights.safetensors", lasting=True) as part:
                save_file(state, part)
