"""Attribution: how much each activation of the attribution layer adds to the response."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mti_lightning.backbone import Backbone, Layer
from mti_lightning.errors import InputError
from mti_lightning.feature import Probe


@dataclass(frozen=True)
class Pass:
    """One forward pass from pictures to responses, by way of the attribution layer.

    Attributes:
        activations: a, of the attribution layer's shape.
        responses: r, [N], computed from `activations`.
        head: Computes responses from other activations of the same shape.
    """

    activations: Tensor
    responses: Tensor
    head: Callable[[Tensor], Tensor]


class Attribution(ABC):
    """An attribution method.

    Attributes:
        differentiable: Whether its result can be differentiated once more, as `MaximallyTense`
            needs.
    """

    differentiable: ClassVar[bool]

    @abstractmethod
    def attribute(self, forward: Pass, create_graph: bool) -> Tensor:
        """Return A, of the activations' shape, in units of the response.

        Args:
            forward: The pass to explain.
            create_graph: Keep what is needed to differentiate A itself.
        """


@final
class ActGrad(Attribution):
    """Activation times gradient, a ⊙ ∂r/∂a. For a piecewise linear head ΣA = r − bias(x)."""

    differentiable = True

    def attribute(self, forward: Pass, create_graph: bool) -> Tensor:
        # Pictures do not mix in eval mode, so one backward pass from the sum serves them all.
        (gradient,) = torch.autograd.grad(
            forward.responses.sum(), forward.activations, create_graph=create_graph
        )
        return forward.activations * gradient


def attribute(
    backbone: Backbone,
    pictures: Tensor,
    probes: Sequence[Probe],
    layer: Layer,
    method: Attribution,
    create_graph: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attribute responses to an attribution layer, of one feature per picture, in one pass.

    Args:
        backbone: The network.
        pictures: [N, 3, H, W] in 0..1, of the backbone's input size.
        probes: The feature of each picture, [N] of them; several target layers may be mixed.
        layer: The attribution layer.
        method: The attribution method.
        create_graph: Keep the way back to the pictures; without it the graph begins at the
            attribution layer.

    Returns:
        Activations and attribution, both of the layer's shape, and responses, [N].

    Raises:
        InputError: If a layer does not take part in the forward pass.
    """
    targets = list(dict.fromkeys(probe.layer for probe in probes))

    def respond(tapped: dict[Layer, Tensor]) -> Tensor:
        responses = pictures.new_zeros(len(probes))
        for probe in dict.fromkeys(probes):
            of_probe = [i for i, other in enumerate(probes) if other is probe]
            rows = torch.tensor(of_probe, device=pictures.device)
            values = probe(tapped[probe.layer][rows])
            responses = responses.index_put((rows,), values.to(responses.dtype))
        return responses

    def head(activations: Tensor) -> Tensor:
        return respond(backbone.run(pictures, targets, insert={layer: activations}))

    # The fused attention kernels have no second derivative.
    kernel = sdpa_kernel(SDPBackend.MATH) if create_graph else nullcontext()
    whole = create_graph and pictures.requires_grad
    with kernel, torch.enable_grad():
        tapped = backbone.run(pictures, [layer, *targets], cut=None if whole else layer)
        forward = Pass(tapped[layer], respond(tapped), head)
        result = method.attribute(forward, create_graph)
    if create_graph:
        return forward.activations, result, forward.responses
    return forward.activations.detach(), result.detach(), forward.responses.detach()


def check_path(backbone: Backbone, probe: Probe, layer: Layer) -> None:
    """Make sure that the attribution layer feeds the feature.

    Raises:
        InputError: If it does not.
    """
    backbone.site(layer)
    noise = torch.rand(
        (1, 3, *backbone.preprocessing.size), generator=torch.Generator().manual_seed(0)
    )
    with torch.enable_grad():
        tapped = backbone.run(noise.to(backbone.mean), [layer, probe.layer], cut=layer)
        response = probe(tapped[probe.layer]).sum()
        gradient = None
        if response.requires_grad:
            (gradient,) = torch.autograd.grad(response, tapped[layer], allow_unused=True)
    if gradient is None:
        raise InputError(
            f"attribution layer {str(layer)!r} does not feed feature {str(probe.feature)!r}: "
            "it lies behind the target layer or beside it; name an earlier layer"
        )
