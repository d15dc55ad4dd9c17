"""Hooks that see, or change, what passes through layers for as long as a pass lasts."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from mti_lightning.backbone.layout import Layer
from mti_lightning.errors import InputError


def check_tensor(layer: Layer, kind: str, name: str) -> None:
    """Make sure that what passes through a layer is a tensor.

    Raises:
        InputError: If it is not.
    """
    if kind != "Tensor":
        raise InputError(
            f"the {layer.side} of layer {layer.module!r} of {name} is a {kind}, not a tensor; "
            "name a layer before, inside or after it"
        )


@contextlib.contextmanager
def tapped(
    modules: Mapping[Layer, nn.Module], tap: Callable[[Layer, Tensor], Tensor], name: str
) -> Iterator[None]:
    """Pass on what `tap` makes of what goes through layers; remove the hooks in any case.

    Args:
        modules: The layers, with their modules.
        tap: Gets a layer and what passes there.
        name: What errors call the network.
    """

    def checked(layer: Layer, value: object) -> Tensor:
        if not isinstance(value, Tensor):
            check_tensor(layer, type(value).__name__, name)
        return tap(layer, value)  # type: ignore[arg-type]

    def on_input(layer: Layer) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        return lambda _, inputs: (checked(layer, inputs[0] if inputs else None), *inputs[1:])

    def on_output(layer: Layer) -> Callable[[nn.Module, Any, object], Tensor]:
        return lambda _module, _inputs, output: checked(layer, output)

    handles = [  # outside the padding of batches
        module.register_forward_pre_hook(on_input(layer), prepend=True)
        if layer.side == "input"
        else module.register_forward_hook(on_output(layer))
        for layer, module in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
