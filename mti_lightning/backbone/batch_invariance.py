"""Make a network compute a picture the same, to the last bit, whatever else is in its batch.

An optimisation turns a difference in the last bit into a visible one within a hundred steps. On a
CPU results depend on the number of pictures: PyTorch has a convolution of its own for a small
picture that is alone, and one for single pixels of fewer than 16, oneDNN takes another kernel where
pictures cannot be shared out equally among the threads, and matrix products go through rows in
blocks.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn


class BatchInvariance:
    """Pads the batches of convolutions and linear layers with copies, where it makes a difference.

    Convolutions of single pixels have one library for batches of all sizes.

    Whether it does is found by trying, once for each kind of layer and input size. Batches of a
    multiple of `_multiple_of` are taken to agree with each other. Elementwise functions are left as
    they are; a few of them differ in the last bit where a tensor's size is no multiple of the
    processor's vector (sigmoids of odd numbers of channels).
    """

    def __init__(self) -> None:
        self._tried: dict[object, int] = {}
        self._kinds: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()

    @contextlib.contextmanager
    def __call__(self, network: nn.Module, count: int) -> Iterator[None]:
        """Pad the batches of a network's layers while it runs `count` pictures."""
        own: dict[nn.Module, int] = {}

        def pad(module: nn.Module, inputs: tuple[Any, ...]) -> Tensor | None:
            rows, *others = inputs or (None,)
            if others or rows is None or not (padding := self._padding(module, rows)):
                return None
            own[module] = len(rows)
            return torch.cat([rows, rows[-1:].detach().expand(padding, *rows.shape[1:])])

        def unpad(module: nn.Module, _: object, output: Tensor) -> Tensor | None:
            return output[: own.pop(module)] if module in own else None

        handles = []
        modules = list(network.modules())
        points = [module for module in modules if _is_point(module)]
        for module in points:
            # Single weights are no further apart by it, but PyTorch then takes oneDNN, faster
            # on many processors, which it else does from 16 pictures or 2 threads on.
            vars(module)["dilation"] = (2, 2)
        for module in modules:
            if count % _multiple_of(module):
                # Outside hooks that are there already, as those of attribution rules: what these
                # take from the graph of the layer has the copies' rows.
                handles.append(module.register_forward_pre_hook(pad, prepend=True))
                handles.append(module.register_forward_hook(unpad))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for module in points:
                vars(module)["dilation"] = (1, 1)

    def _padding(self, module: nn.Module, rows: Tensor) -> int:
        """Return how many copies a layer needs behind the rows of its input, [N, …]."""
        most = -len(rows) % _multiple_of(module)
        if not most or rows.ndim != (4 if isinstance(module, nn.Conv2d) else 2):
            return 0
        cast = torch.is_autocast_enabled("cpu")
        if module not in self._kinds:
            self._kinds[module] = repr(module)
        key = (self._kinds[module], rows.shape, rows.dtype, cast, torch.get_num_threads())
        if key not in self._tried:
            padded = _compute(module, rows, len(rows) + most)
            for count in (0, 1, most):
                if count == most or _agree(_compute(module, rows, len(rows) + count), padded):
                    self._tried[key] = count
                    break
        return self._tried[key]


def _is_point(module: nn.Module) -> bool:
    """Say whether a module is a convolution of single pixels that oneDNN may not be given."""
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.dilation == (1, 1)
        and module.stride == (1, 1)
        and module.weight.dtype == torch.float32
    )


def _multiple_of(module: nn.Module) -> int:
    """Return a batch size (rows, for a linear layer) whose multiples are computed alike."""
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
