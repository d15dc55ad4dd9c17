"""What parts of pictures do to responses, by leaving them out: the truth that attributions claim.

It takes forward passes alone, and nothing that an attribution method is made of.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from mti_lightning.attribution import signs
from mti_lightning.attribution.tension import combine
from mti_lightning.backbone import ActivationLayout, Backbone
from mti_lightning.errors import InputError
from mti_lightning.features.bound import BoundFeature

_SEEN = 0.25  # how opaque a part has to be in a pixel for that to be of its place


def tells_parts(layout: ActivationLayout) -> bool:
    """Return whether a layer has positions by which parts of a picture can be told apart."""
    return layout.grid is not None and min(layout.grid) > 1


@torch.no_grad()
def effects_of_parts(
    backbone: Backbone, pictures: Tensor, without: Tensor, bound_features: Sequence[BoundFeature]
) -> Tensor:
    """Return e = r(picture) − r(picture without the part), of each part on each feature, [N, F, K].

    Args:
        backbone: The network.
        pictures: [N, 3, H, W] in 0..1.
        without: The same pictures, each without one of its parts, [N, K, 3, H, W].
        bound_features: The features, [F] of them.
    """
    layers = list(dict.fromkeys(bound_feature.layer for bound_feature in bound_features))

    def respond(shown: Tensor) -> Tensor:
        tapped = backbone.run(shown, layers)
        return torch.stack([read(tapped[read.layer]) for read in bound_features], 1)  # [N, F]

    left_out = [respond(without[:, part]) for part in range(without.shape[1])]
    return respond(pictures)[..., None] - torch.stack(left_out, -1)


def attributed_to_parts(attribution: Tensor, masks: Tensor, layout: ActivationLayout) -> Tensor:
    """Return the sum of attributions over the place of each part, [N, K].

    A position at a part's edge counts by the share of its pixels that are the part's.

    Args:
        attribution: A, [N, ...].
        masks: How much of a part is in each pixel, 0..1, [N, K, H, W].
        layout: How the layer's activations lie.

    Raises:
        InputError: If the layer has no positions on a grid.
    """
    if layout.grid is None:
        raise InputError("the attribution layer has no positions: nothing tells its parts apart")
    signed = layout.on_grid(signs.signed_map(attribution, layout.channel_dim))  # [N, H, W]
    places = adaptive_avg_pool2d((masks > _SEEN).float(), layout.grid)  # [N, K, H, W]
    return (signed[:, None] * places).flatten(2).sum(2)


def true_signs(effects: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return true E⁺ = Σ max(e, 0), E⁻ = Σ max(−e, 0) over parts, and their geometric mean.

    Args:
        effects: e, [..., K].
    """
    excited, inhibited = effects.clamp(min=0).sum(-1), (-effects).clamp(min=0).sum(-1)
    return excited, inhibited, combine("geometric", excited, inhibited)
