"""Features: scalar functions of a backbone."""

import copy
import json
import math
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from mti_lightning.backbone import Backbone, Layer
from mti_lightning.errors import InputError

Position = str | int | tuple[int, int] | None
_POSITIONS = ("centre", "peak", "mean")
_GRAMMAR = "LAYER[/input]:CHANNEL[@POSITION], such as 'layer3.0.act2/input:12@centre'"


@dataclass(frozen=True)
class Feature:
    """A channel, or a direction in channel space, of a target layer at a position.

    Short form: `LAYER[/input]:CHANNEL[@POSITION]` or `LAYER[/input]:VECTOR[@POSITION]`, where
    VECTOR is a file (.npy, .pt; `file.npy#3` takes row 3 of a matrix) or inline (`[0.5,0,-1]`).
    Name the value *before* its activation function: `layer3.0.act2/input:12@centre`, `fc:3`.

    Args:
        layer: The target layer, as in `mti_lightning.backbone.Layer`.
        channel: Index of a channel.
        direction: Path of a vector's file, or the vector itself, [C]; the response is its dot
            product with the activations.
        position: `centre`, `peak` (the largest response anywhere), `mean`, [row, column], or a
            token's index. None for a layer without positions; elsewhere it is `centre`, and the
            first token where tokens lie on no grid.

    Raises:
        InputError: If one of them is of the wrong kind, or not exactly one of channel and
            direction is given.
    """

    layer: str
    channel: int | None = None
    direction: str | tuple[float, ...] | None = None
    position: Position = None

    def __post_init__(self) -> None:
        where = f"feature of layer {self.layer!r}"
        if not isinstance(self.layer, str) or not self.layer:
            raise InputError(f"{where}: give a layer's name")
        if (self.channel is None) == (self.direction is None):
            raise InputError(f"{where}: give either a channel or a direction")
        if self.channel is not None and type(self.channel) is not int:
            raise InputError(f"{where}: channel {self.channel!r} is no whole number")
        # Lists are what YAML has; a feature is hashable, and reads back from its short form: no -0.
        if isinstance(self.direction, list | tuple):
            if not all(isinstance(v, Real) and math.isfinite(v) for v in self.direction):
                raise InputError(f"{where}: not all of direction {self.direction} are numbers")
            object.__setattr__(self, "direction", tuple(float(v) + 0.0 for v in self.direction))
        elif not isinstance(self.direction, str | None):
            raise InputError(f"{where}: direction {self.direction!r} is neither a file nor a list")
        if isinstance(self.position, list):
            object.__setattr__(self, "position", tuple(self.position))
        if not _is_position(self.position):
            given = list(self.position) if isinstance(self.position, tuple) else self.position
            raise InputError(
                f"{where}: position {given!r} is none of centre, peak, mean, [row, column] "
                "or a token's index, counted from 0"
            )

    @classmethod
    def parse(cls, given: "str | Mapping[str, Any] | Feature") -> "Feature":
        """Read the short form, or the structured form of a YAML file.

        Raises:
            InputError: If it is neither.
        """
        if isinstance(given, Feature):
            return given
        if isinstance(given, Mapping):
            unknown = sorted(str(key) for key in given if key not in cls.__dataclass_fields__)
            if unknown or "layer" not in given:
                raise InputError(
                    f"feature {dict(given)}: takes layer, channel or direction, and position; "
                    + (f"not {', '.join(unknown)}" if unknown else "the layer is missing")
                )
            return cls(**given)
        form = r"(?P<layer>[^:@]+):(?P<what>[^@]+)(@(?P<position>[^@]+))?"
        match = re.fullmatch(form, given.strip()) if isinstance(given, str) else None
        if match is None:
            raise InputError(f"feature {given!r} is not of the form {_GRAMMAR}")
        layer, what, position = match["layer"], match["what"], _parse_position(match["position"])
        if re.fullmatch(r"-?\d+", what):
            return cls(layer, channel=int(what), position=position)
        if not what.startswith("["):
            return cls(layer, direction=what, position=position)
        try:
            return cls(layer, direction=json.loads(what), position=position)
        except json.JSONDecodeError as error:
            raise InputError(
                f"feature {given!r}: {what} is no vector; write it as [0.5,0,-1]"
            ) from error

    def __str__(self) -> str:
        what: object = self.channel if self.direction is None else self.direction
        if isinstance(what, tuple):
            what = f"[{','.join(repr(value).removesuffix('.0') for value in what)}]"
        at = self.position
        position = f"{at[0]},{at[1]}" if isinstance(at, tuple) else at
        return f"{self.layer}:{what}" + ("" if position is None else f"@{position}")


