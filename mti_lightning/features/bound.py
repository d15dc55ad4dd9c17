"""Features bound to a backbone: checked, and ready to read responses, one or many at once."""

import copy
import pickle
import re
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from mti_lightning.backbone import Backbone, Layer
from mti_lightning.backbone.layers import read_after
from mti_lightning.errors import InputError
from mti_lightning.features.classes import display, names_of, read_feature, short
from mti_lightning.features.feature import Feature, Position, parse_position
from mti_lightning.files import at_home


class BoundFeature(Module):
    """A feature bound to a backbone: checked, its direction loaded, ready to read responses.

    Raises:
        InputError: If the feature does not exist in the backbone.
    """

    direction: Tensor | None  # [C]; None for a channel

    def __init__(self, feature: Feature, backbone: Backbone) -> None:
        super().__init__()
        self.feature = feature
        self.layer = Layer.parse(feature.layer)
        self.layout = backbone.layout(self.layer)
        channels = self.layout.channels
        if feature.channel is not None and not 0 <= feature.channel < channels:
            raise InputError(
                f"feature {str(feature)!r}: channel {feature.channel} is out of range; "
                f"layer {feature.layer!r} of {backbone.name} has channels 0..{channels - 1}"
            )
        direction = None if feature.direction is None else _load_direction(feature, channels)
        self.register_buffer("direction", direction, persistent=False)
        self.position = self._resolve(feature.position)
        self.class_names = names_of(feature, backbone)  # none where it is no class

    @property
    def class_name(self) -> str:
        """The name of the class that the feature stands for; "" where it stands for none."""
        return short(self.class_names)

    @property
    def shown(self) -> str:
        """How the feature is shown to people, by its class's name, too."""
        return display(self.feature, self.class_name)

    def _resolve(self, position: Position) -> str | tuple[int, ...] | None:
        """Return `peak`, `mean`, an index into the positions, or None where there are none."""
        layout, layer = self.layout, f"layer {self.feature.layer!r}"
        feature, tokens = f"feature {str(self.feature)!r}", f"0..{layout.shape[0] - 1}"
        if len(layout.shape) == 1:
            if position is not None:
                at = str(self.feature).rpartition("@")[2]
                raise InputError(f"{feature}: {layer} has no positions; leave @{at} out")
            return None
        if position in ("peak", "mean"):
            return str(position)
        if position is None:
            position = "centre" if layout.grid else 0
        if isinstance(position, int):
            if not layout.is_tokens:
                raise InputError(
                    f"{feature}: a single index names a token, and {layer} is a map; "
                    "give row,column"
                )
            if position >= layout.shape[0]:
                raise InputError(f"{feature}: {layer} has tokens {tokens}")
            return (position,)
        if layout.grid is None:
            raise InputError(
                f"{feature}: the tokens of {layer} lie on no grid; "
                f"give a token {tokens}, peak or mean"
            )
        rows, columns = layout.grid
        row, column = (rows // 2, columns // 2) if isinstance(position, str) else position
        if row >= rows or column >= columns:
            raise InputError(
                f"{feature}: position {row},{column} is outside the map of {layer}, "
                f"rows 0..{rows - 1}, columns 0..{columns - 1}"
            )
        return (
            (layout.prefix_tokens + row * columns + column,) if layout.is_tokens else (row, column)
        )

    def forward(self, activations: Tensor) -> Tensor:
        """Return responses, [N], for the target layer's activations."""
        values = self._select(self.layout.at(activations, self.position))
        return _reduced(values, self.position)

    def moved(self, position: str | tuple[int, ...] | None) -> "BoundFeature":
        """Return the same feature at another position, as in a part of the map."""
        other = copy.copy(self)
        other.position = position
        return other

    def _select(self, values: Tensor) -> Tensor:
        if self.direction is None:
            return values[..., self.feature.channel]
        return values @ self.direction.to(values)


@final
class FeatureGroup:
    """Several features of one target layer at one position, read at once."""

    def __init__(self, bound_features: Sequence[BoundFeature]) -> None:
        self.bound_features = tuple(bound_features)
        self.position = bound_features[0].position
        self.channels = [bound_feature.feature.channel for bound_feature in bound_features]
        self.directions: Tensor | None = None  # [C, F], where not all are channels
        if None in self.channels:
            basis = torch.eye(bound_features[0].layout.channels)
            rows = [
                basis[bound_feature.feature.channel]
                if bound_feature.direction is None
                else bound_feature.direction
                for bound_feature in bound_features
            ]
            self.directions = torch.stack(rows, 1)

    @staticmethod
    def of(bound_features: Sequence[BoundFeature]) -> dict["FeatureGroup", list[int]]:
        """Return the groups that features fall into, each with its features' places."""
        places: dict[tuple[Layer, object], list[int]] = {}
        for place, bound_feature in enumerate(bound_features):
            places.setdefault((bound_feature.layer, bound_feature.position), []).append(place)
        return {
            FeatureGroup([bound_features[i] for i in where]): where for where in places.values()
        }

    def moved(self, position: str | tuple[int, ...] | None) -> "FeatureGroup":
        """Return the same features at another position, as in a part of the map."""
        other = copy.copy(self)
        other.position = position
        return other

    def every_channel(self) -> "FeatureGroup":
        """Return all channels of the layer, at the same position."""
        return self.with_channels(range(self.bound_features[0].layout.channels))

    def with_channels(self, channels: Sequence[int]) -> "FeatureGroup":
        """Return some channels of the layer, at the same position."""
        other = copy.copy(self)
        other.channels, other.directions = list(channels), None
        return other

    def __len__(self) -> int:
        return len(self.channels)

    def __call__(self, activations: Tensor) -> Tensor:
        """Return responses, [N, F], for the target layer's activations."""
        values = self.bound_features[0].layout.at(activations, self.position)
        if self.directions is None:
            channels = torch.tensor(self.channels).to(values.device, non_blocking=True)
            return _reduced(values.index_select(-1, channels), self.position)
        directions = self.directions.to(values, non_blocking=True)
        return _reduced(values @ directions, self.position)


def _reduced(values: Tensor, position: str | tuple[int, ...] | None) -> Tensor:
    """Reduce over positions, [N, P] or [N, P, F], where there are several."""
    if position == "peak":
        return values.max(1).values  # unlike amax it has its gradient at one position alone
    return values.mean(1) if position == "mean" else values


def expand(given: Sequence[str | Mapping[str, Any] | Feature], backbone: Backbone) -> list[Feature]:
    """Read features; `LAYER:*[@POSITION]` or `channel: "*"` stands for every channel of a layer.

    Raises:
        InputError: If one cannot be read, or its layer does not exist.
    """
    features: list[Feature] = []
    for one in given:
        if isinstance(one, str) and (
            match := re.fullmatch(r"([^:@]+):\*(?:@([^@]+))?", one.strip())
        ):
            layer, position = match[1], parse_position(match[2])
        elif isinstance(one, Mapping) and one.get("channel") == "*":
            whole = Feature.parse({**one, "channel": 0})
            layer, position = whole.layer, whole.position
        else:
            features.append(read_feature(one, backbone))
            continue
        channels = backbone.layout(Layer.parse(layer)).channels
        features += [Feature(layer, channel=i, position=position) for i in range(channels)]
    return features


def activation_warning(feature: Feature, backbone: Backbone) -> str | None:
    """Say so if a feature is read after activation functions: absent is like vetoed there."""
    before = read_after(Layer.parse(feature.layer), backbone)
    if before is None:
        return None
    return f"feature {str(feature)!r} is read after its activation function{before}"


def _load_direction(feature: Feature, channels: int) -> Tensor:
    name = f"feature {str(feature)!r}"
    if isinstance(feature.direction, str):
        direction = _read_vector(name, feature.direction)
    else:
        direction = torch.tensor(feature.direction)
    if direction.shape != (channels,):
        raise InputError(
            f"{name}: the direction is {list(direction.shape)}; "
            f"layer {feature.layer!r} takes a vector of {channels} values, [{channels}]"
        )
    if not direction.isfinite().all():
        raise InputError(f"{name}: not all values of the direction are finite")
    return direction


def _read_vector(name: str, given: str) -> Tensor:
    path, _, row = (given, "", "") if at_home(given).is_file() else given.rpartition("#")
    path = path or given
    if not (file := at_home(path)).is_file():
        raise InputError(
            f"{name}: no file {path!r}; a direction is a .npy or .pt file, or a vector [v0,v1,...]"
        )
    try:
        if path.endswith((".pt", ".pth")):
            loaded = torch.load(file, map_location="cpu", weights_only=True)
        else:
            loaded = np.load(file, allow_pickle=False)
        matrix = torch.as_tensor(loaded).float()
    except (OSError, EOFError, ValueError, TypeError, RuntimeError, pickle.PickleError) as error:
        reason = f"{path} holds no array of numbers, or it is no .npy or .pt file"
        raise InputError(f"{name}: {reason}") from error
    if not row:
        return matrix
    if not row.isdecimal() or matrix.ndim != 2 or int(row) >= len(matrix):
        raise InputError(f"{name}: {path} holds {list(matrix.shape)}, which has no row {row!r}")
    return matrix[int(row)]
