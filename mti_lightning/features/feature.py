"""What a feature is called: a scalar function of a backbone, in words."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

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
        layer: The target layer, as in `mti_lightning.Layer`.
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
        if "*" in (self.channel, self.direction):
            raise InputError(
                f"feature '{self.layer}:*': only mti predict and mti validate take * for every "
                "channel; give a channel's index"
            )
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
        file = r"[^@]*\.(npy|pt|pth)(#[^@]*)?(?=@|$)"  # such a path may have an @ in it
        form = rf"(?P<layer>[^:@]+):(?P<what>[^@]+(@{file})?)(@(?P<position>(?!{file})[^@]+))?"
        match = re.fullmatch(form, given.strip()) if isinstance(given, str) else None
        if match is None:
            raise InputError(f"feature {given!r} is not of the form {_GRAMMAR}")
        layer, what, position = match["layer"], match["what"], parse_position(match["position"])
        if re.fullmatch(r"-?\d+", what):
            return cls(layer, channel=int(what), position=position)
        if not what.startswith("[") or re.search(file, what):
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


def parse_position(text: str | None) -> Position:
    """Read what stands behind the @ of a feature's short form."""
    if text is None or text in _POSITIONS:
        return text
    if match := re.fullmatch(r"\[?\s*(\d+)\s*,\s*(\d+)\s*\]?", text):
        return int(match[1]), int(match[2])
    return int(text) if text.isdecimal() else text
