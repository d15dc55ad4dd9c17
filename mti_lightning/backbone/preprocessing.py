"""What a backbone was trained to see."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import timm
import torch
from timm.data import resolve_data_config
from torch import Tensor, nn

from mti_lightning.errors import InputError

# Arguments of timm's that say which weights there are, or what else is looked at here.
_OF_WEIGHTS: Final = (
    *("num_classes", "pretrained_strict", "pretrained_cfg", "pretrained_cfg_overlay"),
    *("checkpoint_path", "cache_dir"),
)


@dataclass(frozen=True)
class Preprocessing:
    """What the backbone was trained to see.

    `size` is (height, width) in pixels; the rest is how a picture is brought to it.
    """

    size: tuple[int, int]
    crop_pct: float
    crop_mode: str
    interpolation: str


def find_preprocessing(
    network: nn.Module, name: str, input_size: tuple[int, int] | None
) -> tuple[Preprocessing, dict[str, Tensor]]:
    """Return what a timm model says of its pictures, and their `mean` and `std`, [3] each.

    Args:
        network: The model.
        name: What it is called, for errors.
        input_size: Height and width in pixels; None for the model's own.

    Raises:
        InputError: If mean or standard deviation are none.
    """
    config = resolve_data_config(model=network)  # type: ignore[no-untyped-call]
    height, width = input_size or config["input_size"][1:]
    found = Preprocessing(
        (height, width), config["crop_pct"], config["crop_mode"], config["interpolation"]
    )
    moments = {of: _per_channel(f"{of} of {name}", config[of]) for of in ("mean", "std")}
    if not (moments["std"] > 0).all():
        raise InputError(f"std of {name} is {config['std']}; give three numbers above 0")
    return found, moments


def own_ways(name: str, arguments: Mapping[str, Any], moments: Mapping[str, Tensor]) -> str:
    """Say how a network computes otherwise than the model of its name does, by equal weights.

    Args:
        name: The model's.
        arguments: Those it was made with.
        moments: Its `mean` and `std`.

    Returns:
        Nothing of a model as it is.
    """
    is_known = timm.is_model(name.partition(".")[0])
    usual: Any = timm.get_pretrained_cfg(name) if is_known else None
    told = {k: v for k, v in arguments.items() if k not in _OF_WEIGHTS}
    for of, values in moments.items():
        if usual is None or not torch.equal(values, torch.tensor(getattr(usual, of))):
            told[of] = values.tolist()
    return json.dumps(told, sort_keys=True, default=str) if told else ""


def _per_channel(what: str, values: object) -> Tensor:
    """Return what is subtracted from pictures or divides them, [3].

    Raises:
        InputError: If it is not three numbers.
    """
    try:
        found = torch.tensor(values, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        found = torch.empty(0)
    if found.shape != (3,) or not found.isfinite().all():
        raise InputError(f"{what} is {values!r}; give three numbers, for red, green and blue")
    return found
