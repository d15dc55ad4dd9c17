"""Attribution: how much each activation of the attribution layer adds to the response."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, Self, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mti_lightning.backbone import ActivationLayout, Backbone, Layer
from mti_lightning.errors import InputError, RunError
from mti_lightning.features.bound import BoundFeature
from mti_lightning.registry import origin_of


@dataclass(frozen=True)
class Pass:
    """One forward pass from pictures to responses, by way of the attribution layer.

    Attributes:
        pictures: [N, 3, H, W] in 0..1.
        activations: a, of the attribution layer's shape.
        responses: r, [N], computed from `activations`.
        head: Computes responses from other activations of the same shape, of the same pictures.
        at: Makes the same pass from other pictures, [M, 3, H, W], for the features of all N or of
            the rows that are named; its graph begins at the attribution layer.
        network: The frozen network, for methods that hook its modules while they call `head`.
        layout: How the activations lie: where the channels are, and the positions.
        baseline: The activations that stand for "absent", of a shape that expands to theirs.
    """

    pictures: Tensor
    activations: Tensor
    responses: Tensor
    head: Callable[[Tensor], Tensor]
    at: Callable[..., "Pass"]
    network: nn.Module
    layout: ActivationLayout
    baseline: Tensor


class Attribution(ABC):
    """An attribution method.

    Attributes:
        differentiable: Whether its result can be differentiated once more, as `MaximallyTense`
            needs.
        additive: Whether A sums to the response less that of the baseline, so that E⁺ − E⁻ is what
            the picture does to the response.
        needs_baseline: Whether it explains the way from a baseline.
        baseline: Of a method that needs one: the path of a .npy of one activation per channel, such
            as the `mean_activation` of a sweep; None for activations of 0.
        grey: Of a method that explains the way from a grey picture, by way of `Pass.at`: how bright
            that is, 0..1. The baseline are then its activations.
        arguments: What it was made with, by the names of its `__init__`.
    """

    differentiable: ClassVar[bool] = False
    additive: ClassVar[bool] = False
    needs_baseline: ClassVar[bool] = False
    baseline: str | None = None
    grey: float | None = None
    arguments: Mapping[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Note the arguments, by which a sweep knows its method again, whatever becomes of them."""
        method = super().__new__(cls)
        given = inspect.signature(cls.__init__).bind_partial(method, *args, **kwargs)
        given.apply_defaults()
        method.arguments = dict(list(given.arguments.items())[1:])  # but for itself
        return method

    def __init__(self) -> None:  # noqa: B027  without it `object` would let any argument pass
        pass

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
    bound_features: Sequence[BoundFeature],
    layer: Layer,
    method: Attribution,
    create_graph: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attribute responses to an attribution layer, of one feature per picture, in one pass.

    Args:
        backbone: The network.
        pictures: [N, 3, H, W] in 0..1, of the backbone's input size.
        bound_features: The feature of each picture, [N] of them, of one or several target layers.
        layer: The attribution layer.
        method: The attribution method.
        create_graph: Keep the way back to the pictures; without it the graph begins at the
            attribution layer.

    Returns:
        Activations and attribution, both of the layer's shape, and responses, [N].

    Raises:
        InputError: If a layer does not take part in the forward pass.
    """
    targets = list(dict.fromkeys(bound_feature.layer for bound_feature in bound_features))
    layout = backbone.layout(layer)
    if method.grey is None:
        baseline = load_baseline(method, layout).to(pictures.device)
    else:
        grey = torch.full_like(pictures[:1], method.grey)
        baseline = backbone.run(grey, [layer])[layer].detach()

    def run(shown: Tensor, asked: Sequence[BoundFeature], cut: Layer | None) -> Pass:
        def respond(tapped: Mapping[Layer, Tensor]) -> Tensor:
            responses = shown.new_zeros(len(asked))
            for bound_feature in dict.fromkeys(asked):
                of_feature = [i for i, other in enumerate(asked) if other is bound_feature]
                places = torch.tensor(of_feature, device=shown.device)
                values = bound_feature(tapped[bound_feature.layer][places])
                responses = responses.index_put((places,), values.to(responses.dtype))
            return responses

        def head(activations: Tensor) -> Tensor:
            return respond(backbone.run(shown, targets, insert={layer: activations}))

        def at(pictures: Tensor, rows: Sequence[int] = range(len(asked))) -> Pass:
            return run(pictures, [asked[row] for row in rows], layer)

        tapped = backbone.run(shown, [layer, *targets], cut=cut)
        start = baseline.to(tapped[layer])
        return Pass(
            *(shown, tapped[layer], respond(tapped), head),
            *(at, backbone.network, layout, start),
        )

    # The fused attention kernels have no second derivative.
    kernel = sdpa_kernel(SDPBackend.MATH) if create_graph else nullcontext()
    whole = create_graph and pictures.requires_grad
    with kernel, torch.enable_grad():
        forward = run(pictures, bound_features, None if whole else layer)
        result = method.attribute(forward, create_graph)
        _check_result(method, forward.activations, result)
    if create_graph:
        return forward.activations, result, forward.responses
    return forward.activations.detach(), result.detach(), forward.responses.detach()


@lru_cache(8)  # by what is in the file: another may have its name by now
def _baseline_of(content: bytes) -> Tensor:
    return torch.from_numpy(np.load(BytesIO(content), allow_pickle=False)).float()


def _read_baseline(path: str) -> Tensor:
    try:
        return _baseline_of(Path(path).read_bytes())
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise InputError(f"baseline {path!r} is no .npy of activations: {error}") from error


def load_baseline(method: Attribution, layout: ActivationLayout) -> Tensor:
    """Return a method's baseline, of a shape that expands to the activations'."""
    if method.baseline is None:
        return layout.per_channel(torch.zeros(1))
    values = _read_baseline(str(method.baseline))
    if values.shape != (layout.channels,):
        raise InputError(
            f"baseline {str(method.baseline)!r} is of shape {tuple(values.shape)}; the attribution "
            f"layer has {layout.channels} channels, so it takes ({layout.channels},)"
        )
    return layout.per_channel(values)


def _check_result(method: Attribution, activations: Tensor, result: Tensor) -> None:
    """Stop where a plugin's method gives what is no attribution."""
    if isinstance(method, ActGrad):
        return
    who = describe(method)
    if not isinstance(result, Tensor) or result.shape != activations.shape:
        shape = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise RunError(f"{who} gave {shape} for activations of shape {tuple(activations.shape)}")
    if not result.isfinite().all():
        raise RunError(f"{who} gave values that are not finite")


def describe(method: Attribution) -> str:
    """Name a method and the distribution it comes from, for messages."""
    cls = type(method)
    return f"attribution method {cls.__name__} of {origin_of(cls.__module__)}"
