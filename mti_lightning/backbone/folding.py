"""Batch norms folded into the convolutions before them, for as long as a pass lasts.

In a frozen network a norm multiplies and moves each channel by constants, and a convolution can do
that itself. The modules and their weights stay as they are: for one pass a convolution computes
with other weights, and the norm behind it hands on what it is given.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any, Final, final

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from mti_lightning.backbone.layout import Layer

_MAPS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)
_PRECISIONS: Final = (torch.float32, torch.float64)  # others round folded weights too much
_EXACT: Final = 1e-5  # of the largest value
_VIEWS: Final = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)  # noqa: SLF001
_HOOKS: Final = (
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
)


def is_hooked(module: nn.Module) -> bool:
    """Say whether anything looks at, or stands in for, what a module itself computes."""
    own = vars(module)
    return "forward" in own or any(own[hooks] for hooks in _HOOKS)


@final
class Fold:
    """A convolution and the norm that is all that takes what it gives.

    Args:
        conv: The convolution, or linear map.
        norm: The batch norm; one of timm's may hold an activation function.
        modules: Those that the convolution's values pass, both among them.
        between: The layers whose values these are.
    """

    def __init__(
        self, conv: nn.Module, norm: nn.Module, modules: set[nn.Module], between: set[Layer]
    ) -> None:
        self.conv, self.norm = conv, norm
        self.modules, self.between = tuple(modules), frozenset(between)
        self._made: tuple[Tensor, Tensor] | None = None
        self._of: list[tuple[Tensor, int, int]] = []

    @torch.inference_mode(False)
    @torch.no_grad()
    def weights(self) -> tuple[Tensor, Tensor]:
        """Return the convolution's weights and bias with the norm in them.

        They are made once until those of the network change. What is written to a tensor's `data`
        behind PyTorch's back is not seen.
        """
        held = [
            own[name]
            for module in (self.conv, self.norm)
            for own in (vars(module)["_parameters"], vars(module)["_buffers"])
            for name in ("weight", "bias", "running_mean", "running_var")
            if own.get(name) is not None
        ]
        now = [(value.data_ptr(), value._version) for value in held]  # noqa: SLF001
        if self._made is None or [known[1:] for known in self._of] != now:
            norm: Any = self.norm
            scale = (norm.running_var + norm.eps).rsqrt()
            scale = scale if norm.weight is None else scale * norm.weight
            own: Any = self.conv
            bias = -norm.running_mean if own.bias is None else own.bias - norm.running_mean
            bias = bias * scale if norm.bias is None else bias * scale + norm.bias
            shape = (-1, *[1] * (own.weight.ndim - 1))
            self._made = own.weight * scale.view(shape), bias
            # Held, so that no other tensor can take their place in memory.
            self._of = [(value.detach(), *told) for value, told in zip(held, now, strict=True)]
        return self._made

    def is_free(self, tapped: Collection[Layer]) -> bool:
        """Say whether nothing is to be read or changed between the two."""
        if self.norm.training or not self.between.isdisjoint(tapped):
            return False
        return not any(is_hooked(module) for module in self.modules)

    def put(self) -> None:
        """Have the convolution compute what comes behind the norm, until `remove`."""
        # Past `nn.Module.__setattr__`, which is slow; a module's hooks and calls stay as they are.
        vars(self.conv)["forward"] = partial(_convolve, self.conv, *self.weights())
        vars(self.norm)["forward"] = partial(_hand_on, self.norm)

    def remove(self) -> None:
        """Let both compute again what they do."""
        for module in (self.conv, self.norm):
            vars(module).pop("forward", None)


def _convolve(conv: nn.Module, weight: Tensor, bias: Tensor, *given: Any) -> Any:
    """Compute a convolution with other weights: of any subclass, with paddings of its own."""
    own: dict[str, Any] = vars(conv)["_parameters"]
    kept = own["weight"], own["bias"]
    own["weight"], own["bias"] = weight, bias
    try:
        return type(conv).forward(conv, *given)
    finally:
        own["weight"], own["bias"] = kept


def _hand_on(norm: nn.Module, values: Tensor) -> Tensor:
    if isinstance(norm, BatchNormAct2d):
        values = norm.act(norm.drop(values))
    return values


@contextlib.contextmanager
def folded(folds: Sequence[Fold], tapped: Collection[Layer]) -> Iterator[None]:
    """Fold what can be, where nothing is tapped between, for as long as this context lasts."""
    free = [fold for fold in folds if fold.is_free(tapped)]
    try:
        for fold in free:
            fold.put()
        yield
    finally:
        for fold in free:
            fold.remove()


def find_folds(network: nn.Module, compute: Callable[[], Any]) -> list[Fold]:
    """Find the norms that can be folded: by a pass, and by trying each of them.

    Args:
        network: In eval mode, without hooks.
        compute: Runs it, of a picture or more.

    Returns:
        Those of which the folded convolution gives the norm's values to 1e-5 of the largest; none
        where the network cannot run.
    """
    if {value.dtype for value in network.parameters()} - {*_PRECISIONS}:
        return []
    if not any(type(module) in _NORMS for module in network.modules()):
        return []
    with torch.inference_mode(False), torch.no_grad(), _Uses(network) as uses:
        try:
            folds: list[Fold] = uses.folds(compute())
            return folds
        except (AssertionError, IndexError, RuntimeError, ValueError):
            return []  # what is wrong with it, the pass itself will say


class _Uses(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes who takes the values that convolutions give: modules by hooks, all else by operations.

    Args:
        network: The network.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._within: list[nn.Module] = []
        self._runs: dict[nn.Module, int] = {}
        self._given: dict[nn.Module, Tensor] = {}  # to convolutions
        self._made: dict[int, tuple[Tensor, nn.Module]] = {}  # by them
        self._layers: dict[nn.Module, set[Layer]] = {}
        self._modules: dict[nn.Module, set[nn.Module]] = {}
        self._norms: dict[nn.Module, nn.Module | None] = {}  # None: others take them, too
        self._names: dict[nn.Module, list[str]] = {}
        for name, module in network.named_modules(remove_duplicate=False):
            self._names.setdefault(module, []).append(name)
        self._trying = False
        self._handles = [
            handle
            for module in self._names
            for handle in (
                module.register_forward_pre_hook(self._before),
                module.register_forward_hook(self._behind),
            )
        ]

    def __exit__(self, *error: Any) -> None:
        for handle in self._handles:
            handle.remove()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def folds(self, output: Any) -> list[Fold]:
        """Return what can be folded.

        Args:
            output: The network's.
        """
        for conv in self._from_convs(output):
            self._norms[conv] = None
        return [
            Fold(conv, norm, self._modules[conv], self._layers[conv])
            for conv, norm in self._norms.items()
            if norm is not None and self._runs[conv] == self._runs[norm] == 1
        ]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for conv in self._from_convs([args, *(kwargs or {}).values()]):
            if func in _VIEWS:  # as a norm of tokens takes them, all in a row
                self._made[id(made)] = made, conv
            elif not self._trying and self._norms.get(conv) is not self._within[-1]:
                self._norms[conv] = None
        return made

    def _from_convs(self, values: Any) -> Iterator[nn.Module]:
        if isinstance(values, Tensor):
            value, conv = self._made.get(id(values), (None, None))
            if conv is not None and value is values:
                yield conv
        elif isinstance(values, tuple | list):
            for value in values:
                yield from self._from_convs(value)

    def _before(self, module: nn.Module, given: tuple[Any, ...]) -> None:
        self._within.append(module)
        self._runs[module] = self._runs.get(module, 0) + 1
        for conv in self._from_convs(given):
            self._pass(conv, module, "input")
            if type(module) in _NORMS and conv not in self._norms:
                fits = self._is_exact(Fold(conv, module, set(), set()), given[0])
                self._norms[conv] = module if fits else None
        if isinstance(module, _MAPS) and given and isinstance(given[0], Tensor):
            self._given[module] = given[0]

    def _behind(self, module: nn.Module, _: Any, output: Any) -> None:
        self._within.pop()
        for conv in self._from_convs(output):
            self._pass(conv, module, "output")
        if module in self._given and isinstance(output, Tensor):
            self._made[id(output)] = output, module  # held, so that its id stays its own
            self._layers[module], self._modules[module] = set(), {module}
            self._pass(module, module, "output")

    def _pass(self, conv: nn.Module, module: nn.Module, side: Any) -> None:
        """Note that a convolution's values pass a module."""
        self._modules[conv].add(module)
        self._layers[conv] |= {Layer(name, side) for name in self._names[module]}

    def _is_exact(self, fold: Fold, values: Tensor) -> bool:
        """Try whether the folded convolution gives what the norm makes of its values."""
        own, norm = vars(fold.conv)["_parameters"], fold.norm
        assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
        if norm.running_mean is None or not {"weight", "bias"} <= {*own}:
            return False
        self._trying = True
        try:
            wanted = functional.batch_norm(
                *(values, norm.running_mean, norm.running_var, norm.weight, norm.bias),
                eps=norm.eps,
            )
            found = _convolve(fold.conv, *fold.weights(), self._given[fold.conv])
            within = _EXACT * float(wanted.abs().max())
            return torch.allclose(found.reshape(wanted.shape), wanted, 0, within)
        except RuntimeError:
            return False  # a map with weights of its own making
        finally:
            self._trying = False
