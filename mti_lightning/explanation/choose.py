"""What is explained where nothing else is asked for: which classes, attributed to which layer."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple, final

import torch
from torch import Tensor

from mti_lightning.attribution.checks import check_path
from mti_lightning.attribution.methods import ActGrad, attribute
from mti_lightning.attribution.signs import signed_map, support_mask
from mti_lightning.backbone.layers import usable_layers
from mti_lightning.backbone.layout import ActivationLayout, Layer
from mti_lightning.backbone.network import Backbone
from mti_lightning.errors import InputError
from mti_lightning.features.bound import BoundFeature
from mti_lightning.features.classes import class_layer, class_names
from mti_lightning.features.feature import Feature

_LEAST_POSITIONS = 4
_FINE, _FINER = 10, 2  # positions a side, and how many times as many as the last stage has


class Said(NamedTuple):
    """A class that the network names for a picture."""

    feature: Feature
    name: str  # of the class, or the feature's where it has none
    logit: float
    share: float | None  # of the softmax, 0..1; None where classes may not exclude each other


@final
class Answers:
    """What a network says of pictures.

    Args:
        backbone: The network.
        pictures: [N, 3, H, W] in 0..1, of its input size.
    """

    def __init__(self, backbone: Backbone, pictures: Tensor) -> None:
        self.layer, self._names = class_layer(backbone), class_names(backbone)
        self._exclusive = self._names is not None and self._names.exclusive
        with torch.no_grad():
            # None where no layer gives the network's output.
            self._logits = None if self.layer is None else backbone(pictures).flatten(1)  # [N, K]

    def first(self, picture: int, count: int) -> list[Said]:
        """Return the classes that the network says first of a picture, where they are known."""
        if self._logits is None:
            return []
        logits = self._logits[picture]
        said = []
        for index in logits.topk(min(count, len(logits))).indices.tolist():
            feature = Feature(str(self.layer), channel=index)
            name = self._names[index] if self._names else ""
            share = self.place(feature, picture)[1]
            said.append(Said(feature, name or str(feature), float(logits[index]), share))
        return said

    def place(self, feature: Feature, picture: int) -> tuple[int | None, float | None]:
        """Return a class's rank of a picture, from 1, and its share; None if it is no class."""
        known = self._logits is not None and feature.layer == str(self.layer)
        if not known or feature.channel is None:
            return None, None
        assert self._logits is not None
        logits = self._logits[picture]
        rank = int((logits > logits[feature.channel]).sum()) + 1
        share = float(logits.softmax(0)[feature.channel]) if self._exclusive else None
        return rank, share


def choose_layer(
    backbone: Backbone, pictures: Tensor, bound_features: Sequence[BoundFeature]
) -> tuple[Layer, str]:
    """Return the last layer whose positions feed all features, and a line that says so.

    Best is one with a fine grid, which tells things in the picture apart: of 10 positions a side or
    more, or where that is fewer, of twice as many as the last stage has. Other networks see what
    excites and inhibits more often in inversions from there (benchmarks/judged_pairs.py). Ends of
    stages come first, as timm lists them: inside of a block there is only part of what goes on. A
    layer counts if several of its positions do: behind a transformer's last attention only the
    class token does. Best is one at which they do beside the class token, too.

    Args:
        backbone: The network.
        pictures: [N, 3, H, W] in 0..1, of its input size; the first is tried.
        bound_features: The features, of any layers.

    Raises:
        InputError: If there is none.
    """
    sides = (_side(backbone, layer) for layer, *_ in _candidates(backbone))
    least = min(_FINE, _FINER * next(filter(None, sides), 0))
    for layer, kind, fine, beside_class_token in _candidates(backbone):
        if fine and _side(backbone, layer) < least:
            continue
        found = _positions(backbone, pictures[:1], bound_features, layer, beside_class_token)
        if found >= _LEAST_POSITIONS:
            grid = "×".join(map(str, backbone.layout(layer).grid or ()))
            of = "on a fine grid " if fine else ""
            return (
                layer,
                f"attributed to {layer}, the last {kind} with positions {of}that feed it ({grid})",
            )
    raise InputError(
        f"no layer of {backbone.name} with {_LEAST_POSITIONS} positions or more feeds "
        f"{', '.join(one.shown for one in bound_features)}; name one"
    )


def _candidates(backbone: Backbone) -> Iterator[tuple[Layer, str, bool, bool]]:
    """Yield layers, what each is, and what has to hold there.

    That is whether the grid has to be fine, and positions to count beside a class token.
    """
    told: object = getattr(backbone.network, "feature_info", None)
    named = [str(one["module"]) for one in told] if isinstance(told, list) else []
    for fine, beside_class_token in product((True, False), repeat=2):
        yield from ((Layer(name), "stage", fine, beside_class_token) for name in reversed(named))
    for one in reversed(usable_layers(backbone)):
        if one.attributable and one.layer.side == "output":
            yield one.layer, "layer", False, False


def _side(backbone: Backbone, layer: Layer) -> int:
    """Return how many positions a side the grid has; 0 without one."""
    try:
        return min(backbone.layout(layer).grid or (0,))
    except InputError:  # it cannot be tapped
        return 0


def _positions(
    backbone: Backbone,
    picture: Tensor,
    bound_features: Sequence[BoundFeature],
    layer: Layer,
    beside_class_token: bool,
) -> int:
    """Return how many positions of the grid count for each feature at least; 0 without a grid."""
    counts = []
    try:
        layout = backbone.layout(layer)
        if layout.grid is None:
            return 0
        for one in bound_features:
            check_path(backbone, one, layer)
            _, attribution, _ = attribute(backbone, picture, [one], layer, ActGrad())
            if beside_class_token:
                support = support_mask(attribution, channel_dim=layout.channel_dim)
                counts.append(int(on_grid(support, layout).sum()))
            else:
                counts.append(int(support_mask(on_grid(attribution, layout)).sum()))
    except InputError:  # it cannot be tapped, or does not feed the feature
        return 0
    return min(counts)


def on_grid(attribution: Tensor, layout: ActivationLayout) -> Tensor:
    """Return how much each position excites or inhibits, [N, 1, rows, columns].

    Of tokens it leaves out those that lie outside of the grid, as a class token.
    """
    return layout.on_grid(signed_map(attribution, layout.channel_dim))[:, None]
