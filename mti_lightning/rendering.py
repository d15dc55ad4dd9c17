"""Python use: from an objective to pictures in one call."""

from dataclasses import dataclass
from typing import Any

import torch
from lightning import Trainer
from PIL import Image

from mti_lightning.compose import opacity, to_image
from mti_lightning.data.base import PictureData
from mti_lightning.objectives.base import Objective
from mti_lightning.objectives.chunk import Entry
from mti_lightning.objectives.metrics import warn_of_failures


@dataclass(frozen=True)
class Rendering:
    """One finished image.

    Attributes:
        entry: What it was made for.
        image: The picture, RGBA: opaque where the objective looked.
        measures: Response, excitation, inhibition, tension, balance and cosine of the clean
            picture, without views.
    """

    entry: Entry
    image: Image.Image
    measures: dict[str, float]


def render(
    objective: Objective, data: PictureData | None = None, epochs: int = 5, **trainer: Any
) -> list[Rendering]:
    """Optimise an objective's images and return them, without writing anything.

    The objective stays on the device that it ran on.

    Args:
        objective: `MaximallyTense`, `PositiveInversion`, `NegativeInversion` or `SignedInversion`.
        data: Source pictures, where the objective needs them.
        epochs: Epochs of the objective's `steps_per_epoch`.
        **trainer: Further arguments of Lightning's Trainer, such as `accelerator`.

    Raises:
        InputError: If source pictures are needed and there are none.
        RenderError: If an image cannot be optimised.
    """
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    run = Trainer(max_epochs=epochs, **{**quiet, **trainer})
    run.fit(objective, datamodule=data)
    objective.to(run.strategy.root_device)  # Lightning has taken it to the CPU
    measures = objective.measure()
    warn_of_failures(objective.entries, measures["cosine"])
    images = []
    with torch.no_grad():
        for chunk in objective.chunks:
            for picture, alpha in zip(chunk(), opacity(chunk.saliency()), strict=True):
                images.append(to_image(picture, alpha))
    return [
        Rendering(entry, image, {name: float(values[index]) for name, values in measures.items()})
        for index, (entry, image) in enumerate(zip(objective.entries, images, strict=True))
    ]
