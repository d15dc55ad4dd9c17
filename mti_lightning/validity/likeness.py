"""How like a photograph a network processes rendered pictures, layer by layer."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mti_lightning.backbone import Backbone, Layer
from mti_lightning.backbone.layers import usable_layers
from mti_lightning.images.views import whole
from mti_lightning.objectives.base import Objective
from mti_lightning.validity.limits import Finding, finding, unmeasured

PHOTOGRAPHS = 64  # that rendered pictures are held against
_FEWEST = 16  # of fewer each may have none that is like it
_LEAST_APART = 0.05  # noise and photographs, by cosine: nearer, nothing lies between
_CHECK = "likeness to photographs"
_LAYERS = 6
_NOISE = 16  # pictures of noise
_BATCH = 32


@torch.enable_grad()  # the network is traced
def layers_up_to(backbone: Backbone, target: Layer) -> list[Layer]:
    """Return a few layers that lie evenly between the pictures and a layer, and that layer."""
    modules = dict(backbone.network.named_modules())
    before: list[Layer] = []
    for one in usable_layers(backbone):
        if one.layer == target:
            break
        if one.layer.side == "output" and one.layout.grid is not None:
            before.append(one.layer)
    blocks = [layer for layer in before if [*modules[layer.module].children()]]
    before = blocks if len(blocks) >= _LAYERS else before
    count = min(_LAYERS - 1, len(before))
    return [*(before[(i + 1) * len(before) // (count + 1)] for i in range(count)), target]


@torch.no_grad()
def processed(backbone: Backbone, pictures: Tensor, layers: Sequence[Layer]) -> list[Tensor]:
    """Return the mean activation of each channel of some layers, [N, C] each."""
    found: list[list[Tensor]] = [[] for _ in layers]
    for first in range(0, len(pictures), _BATCH):
        part = pictures[first : first + _BATCH].to(backbone.mean)
        tapped = backbone.run(part, layers)
        for layer, values in zip(layers, found, strict=True):
            values.append(backbone.layout(layer).pool_mean(tapped[layer]))
    return [torch.cat(values) for values in found]


def likeness(rendered: Tensor, photographs: Tensor, noise: Tensor) -> float:
    """Return how near to photographs pictures are processed: 0 like noise, 1 like photographs.

    Above 1 they are nearer to one than photographs are to each other. NaN where noise is as near.

    A picture's nearness is the cosine of its activations, from the photographs' mean on, with those
    of the photograph most like it; a photograph's, with the most like of the others. After Geirhos
    et al. 2023 (arXiv 2306.04719), who put feature visualisations between photographs of the same
    class and of others by their similarity to natural pictures layer by layer.

    Args:
        rendered: [N, C].
        photographs: [M, C].
        noise: [K, C].
    """
    centre = photographs.mean(0)
    seen, natural, random = (
        normalize(values - centre, dim=1) for values in (rendered, photographs, noise)
    )
    among = (natural @ natural.T).fill_diagonal_(-1)
    near, own, far = (
        float(cosines.amax(1).mean()) for cosines in (seen @ natural.T, among, random @ natural.T)
    )
    return (near - far) / (own - far) if own - far > _LEAST_APART else math.nan


@torch.no_grad()
def check_likeness(objective: Objective, photographs: Sequence[Tensor], target: Layer) -> Finding:
    """Measure how like a photograph finished pictures are processed, up to a feature's layer.

    Args:
        objective: The pictures.
        photographs: Natural pictures, [3, H, W] each, but for those that were inverted.
        target: The feature's layer.
    """
    if len(photographs) < _FEWEST:
        why = f"it takes {_FEWEST} pictures besides those that were inverted"
        return unmeasured(_CHECK, why)
    backbone, layers = objective.backbone, layers_up_to(objective.backbone, target)
    rendered = torch.cat([whole(chunk(), objective.input_size) for chunk in objective.chunks])
    parts = (processed(backbone, one, layers) for one in (rendered, torch.stack([*photographs])))
    noise = processed(backbone, backbone.noise(_NOISE), layers)
    values = {str(layer): likeness(*of) for layer, *of in zip(layers, *parts, noise, strict=True)}
    if not (told := {layer: value for layer, value in values.items() if not math.isnan(value)}):
        return unmeasured(_CHECK, "photographs are as near to noise as to each other in all layers")
    return finding(_CHECK, told)
