"""Whose turn it is: the steps of an epoch, and how several processes share them out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.strategies import DDPStrategy
from torch.optim import Optimizer

from mti_lightning.errors import InputError
from mti_lightning.objectives.chunk import ImageChunk


class Step(NamedTuple):
    """One step of one chunk."""

    chunk: int | None  # None: to wait for processes that have a chunk more
    step: int  # within the epoch


@final
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


@final
@dataclass(frozen=True)
class Turn:
    """A chunk that is optimised now, and what its images shall become."""

    chunk: ImageChunk
    target: Any


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
