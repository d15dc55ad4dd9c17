"""Attribution: how much each activation of the attribution layer adds to the response."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any, ClassVar, Final, Self, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mti_lightning.attribution.ground import GROUND, check_ground, ground_of
from mti_lightning.backbone import ActivationLayout, Backbone, Layer
from mti_lightning.errors import InputError, RunError, check_range
from mti_lightning.features.bound import BoundFeature
from mti_lightning.files import MOST_TEXT, at_home, open_file
from mti_lightning.registry import origin_of

MOST_STEPS: Final = 16
_ROWS: Final = 32  # of activations that integrated gradients send through the head at once


@dataclass(frozen=True)
class Pass:
    """One forward pass from pictures to responses, by way of the attribution layer.

    Attributes:
        pictures: [N, 3, H, W] in 0..1.
        activations: a, of the attribution layer's shape.
        responses: r, [N], computed from `activations`.
        head: Computes responses from other activations of the same pictures: N rows of them, or
            several times N, one set of all pictures behind the other.
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
        baseline: Of a method that needs one: `ground`, each picture's own, as `ground_of` finds it;
            the path of a .npy of one activation per channel, such as the `mean_activation` of a
            sweep; None for activations of 0.
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


class PathGradient(Attribution):
    """A = (a − b) ⊙ ∂r/∂a, the gradient averaged over points of the straight way from b to a.

    All of them are computed from the layer on, so that a part of the map which features depend on
    does for the whole, and gradients of many features are taken together.
    """

    differentiable = True

    @property
    @abstractmethod
    def points(self) -> tuple[float, ...]:
        """Where on the way from the baseline, 0, to the activations, 1, gradients are taken."""


@final
class ActGrad(PathGradient):
    """Activation times gradient, a ⊙ ∂r/∂a. For a piecewise linear head ΣA = r − bias(x)."""

    points = (1.0,)

    def attribute(self, forward: Pass, create_graph: bool) -> Tensor:
        # Pictures do not mix in eval mode, so one backward pass from the sum serves them all.
        (gradient,) = torch.autograd.grad(
            forward.responses.sum(), forward.activations, create_graph=create_graph
        )
        return forward.activations * gradient


