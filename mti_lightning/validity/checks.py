"""The checks of natural pictures: what they measure. Pure functions on tensors and networks."""

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mti_lightning.attribution import signs
from mti_lightning.attribution.methods import Attribution, attribute, baseline_of
from mti_lightning.attribution.tension import Tension
from mti_lightning.backbone import Backbone, Layer
from mti_lightning.features.bound import BoundFeature
from mti_lightning.images.seeds import START, derive_seed, generator_at
from mti_lightning.images.views import Views

_BINS = 100  # as Hedström et al. have it
_SLIGHT = Views(box=(0.96, 0.99), jitter=0.01, noise=0.01)


def silence(
    head: Callable[[Tensor], Tensor],
    activations: Tensor,
    attribution: Tensor,
    response: Tensor,
    units: Tensor,
    baseline: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Set units to a baseline; return the predicted and real change of the response, [N] each.

    Args:
        head: Computes responses from activations.
        activations: a; a unit is one of its elements: a channel at a position.
        attribution: A.
        response: r, [N], of the activations as they are.
        units: Which ones, bool of the same shape.
        baseline: b, of a shape that expands to theirs; by default 0.
    """
    predicted = -(attribution * units).flatten(1).sum(1)
    silent = torch.zeros_like(activations[:1]) if baseline is None else baseline
    return predicted, head(torch.where(units, silent, activations)) - response


def random_units(activations: Tensor, units: Tensor, keys: Sequence[int]) -> Tensor:
    """Return as many random active units of each picture as there are `units`, bool of that shape.

    Args:
        activations: a; a unit is active where it is not 0.
        units: Those to match in number.
        keys: The pictures' random streams.
    """
    drawn = torch.stack(
        [torch.rand(units.shape[1:], generator=generator_at(k, START)) for k in keys]
    )
    order = drawn.to(activations).add(2 * (activations == 0)).flatten(1)
    rank = order.argsort(1).argsort(1)
    return (rank < units.flatten(1).sum(1, keepdim=True)).view_as(units)


def picture_keys(seed: int, indices: Sequence[int]) -> list[int]:
    """Return the keys of pictures' random streams, by their places in the data."""
    return [derive_seed(seed, index) for index in indices]


def modules_between(backbone: Backbone, layer: Layer, target: Layer) -> list[str]:
    """Return the modules with parameters that run after one layer, up to another, in order."""
    modules = dict(backbone.network.named_modules())
    own = [name for name, module in modules.items() if [*module.parameters(recurse=False)]]
    run: list[str | None] = []  # None stands for the layer itself

    def note(name: str | None) -> Callable[..., None]:
        return lambda *_: run.append(name)

    at, handles = modules[layer.module], []
    if layer.side == "input":
        handles += [at.register_forward_pre_hook(note(None))]
    handles += [modules[name].register_forward_pre_hook(note(name)) for name in own]
    if layer.side == "output":
        handles += [at.register_forward_hook(note(None))]
    try:
        backbone.run(backbone.mean.new_full((1, 3, *backbone.preprocessing.size), 0.5), [target])
    finally:
        for handle in handles:
            handle.remove()
    after = dict.fromkeys(name for name in run[run.index(None) :] if name is not None)
    if target.side == "input":
        after.pop(target.module, None)
    return list(after)


def shuffled(backbone: Backbone, modules: Sequence[str], seed: int = 0) -> Backbone:
    """Return a copy of a network, the parameters of some modules each shuffled within itself."""
    other = copy.deepcopy(backbone)
    generator = torch.Generator().manual_seed(seed)
    for name in modules:
        for parameter in other.network.get_submodule(name).parameters(recurse=False):
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.data = parameter.data.flatten()[order].view_as(parameter)
    return other


def check_pictures(
    backbone: Backbone,
    pictures: Tensor,
    bound_feature: BoundFeature,
    layer: Layer,
    method: Attribution,
    tension: Tension,
    keys: Sequence[int],
) -> tuple[dict[str, Tensor], Tensor]:
    """Measure what the checks of natural pictures need.

    Args:
        backbone: The network.
        pictures: [N, 3, H, W] in 0..1.
        bound_feature: The feature.
        layer: The attribution layer.
        method: The attribution method.
        tension: The tension measure.
        keys: The pictures' random streams.

    Returns:
        By what was measured a number for each picture, [N]; and A.
    """

    def head(activations: Tensor) -> Tensor:
        with torch.no_grad():
            tapped = backbone.run(pictures, [bound_feature.layer], insert={layer: activations})
            responses: Tensor = bound_feature(tapped[bound_feature.layer])
            return responses

    bound_features, layout = [bound_feature] * len(pictures), backbone.layout(layer)
    activations, attribution, response = attribute(
        backbone, pictures, bound_features, layer, method
    )
    baseline = baseline_of(method, layout, activations)
    moved = activations - baseline
    found = {
        "response": response,
        "silent": head(baseline.expand_as(activations).contiguous()),
        "off": head(torch.zeros_like(activations)),
        "total": attribution.flatten(1).sum(1),
        "tension": tension(attribution, layout),
    }
    for which, units in (("inhibitory", attribution < 0), ("excitatory", attribution > 0)):
        active = units & (moved != 0)
        chosen = {which: active, f"random {which}": random_units(moved, active, keys)}
        for name, silenced in chosen.items():
            predicted, real = silence(head, activations, attribution, response, silenced, baseline)
            found |= {f"{name} predicted": predicted, f"{name} real": real}
    views = _SLIGHT(pictures, keys, 0, (pictures.shape[2], pictures.shape[3]))
    seen = attribute(backbone, views, bound_features, layer, method)[1]
    found["view"] = signs.cosine(attribution, seen)
    return found, attribution


def check_neighbours(attribution: Tensor, before: Tensor | None) -> Tensor:
    """Return the cosine of each picture's A with that of the picture before it, [N].

    Args:
        attribution: A, of a batch.
        before: A of the last picture before the batch, [1, ...]; where there is none, NaN comes
            first.
    """
    shifted = torch.cat([attribution[:1] if before is None else before, attribution[:-1]])
    found = signs.cosine(attribution, shifted)
    if before is None:
        found[0] = torch.nan
    return found


def check_randomised(
    networks: Mapping[str, Backbone],
    pictures: Tensor,
    attribution: Tensor,
    bound_feature: BoundFeature,
    layer: Layer,
    method: Attribution,
) -> dict[str, Tensor]:
    """Compare A with what it is in networks whose layers behind it were randomised.

    Besides the cosine of each, [N], which says little alone, how much more complex A becomes: eMPRT
    of Hedström et al. 2024 (arXiv 2401.06465), (ξ(random) − ξ(own)) / ξ(own) after the last, full
    randomisation. There an explanation of noise is more complex than one of a trained network.

    Returns:
        For each network the cosine, and for the last the share of |A| that keeps its sign, and the
        `complexity's rise`, [N] each.
    """
    found, other = {}, attribution
    strength, same = attribution.abs(), torch.zeros_like(attribution)
    for name, network in networks.items():
        other = attribute(network, pictures, [bound_feature] * len(pictures), layer, method)[1]
        found[name] = signs.cosine(attribution, other)
        same = strength * (attribution.sign() == other.sign())
    own, random = complexity(attribution), complexity(other)
    found["complexity's rise"] = (random - own) / own.where(own > 0, torch.nan)
    found["signs kept"] = same.flatten(1).sum(1) / strength.flatten(1).sum(1).clamp(min=1e-12)
    return found


def complexity(attribution: Tensor) -> Tensor:
    """Return ξ, the entropy of the histogram of each picture's A in 100 bins, [N], in nats."""
    counts = torch.stack([row.cpu().float().histc(_BINS) for row in attribution.flatten(1)])
    entropy: Tensor = torch.special.entr(counts / counts.sum(1, keepdim=True)).sum(1)
    return entropy.to(attribution)
