"""What was measured of a batch, on its way from the device, while that measures the next one."""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from mti_lightning.data.base import Loaded
from mti_lightning.sweep.measuring import Measured


@final
class Fetch:
    """Copies of what was measured, which on NVIDIA's GPUs are made without waiting for it.

    Args:
        batch: What it was measured of.
        measured: In one way or several, on whatever device.
    """

    def __init__(self, batch: Loaded, measured: Sequence[Measured]) -> None:
        self.batch = batch
        self._event: torch.cuda.Event | None = None
        cuda = batch.pictures.device.type == "cuda"

        def copied(found: dict[Any, Tensor]) -> dict[Any, Tensor]:
            return {of: values.to("cpu", non_blocking=cuda) for of, values in found.items()}

        self._measured = [(copied(numbers), copied(maps)) for numbers, maps in measured]
        if cuda:
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def wait(self) -> list[Measured]:
        """Return the copies, once they are there."""
        if self._event is not None:
            self._event.synchronize()
        return self._measured

    @property
    def is_under_way(self) -> bool:
        """Say whether the device may still be at it."""
        return self._event is not None
