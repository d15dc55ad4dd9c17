"""The image bank: what is optimised, in chunks, which several processes may share out."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from mti_lightning.attribution.signs import Sign
from mti_lightning.errors import InputError
from mti_lightning.features.receptive_field import Window
from mti_lightning.images.boxes import Box, cut
from mti_lightning.images.parameters import ImageParameters
from mti_lightning.images.views import whole

Size = tuple[int, int]  # height and width


def file_name(text: str) -> str:
    """Return `text` with what file systems do not take everywhere replaced."""
    return re.sub(r"[^\w.-]+", "-", text)


@dataclass(frozen=True)
class Entry:
    """One image of the bank: what it is made for.

    `key` names its random stream. It is made of what the image is, never of where it stands in the
    bank.
    """

    id: str
    key: int
    feature: int  # index into the objective's features
    objective: str
    seed: int
    sign: Sign | None = None
    source: int | None = None  # index into the objective's sources


class Step(NamedTuple):
    """One step of one chunk."""

    chunk: int | None  # None: to wait for processes that have a chunk more
    step: int  # within the epoch


class Steps:
    """One process's steps of an epoch, chunk after chunk; it can be stopped anywhere and continued.

    Of P processes, process p has chunk p, p + P, p + 2P, ...
    """

    def __init__(self, chunks: int, steps: int, process: int = 0, processes: int = 1) -> None:
        self.chunks, self.steps, self.done = chunks, steps, 0
        self.process, self.processes = process, processes

    def __len__(self) -> int:
        return -(-self.chunks // self.processes) * self.steps  # Lightning keeps them in step

    def __iter__(self) -> Iterator[Step]:
        for index in range(self.done % len(self), len(self)):
            self.done = index + 1
            turn, step = divmod(index, self.steps)
            chunk = self.process + turn * self.processes
            yield Step(chunk if chunk < self.chunks else None, step)

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done % len(self), "processes": self.processes}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        if state["done"] and state["processes"] != self.processes:
            raise InputError(
                f"the checkpoint is from within an epoch of {state['processes']} processes, which "
                f"{self.processes} cannot continue; give as many --trainer.devices, or a "
                "checkpoint of an epoch's end"
            )
        self.done = state["done"]


class ImageChunk(nn.Module):
    """As many images of the bank as are optimised together.

    A chunk has parameters of its own: a step on one chunk leaves the gradients of the others None,
    and an optimizer with momentum then leaves them alone.
    """

    moved: Tensor  # [N, h, w], Σ over steps of |∂loss/∂pixel|, averaged over channels

    def __init__(
        self,
        entries: Sequence[Entry],
        image: ImageParameters,
        canvas: Size,
        grid: Size,
        sources: Tensor | None,
        window: Window | None = None,
    ) -> None:
        super().__init__()
        self.entries, self.image = tuple(entries), image
        self.canvas, self.grid = canvas, grid  # of finished pictures, and of those optimised
        self.window = window  # the part of a view that all its features depend on
        trained, fixed = image.start([entry.key for entry in entries], grid, sources)
        self.trained = nn.ParameterDict(trained)
        self._fixed = tuple(fixed)
        for name, value in fixed.items():
            self.register_buffer(name, value, persistent=False)
        self.register_buffer("moved", torch.zeros(len(entries), *grid))

    def forward(self, size: Size | None = None) -> Tensor:
        """Return the pictures, [N, 3, H, W] in 0..1, of their canvas or brought to a size."""
        if size is None:
            return self._decode(self.canvas, None)
        enough = all(own >= wanted for own, wanted in zip(self.grid, size, strict=True))
        return whole(self._decode(self.grid if enough else self.canvas, None), size)

    def optimised(self, box: Box | None = None) -> Tensor:
        """Return the pictures as they are optimised, or a box of each, [N, 3, h, w] in 0..1."""
        return self._decode(self.grid, box)

    def seen(self, pictures: Tensor) -> Tensor:
        """Return what of pictures of the backbone's input size the window covers."""
        return pictures if self.window is None else cut(pictures, self.window.box)

    def saliency(self, size: Size | None = None) -> Tensor:
        """Return how much each pixel was moved, [N, H, W], of the pictures of that size."""
        return whole(self.moved[:, None], size or self.canvas)[:, 0]

    def _decode(self, size: Size, box: Box | None) -> Tensor:
        fixed = {name: self.get_buffer(name) for name in self._fixed}
        with torch.autocast(self.moved.device.type, enabled=False):
            return self.image.decode({**dict(self.trained.items()), **fixed}, size, box)


@final
class ImageBankStrategy(DDPStrategy):
    """Several processes, each of which optimises some chunks of the bank.

    An image is one process's alone, so there are no gradients to average as in plain DDP. All hold
    the whole bank, which `share` brings up to date. `mti fit` takes this strategy of itself.
    """

    def configure_ddp(self) -> None:
        """Leave the objective as it is."""

    def lightning_module_state_dict(self) -> dict[str, Any]:
        objective: Any = self.lightning_module
        self.share(objective.chunks, self.optimizers[0])
        return super().lightning_module_state_dict()

    def share(self, chunks: Sequence[ImageChunk], optimizer: Optimizer) -> None:
        """Give every process what the others made of their chunks, the optimizer's state included.

        Then a checkpoint of one process is that of all, and any number of them can continue it.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        place = {id(parameter): index for index, parameter in enumerate(parameters)}
        state = optimizer.state_dict()
        for index, chunk in enumerate(chunks):
            places = [place[id(parameter)] for parameter in chunk.parameters()]
            moments = {p: state["state"][p] for p in places if p in state["state"]}
            made = move_data_to_device((chunk.state_dict(), moments), torch.device("cpu"))
            images, moments = self.broadcast(made, index % self.world_size)
            chunk.load_state_dict(images)
            state["state"] |= moments
        optimizer.load_state_dict(state)
