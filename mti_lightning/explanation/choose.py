"""What is explained where nothing else is asked for: which classes, attributed to which layer."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
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
from mti_lightning.features.classes import class_layer, class_names, display
from mti_lightning.features.feature import Feature

_LEAST_POSITIONS = 4


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

    Ends of stages come first, as timm lists them: inside of a block there is only part of what goes
    on. A layer counts if several of its positions do: behind a transformer's last attention only
    the class token does.

    Args:
        backbone: The network.
        pictures: [N, 3, H, W] in 0..1, of its input size.
        bound_features: The features, of any layers.

    Raises:
        InputError: If there is none.
    """
    for layer, kind in _candidates(backbone):
        with suppress(InputError):
            layout = backbone.layout(layer)
            if layout.grid is None:
                continue
            for bound_feature in bound_features:
                check_path(backbone, bound_feature, layer)
            if all(
                _positions(backbone, pictures[:1], one, layer, layout) >= _LEAST_POSITIONS
                for one in bound_features
            ):
                rows, columns = layout.grid
                return layer, f"attributed to {layer}, the last {kind} ({rows}×{columns})"
    raise InputError(
        f"no layer of {backbone.name} with {_LEAST_POSITIONS} positions or more feeds "
        f"{', '.join(display(one.feature, one.class_name) for one in bound_features)}; name one"
    )


def _candidates(backbone: Backbone) -> Iterator[tuple[Layer, str]]:
    """Yield layers from the last on, ends of stages first."""
    told: object = getattr(backbone.network, "feature_info", None)
    stages = told if isinstance(told, list) else []
    for name in reversed([str(one["module"]) for one in stages]):
        yield Layer(name), "stage with positions that feed it"
    for one in reversed(usable_layers(backbone)):
        if one.attributable and one.layer.side == "output":
            yield one.layer, "layer with positions that feed it"


def _positions(
    backbone: Backbone,
    picture: Tensor,
    bound_feature: BoundFeature,
    layer: Layer,
    layout: ActivationLayout,
) -> int:
    """Return how many positions of the grid count for a feature, a class token beside them."""
    _, attribution, _ = attribute(backbone, picture, [bound_feature], layer, ActGrad())
    support = support_mask(attribution, channel_dim=layout.channel_dim)
    return int(on_grid(support, layout).sum())


def on_grid(attribution: Tensor, layout: ActivationLayout) -> Tensor:
    """Return how much each position excites or inhibits, [N, 1, rows, columns].

    Of tokens it leaves out those that lie outside of the grid, as a class token.
    """
    assert layout.grid is not None
    signed = signed_map(attribution, layout.channel_dim)
    if layout.is_tokens:
        signed = signed[:, layout.prefix_tokens :]
    return signed.reshape(len(attribution), 1, *layout.grid)
