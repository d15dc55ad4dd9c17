"""Devices that are not the CPU: a GPU where there is one, and one that the CPU plays everywhere.

That is a Mac's GPU, which has no doubles. What mixes tensors that were moved there with others
fails as it would there; the numbers are the CPU's. Of either it is counted where convolutions ran.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import pytest
import torch
from lightning.fabric.accelerators import MPSAccelerator as FabricMPS
from lightning.pytorch.accelerators import MPSAccelerator
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

from mti_lightning.attribution import signs

MPS, CPU = torch.device("mps", 0), torch.device("cpu")
_DOUBLES = (torch.float64, torch.complex128)
_FROM_HOST = {"tensor", "as_tensor", "new_tensor", "from_numpy"}
_READS = ("_local_scalar_dense", "nonzero")
_TO_HOST = {"numpy", "__array__", "__dlpack__"}
_GETS = {
    Tensor.device.__get__: lambda there: MPS if there else CPU,
    Tensor.is_cpu.__get__: lambda there: not there,
    Tensor.is_mps.__get__: lambda there: there,
}
_OPAQUE = (torch.quantile,)  # it takes doubles on a CPU, and floats on a Mac's GPU
_INDEXING = ("index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_")
_Generator = torch.Generator


class Generator(_Generator):
    """A generator of either device: one seed gives other numbers on the other."""

    def __new__(cls, device: Any = CPU) -> Self:
        made = super().__new__(cls)
        made.there = torch.device(device).type == "mps"
        return made

    def __init__(self, device: Any = CPU) -> None:
        pass

    def manual_seed(self, seed: int) -> "Generator":
        return super().manual_seed(seed ^ 1 if self.there else seed)


class Device:
    """Knows by their memory which tensors lie on the device.

    Attributes:
        type: `mps`, or `cuda` where it is a GPU that tells this itself.
        ran: How many convolutions ran there (True) and on the CPU (False).
        drawn: How many random numbers were drawn.
        waits: Why the CPU waited for the device: values that were read or fetched from there, and
            copies to there that were not said to be no one's to wait for.
    """

    def __init__(self, kind: str = "mps") -> None:
        self.type = kind
        self._marks: dict[int, StorageWeakRef] = {}
        self.opaque = False
        self.within = False  # a call that tensors of the device were given to
        self.ran, self.drawn = Counter[bool](), Counter[bool]()
        self.waits = Counter[str]()

    @staticmethod
    def _storage(tensor: Tensor) -> Any:
        with torch._C.DisableTorchFunction():
            while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
                tensor = torch._C._functorch.get_unwrapped(tensor)
            return tensor.untyped_storage()

    def has(self, tensor: Tensor) -> bool:
        try:
            found = self._marks.get(self._storage(tensor)._cdata)
        except NotImplementedError:  # of the batched gradients of one call
            return self.within
        return found is not None and not found.expired()

    def any(self, *values: Any) -> bool:
        return any(isinstance(value, Tensor) and self.has(value) for value in tree_iter(values))

    @contextmanager
    def calling(self, there: bool) -> Iterator[None]:
        """Make of nothing, while it lasts, what lies there, or not."""
        before, self.within = self.within, there
        try:
            yield
        finally:
            self.within = before

    def wait(self, why: str) -> None:
        frame: Any = sys._getframe(1)
        while frame and "/mti_lightning/" not in frame.f_code.co_filename:
            frame = frame.f_back
        where = f" in {frame.f_code.co_filename}:{frame.f_lineno}" if frame else ""
        self.waits[why + where] += 1

    def look(self, name: str, there: bool, here: bool) -> None:
        """Note whether an operation on tensors of these sides waits."""
        if there and (name in _READS or (here and name in _INDEXING)):
            self.wait(name)

    def put(self, tensor: Tensor, there: bool = True) -> Tensor:
        storage = self._storage(tensor)
        if not there:
            self._marks.pop(storage._cdata, None)
        elif tensor.dtype in _DOUBLES:
            raise TypeError(f"MPS framework doesn't support {tensor.dtype}")
        else:
            self._marks[storage._cdata] = StorageWeakRef(storage)
        return tensor


class _Move(torch.autograd.Function):
    """A copy on the other side; its gradient comes back."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, device: Device, there: bool) -> Tensor:
        ctx.device, ctx.there = device, there
        return device.put(value.detach().clone(), there)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Move.apply(gradient, ctx.device, not ctx.there), None, None


