"""As few steps of integrated gradients as the features need, measured before a run."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeGuard

import torch
from torch import Tensor

from mti_lightning.attribution.ground import GROUND
from mti_lightning.attribution.methods import (
    MOST_STEPS,
    ActGrad,
    Attribution,
    IntGrad,
    fixed_baseline,
    make_pass,
)
from mti_lightning.backbone import Backbone, Layer
from mti_lightning.features.bound import BoundFeature
from mti_lightning.log import log_info, log_warning
from mti_lightning.registry import current_path, public_path

CHOSEN_ON: Final = 16  # pictures
_EXACT, _MOST_OFF = 0.01, 0.15  # gaps: of one backward pass, and of several


def is_open(method: Attribution) -> TypeGuard[IntGrad]:
    """Return whether a method's steps are still to be chosen."""
    return isinstance(method, IntGrad) and method.steps is None


@torch.inference_mode(mode=False)
def choose_steps(
    method: Attribution,
    backbone: Backbone,
    layer: Layer,
    bound_features: Sequence[BoundFeature],
    batches: Iterable[Tensor],
    ground: bool = True,
) -> Attribution:
    """Return the cheapest way to integrated gradients that adds up for some features.

    Of features that depend on the whole picture the way begins at the ground of each picture, if no
    baseline is given: what a thing does is told from what would stand there without it. Of features
    at one position, and where the layer has no positions, it begins at activations of 0.

    How far attributions are off is their gap, Σ|ΣA − (r − r₀)| / Σ|r − r₀| over 16 pictures, r₀ the
    response to the baseline. One backward pass, as of act×grad, will do up to a gap of 0.01. Else
    it is the first of 4, 8, 16 steps whose gap is at most 0.15; where there is none, a warning says
    so, and the one with the least gap is taken. Features of several layers get as many steps as the
    one that needs most; those of one layer share the pictures out.

    Args:
        method: One whose steps are open; any other is returned as it is.
        backbone: The network.
        layer: The attribution layer.
        bound_features: The features.
        batches: Pictures [N, 3, H, W] in 0..1; the first 16 count. Without any it is noise.
        ground: Whether the ground is a baseline; if not, activations of 0 are.
    """
    if not is_open(method):
        return method
    pictures = _first(batches, backbone)
    baseline = method.baseline
    of_places = any(isinstance(found.position, tuple) for found in bound_features)
    if ground and baseline is None and backbone.layout(layer).grid is not None and not of_places:
        baseline = GROUND
    once = ActGrad() if baseline is None else IntGrad(1, baseline)
    tried = [once, *(IntGrad(steps, baseline) for steps in (4, 8, MOST_STEPS))]
    place, gap = 0, 0.0
    for target in dict.fromkeys(bound_feature.layer for bound_feature in bound_features):
        of_layer = [found for found in bound_features if found.layer == target]
        asked = [of_layer[row % len(of_layer)] for row in range(len(pictures))]
        gaps: dict[int, float] = {}
        for candidate in range(place, len(tried)):
            gaps[candidate] = measure_gap(tried[candidate], backbone, pictures, asked, layer)
            if gaps[candidate] <= (_MOST_OFF if candidate else _EXACT):
                place = candidate
                break
        else:
            place = min(gaps, key=gaps.__getitem__)
        gap = max(gap, gaps[place])
    chosen = tried[place]
    passes = len(chosen.points)
    cost = f"{passes} forward and backward passes" if passes > 1 else "one backward pass"
    told = (
        f"{layer}: {_name(chosen)}, whose sum misses the change of the response by {gap:.1%} over "
        f"{len(pictures)} pictures; each picture costs {cost} of what lies behind"
    )
    if gap > _MOST_OFF:
        log_warning(
            f"{told}; no number of steps adds up, so name a later attribution layer, a baseline "
            "(the mean_activation of a sweep), or another attribution method"
        )
    else:
        log_info(told)
    return chosen


def measure_gap(
    method: Attribution,
    backbone: Backbone,
    pictures: Tensor,
    bound_features: Sequence[BoundFeature],
    layer: Layer,
) -> float:
    """Return Σ|ΣA − (r − r₀)| / Σ|r − r₀| over pictures [N, 3, H, W], each with its feature."""
    start = fixed_baseline(method, backbone.layout(layer))
    with torch.enable_grad():
        forward = make_pass(backbone, pictures, bound_features, layer, start)
        summed = method.attribute(forward, create_graph=False).detach().flatten(1).sum(1)
    with torch.no_grad():
        silent = forward.head(forward.baseline.expand_as(forward.activations))
        change = forward.responses - silent
        return float((summed - change).abs().sum() / change.abs().sum().clamp(min=1e-12))


def recorded(method: Attribution) -> dict[str, Any]:
    """Return what a method is, for a checkpoint or a store."""
    return {"class_path": public_path(type(method)), "init_args": dict(method.arguments)}


def as_recorded(method: Attribution, told: Mapping[str, Any]) -> Attribution:
    """Return a method whose steps are open with the steps of a run that is gone on with.

    Args:
        method: Any other is returned as it is.
        told: What the run recorded of its method; of another kind, `method` is returned.
    """
    if not is_open(method):
        return method
    path, arguments = current_path(str(told.get("class_path"))), told.get("init_args", {})
    if path == public_path(ActGrad) and method.baseline is None:
        return ActGrad()
    baseline = arguments.get("baseline")
    if path == public_path(IntGrad) and baseline in (method.baseline, method.baseline or GROUND):
        return IntGrad(arguments.get("steps"), baseline)
    return method


def _first(batches: Iterable[Tensor], backbone: Backbone) -> Tensor:
    found: list[Tensor] = []
    for pictures in batches:
        found.append(pictures.detach().to(backbone.mean))
        if sum(map(len, found)) >= CHOSEN_ON:
            break
    return torch.cat(found)[:CHOSEN_ON] if found else backbone.noise(CHOSEN_ON)


def _name(method: Attribution) -> str:
    if isinstance(method, IntGrad):
        start = " from the ground" if method.baseline == GROUND else ""
        return f"integrated gradients{start} in {method.steps} step{'s' * (method.steps != 1)}"
    return "act×grad"
