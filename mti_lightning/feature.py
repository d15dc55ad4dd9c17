"""Features: scalar functions of a backbone."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from mti_lightning.backbone import Backbone, Layer, Site
from mti_lightning.errors import InputError

Position = str | int | tuple[int, int] | None
_POSITIONS = ("centre", "peak", "mean")
_GRAMMAR = "LAYER[/input]:CHANNEL[@POSITION], such as 'layer3.0.act2/input:12@centre'"
_ACTIVATIONS = "torch.nn.modules.activation"


@dataclass(frozen=True)
class Feature:
    """A channel, or a direction in channel space, of a target layer at a position.

    Short form: `LAYER[/input]:CHANNEL[@POSITION]` or `LAYER[/input]:VECTOR[@POSITION]`, where VECTOR is a file (.npy, .pt;
    `file.npy#3` takes row 3 of a matrix) or inline (`[0.5,0,-1]`). Name the value *before* its activation function:
    `layer3.0.act2/input:12@centre`, `fc:3`.

    Args:
        layer: The target layer, as in `mti_lightning.backbone.Layer`.
        channel: Index of a channel.
        direction: Path of a vector's file, or the vector itself, [C]; the response is its dot product with the activations.
        position: `centre`, `peak` (the largest response anywhere), `mean`, [row, column], or a token's index. None for a
            layer without positions; elsewhere it is `centre`, and the first token where tokens lie on no grid.
    """

    layer: str
    channel: int | None = None
    direction: str | tuple[float, ...] | None = None
    position: Position = None

    def __post_init__(self) -> None:
        if (self.channel is None) == (self.direction is None):
            raise InputError(f"feature of layer {self.layer!r}: give either a channel or a direction")
        if isinstance(self.position, str) and self.position not in _POSITIONS:
            raise InputError(
                f"feature of layer {self.layer!r}: position {self.position!r} is none of centre, peak, mean, "
                "[row, column] or a token's index"
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
            unknown = set(given) - set(cls.__dataclass_fields__)
            if unknown or "layer" not in given:
                raise InputError(
                    f"feature {dict(given)}: takes layer, channel or direction, and position; "
                    + (f"not {', '.join(sorted(unknown))}" if unknown else "the layer is missing")
                )
            direction, position = given.get("direction"), given.get("position")
            return cls(
                given["layer"],
                given.get("channel"),
                tuple(direction) if isinstance(direction, Sequence) and not isinstance(direction, str) else direction,
                tuple(position) if isinstance(position, list) else position,  # type: ignore[arg-type]
            )
        match = re.fullmatch(r"(?P<layer>[^:@]+):(?P<what>[^@]+)(@(?P<position>[^@]+))?", given.strip())
        if match is None:
            raise InputError(f"feature {given!r} is not of the form {_GRAMMAR}")
        what, position = match["what"], _parse_position(match["position"])
        if re.fullmatch(r"-?\d+", what):
            return cls(match["layer"], channel=int(what), position=position)
        direction = tuple(json.loads(what)) if what.startswith("[") else what
        return cls(match["layer"], direction=direction, position=position)

    def __str__(self) -> str:
        what = str(self.channel) if self.direction is None else self.direction
        what = what if isinstance(what, str) else json.dumps(list(what), separators=(",", ":"))
        position = ",".join(map(str, self.position)) if isinstance(self.position, tuple) else self.position
        return f"{self.layer}:{what}" + ("" if position is None else f"@{position}")


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

    direction: Tensor  # [C]

    def __init__(self, feature: Feature, backbone: Backbone) -> None:
        super().__init__()
        self.feature = feature
        self.layer = Layer.parse(feature.layer)
        self.site = backbone.site(self.layer)
        if feature.channel is not None:
            if not 0 <= feature.channel < self.site.channels:
                raise InputError(
                    f"feature {str(feature)!r}: channel {feature.channel} is out of range; "
                    f"layer {feature.layer!r} of {backbone.name} has channels 0..{self.site.channels - 1}"
                )
            direction = torch.nn.functional.one_hot(torch.tensor(feature.channel), self.site.channels).float()
        else:
            direction = _load_direction(feature, self.site.channels)
        self.register_buffer("direction", direction, persistent=False)
        self.position = self._resolve(feature.position)

    def _resolve(self, position: Position) -> str | tuple[int, ...] | None:
        """Return `peak`, `mean`, an index into the positions, or None where there are none."""
        site, name = self.site, f"feature {str(self.feature)!r}"
        if len(site.shape) == 1:
            if position is not None:
                raise InputError(f"{name}: layer {self.feature.layer!r} has no positions; leave @{position} out")
            return None
        if position in ("peak", "mean"):
            return str(position)
        if position is None:
            position = "centre" if site.grid else 0
        if isinstance(position, int):
            if not site.is_tokens:
                raise InputError(f"{name}: a single index names a token, and layer {self.feature.layer!r} is a map; give row,column")
            if not 0 <= position < site.shape[0]:
                raise InputError(f"{name}: layer {self.feature.layer!r} has tokens 0..{site.shape[0] - 1}")
            return (position,)
        if site.grid is None:
            raise InputError(f"{name}: the tokens of layer {self.feature.layer!r} lie on no grid; give a token 0..{site.shape[0] - 1}, peak or mean")
        rows, columns = site.grid
        row, column = (rows // 2, columns // 2) if isinstance(position, str) else position
        if not (0 <= row < rows and 0 <= column < columns):
            raise InputError(f"{name}: position {row},{column} is outside the map of layer {self.feature.layer!r}, rows 0..{rows - 1}, columns 0..{columns - 1}")
        return (site.prefix_tokens + row * columns + column,) if site.is_tokens else (row, column)

    def forward(self, activations: Tensor) -> Tensor:
        """Return responses, [N], for the target layer's activations."""
        if isinstance(self.position, tuple):  # one position: read it alone
            index = (slice(None), *self.position)
            activations = activations.movedim(self.site.channel_dim, -1)[index]  # [N, C]
        else:
            activations = activations.movedim(self.site.channel_dim, -1).flatten(1, -2) if self.position else activations
        if self.feature.channel is not None:
            values = activations[..., self.feature.channel]  # [N] or [N, P]
        else:
            values = activations @ self.direction.to(activations.dtype)  # [N] or [N, P]
        if self.position == "peak":
            return values.amax(1) if not values.requires_grad else values.gather(1, values.argmax(1, keepdim=True))[:, 0]
        return values.mean(1) if self.position == "mean" else values