class _Functions(TorchFunctionMode):
    """Answers for the device, and moves tensors to it and back."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        device, kwargs, name = self.device, dict(kwargs or {}), getattr(func, "__name__", "")
        if func in _GETS:
            return _GETS[func](device.has(args[0]))
        if func is Tensor.backward:  # without this mode its hooks would run on the CPU
            with self, device.calling(device.has(args[0])):
                return torch.autograd.backward(args, kwargs.pop("gradient"), **kwargs)
        if func in (Tensor.to, Tensor.cpu):
            return self._to(*args, **kwargs) if func is Tensor.to else self._to(args[0], CPU)
        there = device.any(args[:1] if name == "__deepcopy__" else (args, kwargs))
        if name in _TO_HOST and there:
            raise TypeError("can't convert mps:0 device type tensor to numpy; use Tensor.cpu()")
        given = kwargs.pop("device", None)
        if given is not None:
            there = torch.device(given).type == "mps"
        if there and name in _FROM_HOST:
            device.wait(name)
        if (generator := kwargs.get("generator")) is not None and generator.there != there:
            raise RuntimeError(f"{name}: the generator is of another device")
        device.opaque = func in _OPAQUE
        with device.calling(there):
            made = func(*args, **kwargs)
        if device.opaque and there:
            device.put(made)
        device.opaque = False
        if given is not None or name == "__deepcopy__":
            return tree_map(lambda v: device.put(v, there) if isinstance(v, Tensor) else v, made)
        return made

    def _to(self, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        there, rest = self.device.has(value), []
        for one in (*args, *[kwargs.pop(key) for key in ("device", "other") if key in kwargs]):
            if isinstance(one, Tensor):
                there = self.device.has(one)
                rest.append(one.dtype)
            elif isinstance(one, str | torch.device):
                there = torch.device(one).type == "mps"
            elif one is not None:
                rest.append(one)
        flags = [one for one in rest if isinstance(one, bool)]  # non_blocking, copy
        dtype = [one for one in rest if isinstance(one, torch.dtype)]
        if len(flags) > 1:
            kwargs["copy"] = flags[1]

        def convert(value: Tensor) -> Tensor:
            return value.to(*dtype, **kwargs) if dtype or kwargs else value

        if there == self.device.has(value):
            return convert(value)
        if not (there and kwargs.pop("non_blocking", False)):
            self.device.wait("to there" if there else "from there")
        with self:  # what is converted is so on the CPU
            return (
                _Move.apply(convert(value), self.device, True)
                if there
                else convert(_Move.apply(value, self.device, False))
            )


class _Operations(TorchDispatchMode):
    """Refuses what mixes tensors of both sides, and marks what is made there."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        device, kwargs = self.device, kwargs or {}
        if device.opaque:
            return func(*args, **kwargs)
        name = func._schema.name.partition("::")[2]
        tensors = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
        there = [device.has(value) for value in tensors]
        here = [not one and value.ndim > 0 for one, value in zip(there, tensors, strict=True)]
        ours = any(there) or (not tensors and device.within)
        if name == "copy_":
            ours = device.has(args[0])
        elif any(there) and any(here):
            values = args[2:3] if name in _INDEXING else None  # indices may be the CPU's
            if values is None or not all(device.has(v) for v in (args[0], *values) if v.ndim):
                raise RuntimeError(f"{name}: expected all tensors to be on the same device")
        if "convolution" in name:
            device.ran[ours] += 1
        made = func(*args, **kwargs)
        if name in ("normal_", "uniform_", "rand", "randn", "randperm"):
            device.drawn[ours] += made.numel()
        device.look(name, any(there), any(here))
        if ours:
            for value in tree_iter(made):
                if isinstance(value, Tensor):
                    device.put(value)
        return made


class _Counting(TorchDispatchMode):
    """Counts where convolutions run."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "convolution" in func._schema.name:
            self.device.ran[args[0].device.type != "cpu"] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def watching_cuda() -> Iterator[Device]:
    """Count where convolutions run on a machine with a GPU of NVIDIA's."""
    device = Device("cuda")
    with _Counting(device):
        yield device


@contextmanager
def playing_mps(patch: pytest.MonkeyPatch) -> Iterator[Device]:
    """Have `mps` as a device, for Lightning's trainers, too."""
    device = Device()
    signs._spreads.cache_clear()  # of another one
    for accelerator in (FabricMPS, MPSAccelerator):
        patch.setattr(accelerator, "is_available", staticmethod(lambda: True))
    patch.setattr(torch, "Generator", Generator)
    # As for `backward`.
    patch.setattr(torch.autograd, "has_torch_function", lambda _: False)
    plain = torch.autograd.grad

    def grad(outputs: Any, *args: Any, **kwargs: Any) -> Any:
        with device.calling(device.any(outputs)):
            return plain(outputs, *args, **kwargs)

    patch.setattr(torch.autograd, "grad", grad)
    with _Functions(device), _Operations(device):
        yield device
