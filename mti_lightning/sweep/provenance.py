"""What made a store: told so that another run can compare it, and the first difference named."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mti_lightning.attribution.methods import Attribution
from mti_lightning.attribution.steps import recorded
from mti_lightning.backbone import Backbone, Layer
from mti_lightning.data.base import PLACES
from mti_lightning.files import at_home
from mti_lightning.registry import current_path, public_path


def attributed(backbone: Backbone, layer: Layer, method: Attribution) -> dict[str, Any]:
    """Return what attributions depend on, but for pictures and features, as JSON."""
    attribution = {**recorded(method), "files": _digests(method.arguments)}
    return as_read_back(
        {
            "weights": backbone.digest(),
            "network": backbone.ways or None,  # a store that does not tell has none
            "attribution_layer": str(layer),
            "attribution": attribution,
        }
    )


def as_made(backbone: Backbone) -> dict[str, Any]:
    """Return by what `Backbone` makes a network again, as JSON, from any working directory."""
    made: dict[str, Any] = dict(backbone.made)
    for name in ("weights", "labels"):
        if made[name] and at_home(made[name]).is_file():
            made[name] = str(at_home(made[name]).absolute())
    return as_read_back(made)


def as_read_back(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return it as a store's attributes, which are JSON, give it back."""
    told: dict[str, Any] = json.loads(json.dumps(provenance, default=_told))
    return told


def first_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """Say what differs first between two provenances, of what is in the new one.

    Not compared are the version, and where pictures lie: they may have been moved, and are
    compared one by one.
    """
    old, new = _comparable(old), _comparable(new)
    for name in new:
        if old.get(name) != new[name]:
            return _difference(name, old.get(name), new[name])
    return None


def _told(thing: object) -> str:
    """Return what tells an object; not its address, which is another one in another run."""
    return public_path(type(thing)) if type(thing).__repr__ is object.__repr__ else str(thing)


def _digests(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return what tells the files that arguments name from others by the same names."""
    return {
        name: hashlib.sha256(at_home(value).read_bytes()).hexdigest()[:16]
        for name, value in arguments.items()
        if isinstance(value, str | Path) and at_home(value).is_file()
    }


def _comparable(provenance: Mapping[str, Any]) -> dict[str, Any]:
    versions = ("version", "continued_by")
    compared = {name: value for name, value in provenance.items() if name not in versions}
    for name in ("data", "attribution"):
        if made := provenance.get(name):
            compared[name] = {**made, "class_path": current_path(made["class_path"])}
    if data := compared.get("data"):
        arguments = {k: v for k, v in data["init_args"].items() if k not in PLACES}
        compared["data"] = {**data, "init_args": arguments}
    return compared


def _difference(name: str, old: object, new: object) -> str:
    """Say where two values of one name differ first."""
    if isinstance(old, dict) and isinstance(new, dict):
        key = next(key for key in {**old, **new} if old.get(key) != new.get(key))
        return _difference(f"{name}.{key}", old.get(key), new.get(key))
    return f"{name} {_short(old)}, not {_short(new)}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:77]}..."
