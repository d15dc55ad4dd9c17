"""Which layers of a backbone can be named, and by what."""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from mti_lightning.backbone import Backbone, Layer, Site
from mti_lightning.errors import InputError


@final
@dataclass(frozen=True)
class UsableLayer:
    """A layer that can be a target layer, and where it is `attributable` an attribution layer, too.

    `activation` is the side of an activation function that its values are from: `before`, where
    a veto is told from absence, `after`, or nothing if there is none next to it.
    """

    layer: Layer
    site: Site
    activation: str
    attributable: bool

    @property
    def feature(self) -> str:
        """What names its features, with CHANNEL in place of a channel's index."""
        if len(self.site.shape) == 1:
            return f"{self.layer}:CHANNEL"
        return f"{self.layer}:CHANNEL@{'centre' if self.site.grid else 'mean'}"


def usable_layers(backbone: Backbone) -> list[UsableLayer]:
    """List a backbone's layers in the order in which pictures come to their end.

    These are the outputs of all modules that change what they are given, and the inputs of
    activation functions, as far as they can be tapped.

    Raises:
        InputError: If the network cannot take pictures of its input size.
    """
    trace = _Trace(backbone)
    sites: dict[torch.Size, Site | None] = {}  # it takes a pass to find one
    usable = []
    for layer, value in trace.values.items():
        if value.shape not in sites:
            try:
                sites[value.shape] = backbone.site(layer)
            except InputError:
                sites[value.shape] = None
        if site := sites[value.shape]:
            side = trace.sides.get(layer, "")
            usable.append(UsableLayer(layer, site, side, layer in trace.feeding))
    return usable


def layer_lines(layers: list[UsableLayer]) -> list[str]:
    """Return a table of layers, its head first."""
    rows = [("attribution_layer", "shape", "activation", "features")]
    for one in layers:
        named = zip(one.site.shape, one.site.dimensions, strict=True)
        shape = " x ".join(f"{size} {name}s" for size, name in named)
        rows.append(
            (str(one.layer) if one.attributable else "-", shape, one.activation, one.feature)
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def is_activation(module: nn.Module) -> bool:
    """Say whether a module is an activation function."""
    # torch keeps its attention and its softmaxes among them.
    others = (nn.MultiheadAttention, nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin)
    return "activation" in type(module).__module__ and not isinstance(module, others)


@final
class _Trace:
    """What modules hand on in one pass.

    Attributes:
        values: What passes through each layer that runs once, of two pictures.
        sides: On which side of an activation function a layer is.
        feeding: The layers that later ones are computed from.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.sides: dict[Layer, str] = {}
        self._runs: dict[Layer, list[Tensor | None]] = {}
        self._handed: dict[int, tuple[Layer, Tensor]] = {}  # kept, so that no id is used again
        size = (2, 3, *backbone.preprocessing.size)
        noise = torch.rand(size, generator=torch.Generator().manual_seed(0)).to(backbone.mean)
        handles = []
        for name, module in backbone.network.named_modules():
            if name and is_activation(module):
                handles.append(module.register_forward_pre_hook(self._before(Layer(name, "input"))))
            if name:
                handles.append(module.register_forward_hook(self._behind(Layer(name))))
        try:
            with torch.enable_grad():
                backbone(noise.requires_grad_())
        except (AssertionError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(
                f"{backbone.name} cannot take pictures of {size[2]}x{size[3]} pixels: {reason}"
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
        handed = dict(self._handed.values())
        self.feeding: set[Layer] = set()
        if self.values:
            whole = torch.stack([value.sum() for value in self.values.values()]).sum()
            gradients = torch.autograd.grad(
                whole, [handed[layer] for layer in self.values], allow_unused=True
            )
            found = zip(self.values, gradients, strict=True)
            self.feeding = {layer for layer, gradient in found if gradient is not None}

    def _before(self, layer: Layer) -> Any:
        def hook(_module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if not given:
                return None  # handed on by keyword, where no tap finds it
            source, _ = self._handed.get(id(given[0]), (None, None))
            # A shortcut may have been added in place to what a module handed on.
            if source and given[0].equal(self._runs[source][-1]):
                self.sides[source] = "before"
            self.sides[layer] = "before"
            return (self._keep(layer, given[0]), *given[1:])

        return hook

    def _behind(self, layer: Layer) -> Any:
        def hook(module: nn.Module, given: tuple[Any, ...], output: Any) -> Any:
            activation = is_activation(module)
            if given and output is given[0] and not activation:
                return output  # as dropout in eval mode
            source, _ = self._handed.get(id(output), (None, None))
            if activation or (source and self.sides.get(source) == "after"):
                self.sides[layer] = "after"
            return self._keep(layer, output)

        return hook

    def _keep(self, layer: Layer, value: Any) -> Any:
        runs = self._runs.setdefault(layer, [])
        if not isinstance(value, Tensor) or not value.is_floating_point():
            runs.append(None)
            return value
        kept = value.clone()
        runs.append(kept)
        handed = kept.clone()  # which the network may overwrite
        self._handed[id(handed)] = layer, handed
        return handed