def _load_direction(feature: Feature, channels: int) -> Tensor:
    given = feature.direction
    if isinstance(given, str):
        path, _, row = given.partition("#")
        if not Path(path).is_file():
            raise InputError(f"feature {str(feature)!r}: no file {path!r}; a direction is a .npy or .pt file, or a vector [v0,v1,...]")
        loaded = torch.load(path, weights_only=True) if path.endswith((".pt", ".pth")) else np.load(path, allow_pickle=False)
        direction = torch.as_tensor(loaded).float()
        if row:
            if direction.ndim != 2 or not 0 <= int(row) < len(direction):
                raise InputError(f"feature {str(feature)!r}: {path} holds {list(direction.shape)}, which has no row {row}")
            direction = direction[int(row)]
    else:
        direction = torch.tensor(given, dtype=torch.float32)
    if direction.shape != (channels,) or not direction.isfinite().all():
        raise InputError(f"feature {str(feature)!r}: the direction holds {list(direction.shape)} values; layer {feature.layer!r} takes [{channels}], all finite")
    return direction


def activation_warning(feature: Feature, backbone: Backbone) -> str | None:
    """Say so where a feature is read after its activation function: there absent and vetoed look the same."""
    layer = Layer.parse(feature.layer)
    module = backbone.network.get_submodule(layer.module)
    if layer.side == "output" and (type(module).__module__ == _ACTIVATIONS or "activation" in type(module).__module__):
        return f"feature {str(feature)!r} is read after its activation function; before it is {layer.module}/input"
    return None
