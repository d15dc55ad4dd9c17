"""Let a network compute each picture the same, to the last bit, whatever is beside it on a CPU.

An optimisation makes a visible difference of the last bit within a hundred steps. Kernels depend on
the number of pictures: PyTorch leaves a small picture that is alone to its own convolution, oneDNN
takes other kernels where the threads share pictures out with a remainder, and matrix products go
through rows in blocks.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class BatchInvariance:
    """Fills the batch of a convolution or linear layer up with copies, where it makes a difference.

    Whether it does is found by trying, once for each kind of layer and size of its input: numbers
    of pictures that the threads share out evenly are taken to be all alike. Functions of single
    values are not looked at; the few that differ in the last bit where a tensor's size is no
    multiple of a processor's vector (sigmoids of odd numbers of channels) are left as they are.
    """

    def __init__(self) -> None:
        self._tried: dict[object, int] = {}

    @contextlib.contextmanager
    def __call__(self, network: nn.Module, count: int) -> Iterator[None]:
        """Fill up in a network's layers while it runs `count` pictures; leave no hook behind."""
        own: dict[nn.Module, int] = {}

        def fill(module: nn.Module, inputs: tuple[Any, ...]) -> Tensor | None:
            rows, *others = inputs or (None,)
            if others or rows is None or not (missing := self._missing(module, rows)):
                return None
            own[module] = len(rows)
            return torch.cat([rows, rows[-1:].detach().expand(missing, *rows.shape[1:])])

        def cut(module: nn.Module, _: object, output: Tensor) -> Tensor | None:
            return output[: own.pop(module)] if module in own else None

        handles = []
        for module in network.modules():
            if count % _unit(module):
                # Outside hooks that are there already, as those of attribution rules: what these
                # take from the graph of the layer has the copies' rows.
                handles.append(module.register_forward_pre_hook(fill, prepend=True))
                handles.append(module.register_forward_hook(cut))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _missing(self, module: nn.Module, rows: Tensor) -> int:
        """Return how many copies a layer needs beside rows [N, …] of its input."""
        most = -len(rows) % _unit(module)
        if not most or rows.ndim != (4 if isinstance(module, nn.Conv2d) else 2):
            return 0
        key = (repr(module), rows.shape, rows.dtype, torch.get_num_threads())
        if key not in self._tried:
            even = _compute(module, rows, len(rows) + most)
            for count in (0, 1, most):
                if count == most or _agree(_compute(module, rows, len(rows) + count), even):
                    self._tried[key] = count
                    break
        return self._tried[key]


def _unit(module: nn.Module) -> int:
    """Return a number of pictures (rows of a linear layer) whose multiples are computed alike."""
    if isinstance(module, nn.Conv2d):
        return max(2, torch.get_num_threads())
    return 8 if isinstance(module, nn.Linear) else 1


@torch.inference_mode(False)
@torch.enable_grad()
def _compute(module: nn.Module, like: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return a layer's output and gradient where its input is one row of noise, `count` times."""
    generator = torch.Generator().manual_seed(0)
    layout = torch.channels_last if like.ndim == 4 else torch.contiguous_format

    def noise(shape: torch.Size) -> Tensor:
        row = torch.randn(shape[1:], generator=generator, dtype=like.dtype)
        return row.expand(count, *row.shape).contiguous(memory_format=layout)

    rows = noise(like.shape).requires_grad_()
    output: Tensor = module.forward(rows)
    (gradient,) = torch.autograd.grad(output, rows, noise(output.shape).to(output.dtype))
    return output.detach(), gradient


def _agree(some: tuple[Tensor, Tensor], others: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(a, b[:1].expand_as(a)) for a, b in zip(some, others, strict=True))