def _is_position(position: object) -> bool:
    if isinstance(position, tuple):
        return len(position) == 2 and all(type(i) is int and i >= 0 for i in position)
    if type(position) is int:
        return position >= 0
    return position is None or position in _POSITIONS


def _parse_position(text: str | None) -> Position:
    if text is None or text in _POSITIONS:
        return text
    if match := re.fullmatch(r"\[?\s*(\d+)\s*,\s*(\d+)\s*\]?", text):
        return int(match[1]), int(match[2])
    return int(text) if text.isdecimal() else text


class Probe(Module):
    """A feature bound to a backbone: checked, its direction loaded, ready to read responses.

    Raises:
        InputError: If the feature does not exist in the backbone.
    """

    direction: Tensor | None  # [C]; None for a channel

    def __init__(self, feature: Feature, backbone: Backbone) -> None:
        super().__init__()
        self.feature = feature
        self.layer = Layer.parse(feature.layer)
        self.site = backbone.site(self.layer)
        channels = self.site.channels
        if feature.channel is not None and not 0 <= feature.channel < channels:
            raise InputError(
                f"feature {str(feature)!r}: channel {feature.channel} is out of range; "
                f"layer {feature.layer!r} of {backbone.name} has channels 0..{channels - 1}"
            )
        direction = None if feature.direction is None else _load_direction(feature, channels)
        self.register_buffer("direction", direction, persistent=False)
        self.position = self._resolve(feature.position)

    def _resolve(self, position: Position) -> str | tuple[int, ...] | None:
        """Return `peak`, `mean`, an index into the positions, or None where there are none."""
        site, layer = self.site, f"layer {self.feature.layer!r}"
        feature, tokens = f"feature {str(self.feature)!r}", f"0..{site.shape[0] - 1}"
        if len(site.shape) == 1:
            if position is not None:
                at = str(self.feature).rpartition("@")[2]
                raise InputError(f"{feature}: {layer} has no positions; leave @{at} out")
            return None
        if position in ("peak", "mean"):
            return str(position)
        if position is None:
            position = "centre" if site.grid else 0
        if isinstance(position, int):
            if not site.is_tokens:
                raise InputError(
                    f"{feature}: a single index names a token, and {layer} is a map; "
                    "give row,column"
                )
            if position >= site.shape[0]:
                raise InputError(f"{feature}: {layer} has tokens {tokens}")
            return (position,)
        if site.grid is None:
            raise InputError(
                f"{feature}: the tokens of {layer} lie on no grid; "
                f"give a token {tokens}, peak or mean"
            )
        rows, columns = site.grid
        row, column = (rows // 2, columns // 2) if isinstance(position, str) else position
        if row >= rows or column >= columns:
            raise InputError(
                f"{feature}: position {row},{column} is outside the map of {layer}, "
                f"rows 0..{rows - 1}, columns 0..{columns - 1}"
            )
        return (site.prefix_tokens + row * columns + column,) if site.is_tokens else (row, column)

    def forward(self, activations: Tensor) -> Tensor:
        """Return responses, [N], for the target layer's activations."""
        return _reduced(
            self._select(_read(activations, self.site.channel_dim, self.position)), self.position
        )

    def moved(self, position: str | tuple[int, ...] | None) -> "Probe":
        """Return the same feature at another position, as in a part of the map."""
        other = copy.copy(self)
        other.position = position
        return other

    def _select(self, values: Tensor) -> Tensor:
        if self.direction is None:
            return values[..., self.feature.channel]
        return values @ self.direction.to(values)


@final
class ProbeGroup:
    """Several features of one target layer at one position, read at once."""

    def __init__(self, probes: Sequence[Probe]) -> None:
        self.probes = tuple(probes)
        self.position = probes[0].position
        self.channels = [probe.feature.channel for probe in probes]
        self.directions: Tensor | None = None  # [C, F], where not all are channels
        if None in self.channels:
            basis = torch.eye(probes[0].site.channels)
            rows = [
                basis[probe.feature.channel] if probe.direction is None else probe.direction
                for probe in probes
            ]
            self.directions = torch.stack(rows, 1)

    @staticmethod
    def of(probes: Sequence[Probe]) -> dict["ProbeGroup", list[int]]:
        """Return the groups that features fall into, each with its features' places."""
        places: dict[tuple[Layer, object], list[int]] = {}
        for place, probe in enumerate(probes):
            places.setdefault((probe.layer, probe.position), []).append(place)
        return {ProbeGroup([probes[i] for i in where]): where for where in places.values()}

    def moved(self, position: str | tuple[int, ...] | None) -> "ProbeGroup":
        """Return the same features at another position, as in a part of the map."""
        other = copy.copy(self)
        other.position = position
        return other

    def every_channel(self) -> "ProbeGroup":
        """Return all channels of the layer, at the same position."""
        return self.with_channels(range(self.probes[0].site.channels))

    def with_channels(self, channels: Sequence[int]) -> "ProbeGroup":
        """Return some channels of the layer, at the same position."""
        other = copy.copy(self)
        other.channels, other.directions = list(channels), None
        return other

    def __call__(self, activations: Tensor) -> Tensor:
        """Return responses, [N, F], for the target layer's activations."""
        values = _read(activations, self.probes[0].site.channel_dim, self.position)
        if self.directions is None:
            return _reduced(values[..., self.channels], self.position)
        return _reduced(values @ self.directions.to(values), self.position)


def _read(activations: Tensor, channel_dim: int, position: str | tuple[int, ...] | None) -> Tensor:
    """Return what lies at a position, [N, C], or at all of them, [N, P, C]."""
    values = activations.movedim(channel_dim, -1)  # [N, ..., C]
    if isinstance(position, tuple):
        index: tuple[slice | int, ...] = (slice(None), *position)
        return values[index]  # a single position is read alone
    return values.flatten(1, -2) if position else values


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
            layer, position = match[1], _parse_position(match[2])
        elif isinstance(one, Mapping) and one.get("channel") == "*":
            whole = Feature.parse({**one, "channel": 0})
            layer, position = whole.layer, whole.position
        else:
            features.append(Feature.parse(one))
            continue
        channels = backbone.site(Layer.parse(layer)).channels
        features += [Feature(layer, channel=i, position=position) for i in range(channels)]
    return features


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
    path, _, row = given.partition("#")
    if not Path(path).is_file():
        raise InputError(
            f"{name}: no file {path!r}; a direction is a .npy or .pt file, or a vector [v0,v1,...]"
        )
    try:
        if path.endswith((".pt", ".pth")):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        else:
            loaded = np.load(path, allow_pickle=False)
        matrix = torch.as_tensor(loaded).float()
    except (OSError, EOFError, ValueError, TypeError, RuntimeError, pickle.PickleError) as error:
        reason = f"{path} holds no array of numbers, or it is no .npy or .pt file"
        raise InputError(f"{name}: {reason}") from error
    if not row:
        return matrix
    if not row.isdecimal() or matrix.ndim != 2 or int(row) >= len(matrix):
        raise InputError(f"{name}: {path} holds {list(matrix.shape)}, which has no row {row!r}")
    return matrix[int(row)]


def activation_warning(feature: Feature, backbone: Backbone) -> str | None:
    """Say so if a feature is read after its activation function: absent is like vetoed there."""
    layer = Layer.parse(feature.layer)
    module = backbone.network.get_submodule(layer.module)
    if layer.side == "output" and "activation" in type(module).__module__:
        return (
            f"feature {str(feature)!r} is read after its activation function; "
            f"before it is {layer.module}/input"
        )
    return None