@final
class IntGrad(PathGradient):
    """Integrated gradients (Sundararajan et al. 2017): A sums to r − r(baseline), at any depth.

    Args:
        steps: Points of the way, the midpoints of equal parts, at which the gradient is taken: each
            a forward and a backward pass of what comes behind the attribution layer. By default as
            few as the features need: chosen before a run, on its own pictures, by `choose_steps`.
        baseline: `ground`, the mean activations of that half of a picture's positions which are
            most alike; or the path of a .npy of one activation per channel, such as a sweep's
            `mean_activation`; by default activations of 0, or, as long as the steps are open, what
            `choose_steps` takes.

    Raises:
        InputError: If there are no steps.
    """

    additive = True
    needs_baseline = True

    def __init__(self, steps: int | None = None, baseline: str | None = None) -> None:
        if steps is not None:
            check_range(1, steps=steps)
        self.steps, self.baseline = steps, baseline

    @property
    def points(self) -> tuple[float, ...]:
        steps = self.steps or MOST_STEPS  # without a run there is nothing to choose by
        return tuple((index + 0.5) / steps for index in range(steps))

    def attribute(self, forward: Pass, create_graph: bool) -> Tensor:
        activations, points = forward.activations, self.points
        moved, total = activations - forward.baseline, torch.zeros_like(activations)
        at_once = max(1, _ROWS // len(activations))
        for start in range(0, len(points), at_once):
            part = points[start : start + at_once]
            way = torch.cat([forward.baseline + point * moved for point in part])
            if not create_graph:
                way = way.detach().requires_grad_()
            responses = forward.head(way)
            (found,) = torch.autograd.grad(responses.sum(), way, create_graph=create_graph)
            total = total + found.view(len(part), *activations.shape).sum(0)
        return moved * total / len(points)


def make_pass(
    backbone: Backbone,
    pictures: Tensor,
    bound_features: Sequence[BoundFeature],
    layer: Layer,
    baseline: Tensor | None,
    cut: bool = True,
) -> Pass:
    """Run pictures to their responses, by way of the attribution layer.

    Args:
        backbone: The network.
        pictures: [N, 3, H, W] in 0..1.
        bound_features: The feature of each picture, [N] of them.
        layer: The attribution layer.
        baseline: What stands for "absent" there; None for the ground of each picture.
        cut: Let the graph begin at the layer.
    """
    targets = list(dict.fromkeys(bound_feature.layer for bound_feature in bound_features))
    # Tried before a method puts its own hooks on the network.
    backbone.is_only_way(layer, tuple(targets))

    def respond(tapped: Mapping[Layer, Tensor], asked: Sequence[BoundFeature]) -> Tensor:
        different = dict.fromkeys(asked)
        responses = pictures.new_zeros(len(asked))
        for bound_feature in different:
            if len(different) == 1:
                values = bound_feature(tapped[bound_feature.layer])
                responses = values.to(responses.dtype)
                break
            of_feature = [i for i, other in enumerate(asked) if other is bound_feature]
            places = torch.tensor(of_feature).to(pictures.device, non_blocking=True)
            values = bound_feature(tapped[bound_feature.layer][places])
            responses = responses.index_put((places,), values.to(responses.dtype))
        return responses

    def head(activations: Tensor) -> Tensor:
        asked = [*bound_features] * (len(activations) // len(pictures))
        return respond(backbone.run_behind(layer, activations, targets, pictures), asked)

    def at(pictures: Tensor, rows: Sequence[int] = range(len(bound_features))) -> Pass:
        return make_pass(backbone, pictures, [bound_features[r] for r in rows], layer, baseline)

    tapped = backbone.run(pictures, [layer, *targets], cut=layer if cut else None)
    activations, layout = tapped[layer], backbone.layout(layer)
    if baseline is None:
        start = ground_of(activations.detach() if cut else activations, layout)
    else:
        start = baseline.to(activations, non_blocking=True)
    return Pass(
        *(pictures, activations, respond(tapped, bound_features), head, at),
        *(backbone.network, layout, start),
    )


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
    baseline: Tensor | None
    if method.grey is None:
        baseline = fixed_baseline(method, backbone.layout(layer))
    else:
        grey = torch.full_like(pictures[:1], method.grey)
        baseline = backbone.run(grey, [layer])[layer].detach()
    # The fused attention kernels have no second derivative.
    kernel = sdpa_kernel(SDPBackend.MATH) if create_graph else nullcontext()
    whole = create_graph and pictures.requires_grad
    again = backbone.differentiated_twice(layer) if create_graph else nullcontext()
    with kernel, again, torch.enable_grad():
        forward = make_pass(backbone, pictures, bound_features, layer, baseline, not whole)
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
        with open_file(at_home(path), MOST_TEXT) as file:
            return _baseline_of(file.read())
    except (OSError, ValueError, TypeError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"baseline {path!r} is no .npy of activations: {reason}") from error


def baseline_of(method: Attribution, layout: ActivationLayout, activations: Tensor) -> Tensor:
    """Return a method's baseline of pictures, of a shape that expands to their activations'."""
    start = fixed_baseline(method, layout)
    if start is None:
        return ground_of(activations.detach(), layout)
    return start.to(activations, non_blocking=True)


def fixed_baseline(method: Attribution, layout: ActivationLayout) -> Tensor | None:
    """Return a method's baseline where it is the same for all pictures; None for their ground."""
    if method.baseline != GROUND:
        return load_baseline(method, layout)
    check_ground(layout)
    return None


def load_baseline(method: Attribution, layout: ActivationLayout) -> Tensor:
    """Return a method's baseline, zeros or of its file, of a shape that expands to activations'."""
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
    if isinstance(method, PathGradient):
        return
    if not isinstance(result, Tensor) or result.shape != activations.shape:
        shape = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        wanted = tuple(activations.shape)
        raise RunError(f"{describe(method)} gave {shape} for activations of shape {wanted}")
    if not result.isfinite().all():
        raise RunError(f"{describe(method)} gave values that are not finite")


def describe(method: Attribution) -> str:
    """Name a method and the distribution it comes from, for messages."""
    cls = type(method)
    return f"attribution method {cls.__name__} of {origin_of(cls.__module__)}"
