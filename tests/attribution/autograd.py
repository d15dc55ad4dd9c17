"""Attribution by plain autograd, to compare with."""

from typing import Literal

import torch
from torch import Tensor, nn

from tests.backbone.networks import normalised

Index = tuple[int | slice, ...] | Literal["peak", "mean"]
EVERY = slice(None)


def reference(
    network: nn.Module, pictures: Tensor, layer: str, target: str, index: Index
) -> tuple[Tensor, Tensor, Tensor]:
    """Return activations, attribution and responses by two plain hooks and one plain backward.

    `index` reads the response off the target layer; `peak` and `mean` read channel 5 of a map.
    """
    kept: dict[str, Tensor] = {}

    def leaf(value: Tensor) -> Tensor:
        kept["layer"] = value.detach().requires_grad_()
        return kept["layer"]

    def hook(name: str, act: object) -> None:
        path, _, side = name.partition("/")
        module = network.get_submodule(path)
        if side:
            module.register_forward_pre_hook(lambda _, inputs: (act(inputs[0]), *inputs[1:]))
        else:
            module.register_forward_hook(lambda _, inputs, output: act(output))

    def keep(value: Tensor) -> Tensor:
        kept["target"] = value
        return value

    hook(layer, leaf)
    hook(target, keep)
    network(normalised(network, pictures))
    if index == "peak":
        responses = kept["target"][:, 5].flatten(1).amax(1)
    elif index == "mean":
        responses = kept["target"][:, 5].flatten(1).mean(1)
    else:
        responses = kept["target"][index]
    responses.sum().backward()
    a = kept["layer"]
    assert a.grad is not None
    return a.detach(), (a * a.grad).detach(), responses.detach()


def close(actual: Tensor, expected: Tensor) -> None:
    scale = float(expected.abs().max())
    assert scale > 0
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * scale)
