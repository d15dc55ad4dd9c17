"""Saliency: how much steps move each pixel, and what is wrong where one moves none."""

from collections.abc import Callable, Sequence

import torch
from lightning import Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from mti_lightning.errors import RenderError
from mti_lightning.images.boxes import Box, cut
from mti_lightning.objectives.chunk import ImageChunk


def note_moves(
    pictures: Tensor,
    chunk: ImageChunk,
    box: Box | None,
    features: Sequence[str],
    scale: Callable[[], float],
) -> None:
    """Add to a chunk how much each pixel is moved, when the loss's gradient comes to the pictures.

    Args:
        pictures: The chunk's, or a box of each, [N, 3, h, w] in 0..1, before the step.
        chunk: The images.
        box: The box; None for the whole.
        features: What those are called that the images are made for, by their places.
        scale: Tells by what the gradient is too large, as in `16-mixed`. Where that is too much for
            16 bits, the step is left out and nothing is added.

    Raises:
        RenderError: In the backward pass on a CPU, as `check_moves` does, which is to be asked at
            times elsewhere.
    """
    shown = pictures.detach()  # else they held themselves

    def add(gradient: Tensor) -> None:
        moves = gradient.abs().mean(1) / scale()  # [N, h, w]
        if scale() > 1 and shown.isfinite().all() and not moves.isfinite().all():
            return
        strength = moves.flatten(1).amax(1)  # [N]
        sound = strength.isfinite() & (strength > 0)
        on_cpu = shown.device.type == "cpu"  # elsewhere to look at it is to wait for the step
        if not (on_cpu and sound.all()):
            dead = (strength == 0) & shown.flatten(1).isfinite().all(1)
            faults = torch.where(sound, 0, torch.where(dead, 1, 2))
            chunk.faults = faults if chunk.faults is None else torch.maximum(chunk.faults, faults)
        if on_cpu:
            check_moves(chunk, features)
        cut(chunk.moved, box or (0, 0, *chunk.grid)).add_(moves)

    pictures.register_hook(add)  # type: ignore[no-untyped-call]


def check_moves(chunk: ImageChunk, features: Sequence[str]) -> None:
    """Make sure that the steps so far moved a chunk's images.

    Args:
        chunk: The images.
        features: As of `note_moves`.

    Raises:
        RenderError: If a step did not move one, or picture or gradient were not finite.
    """
    faults = [] if chunk.faults is None else chunk.faults.tolist()
    chunk.faults = None
    for entry, fault in zip(chunk.entries, faults, strict=False):
        if fault:
            what = "nothing moves" if fault == 1 else "picture or gradient is not finite for"
            raise RenderError(
                f"{what} image {entry.id} (feature {features[entry.feature]}); try a "
                "feature before its activation function, "
                "a lower learning rate, another attribution layer or --trainer.precision 32"
            )


def loss_scale(trainer: Trainer) -> float:
    """Return by what a trainer makes gradients larger, to fit them into 16 bits."""
    plugin = trainer.precision_plugin
    if isinstance(plugin, MixedPrecision) and plugin.scaler is not None:
        return float(plugin.scaler.get_scale())
    return 1.0
