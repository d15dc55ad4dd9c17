"""One pass through a backbone: what its modules pass on, and where activation functions act."""

import contextlib
from collections.abc import Container, Iterator
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from mti_lightning.backbone.layout import Layer
from mti_lightning.backbone.network import Backbone
from mti_lightning.errors import InputError, reason_of

# By how autograd's names of them begin.
_MOVING = (
    *("Alias", "AsStrided", "Cat", "Clone", "Copy", "Expand", "Index", "Permute", "Reshape"),
    *("Select", "Slice", "Split", "Squeeze", "ToCopy", "Transpose", "Unsqueeze", "UnsafeView"),
    *("View", "TBackward", "UnsafeSplit"),
)
_STRAIGHT = {nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm}  # no need to try them


def _is_activation(module: nn.Module, given: tuple[Any, ...]) -> bool:
    """Say whether a module is an activation function: one and the same, and bent, for each value.

    It is tried, as many a network has one of its own.
    """
    matrices = any(value.ndim > 1 for value in module.parameters())
    known = type(module) in _STRAIGHT
    if next(module.children(), None) or len(given) != 1 or matrices or known:
        return False
    if isinstance(module, nn.PReLU):
        return True  # the same for each value of a channel
    if not isinstance(given[0], Tensor) or not given[0].is_floating_point():
        return False
    shape = given[0].shape
    if not [*module.parameters(), *module.buffers()]:  # no value has a place of its own
        shape = torch.Size(min(side, 8) for side in shape)
    count, generator = shape.numel(), torch.Generator().manual_seed(0)
    values = torch.linspace(-4, 4, count)[torch.randperm(count, generator=generator)]
    values, order = values.to(given[0]), torch.randperm(count, generator=generator)

    def function(flat: Tensor) -> Tensor:
        # `forward`, so that no hook takes notice; a copy, as it may work in place.
        found: Tensor = module.forward(flat.clone().view(shape))
        return found.flatten()

    # A pool, say, may be larger than a part.
    with torch.no_grad(), contextlib.suppress(RuntimeError):
        found, other = function(values), function(values[order])
        if found.shape != values.shape or not torch.allclose(other, found[order], atol=1e-5):
            return False
        straight = found + other - function(torch.zeros_like(values))
        return not torch.allclose(function(values + values[order]), straight, atol=1e-4)
    return False


def moves_values(node: Node) -> bool:
    """Say whether a function of a graph only moves values on, or leaves some of them out."""
    return node.name().startswith(_MOVING)


class _Stop(Exception):  # noqa: N818  it ends a forward pass, it reports no error
    """Raised behind the last layer that is wanted."""


@final
class Trace:
    """What modules hand on in one pass, all of it or up to a layer.

    Attributes:
        values: What passes through each layer that runs once, of two pictures.
    """

    def __init__(self, backbone: Backbone, until: Layer | None = None) -> None:
        self._until = until
        self._runs: dict[Layer, list[Tensor | None]] = {}
        self._handed: dict[Layer, Tensor] = {}
        self._nodes: dict[Node, Layer] = {}  # what a layer's value ends with in the graph
        self._functions: dict[Node, str] = {}  # the same of activation functions
        self._inputs: list[tuple[str, Tensor]] = []  # of activation functions
        handles = []
        for name, module in backbone.network.named_modules():
            if name:
                handles.append(module.register_forward_pre_hook(self._before(name)))
                handles.append(module.register_forward_hook(self._behind(name)))
        self._activations: dict[nn.Module, bool] = {}
        try:
            with torch.enable_grad(), contextlib.suppress(_Stop):
                backbone(backbone.noise(2).requires_grad_())
        except (AssertionError, RuntimeError) as error:
            height, width = backbone.preprocessing.size
            raise InputError(
                f"{backbone.name} cannot take pictures of {height}x{width} pixels: "
                f"{reason_of(error)}"
            ) from error
        finally:
            for handle in handles:
                handle.remove()
        once = {layer: runs[0] for layer, runs in self._runs.items() if len(runs) == 1}
        self.values = {
            layer: value
            for layer, value in once.items()
            if value is not None and value.requires_grad
        }

    def feeding(self) -> set[Layer]:
        """Return the layers that later ones are computed from."""
        if not self.values:
            return set()
        whole = torch.stack([value.sum() for value in self.values.values()]).sum()
        handed = [self._handed[layer] for layer in self.values]
        gradients = torch.autograd.grad(whole, handed, allow_unused=True)
        found = zip(self.values, gradients, strict=True)
        return {layer for layer, gradient in found if gradient is not None}

    def side(self, layer: Layer) -> str:
        """Return the side of activation functions that a layer's values are from, if any."""
        if self.behind(layer):
            return "after"
        return "before" if layer in self.ahead else ""

    def behind(self, layer: Layer) -> set[str]:
        """Return the activation functions that all of a layer's values are from, moved at most."""
        functions = set()
        start = self.values[layer].grad_fn if layer in self.values else None
        for node in _moved(start, self._functions):
            if node in self._functions:
                functions.add(self._functions[node])
            elif node is None or not moves_values(node):
                return set()
        return functions

    @cached_property
    def ahead(self) -> dict[Layer, set[str]]:
        """The activation functions that all of a layer's values go into, moved at most."""
        functions: dict[Layer, set[str]] = {}
        counts: dict[Layer, int] = {}
        for name, value in self._inputs:
            for node in _moved(value.grad_fn, ()):
                layer = self._nodes.get(node) if node else None
                if layer in self.values:
                    functions.setdefault(layer, set()).add(name)
                    counts[layer] = counts.get(layer, 0) + value.numel()
        # Of a gated unit one half goes into the function.
        whole = {layer for layer in functions if counts[layer] >= self.values[layer].numel()}
        return {layer: functions[layer] for layer in self.values if layer in whole}

    def _before(self, name: str) -> Any:
        layer = Layer(name, "input")

        def hook(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
            # What is handed on by keyword no tap finds.
            self._activations[module] = activation = _is_activation(module, given)
            if not given or not (activation or layer == self._until):
                return None
            kept, handed = self._keep(layer, given[0])
            if activation:
                self._inputs.append((name, kept))
            if layer == self._until:
                raise _Stop
            return (handed, *given[1:])

        return hook

    def _behind(self, name: str) -> Any:
        layer = Layer(name)

        def hook(module: nn.Module, given: tuple[Any, ...], output: Any) -> Any:
            activation = self._activations[module]
            if given and output is given[0] and not activation and layer != self._until:
                return output  # as dropout in eval mode
            kept, handed = self._keep(layer, output)
            if activation and kept.grad_fn:
                self._functions[kept.grad_fn] = name
            if layer == self._until:
                raise _Stop
            return handed

        return hook

    def _keep(self, layer: Layer, value: Any) -> tuple[Any, Any]:
        """Keep what passes through a layer, and return it and what to hand on."""
        runs = self._runs.setdefault(layer, [])
        if not isinstance(value, Tensor) or not value.is_floating_point():
            runs.append(None)
            return value, value
        kept = value.clone()
        runs.append(kept)
        if kept.grad_fn:
            self._nodes[kept.grad_fn] = layer
        self._handed[layer] = handed = kept.clone()  # which the network may overwrite
        return kept, handed


def _moved(start: Node | None, ends: Container[Node | None]) -> Iterator[Node | None]:
    """Go back in a graph through functions that move values on, to others or to `ends`."""
    waiting, seen = [start], set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        if node is not None and node not in ends and moves_values(node):
            waiting += [child for child, _ in node.next_functions]
