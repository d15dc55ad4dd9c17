"""Mistakes at the command line: every option with values that no one means, by its type."""

import inspect
import os
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

NUMBERS = ("null", ".nan", ".inf", "-1", "0", str(10**12), "few")
# Numbers that are no mistake: what an option takes, by its name; * where any number will do.
TAKEN = {
    "seed": "*",
    "keep": "0 1000000000000",
    "rivals": "0 1000000000000",
    "calibrate": "1000000000000",
    "block": "1000000000000",
    "batch_size": "1000000000000",
    "num_workers": "0",
    "limit": "1000000000000",
    "pictures": "1000000000000",
    "tensest": "1000000000000",
    "rendered": "0 1000000000000",
    "steps": "1000000000000",
    "steps_per_epoch": "1000000000000",
    "composites": "0",
    "power": "0 1000000000000",
    "faint": "0",
    "exemplars": "0 1000000000000",
    "minimum": "1000000000000",
    "neighbours": "1000000000000",
    "min_dist": "0",
    "top": "1000000000000",
    "trim": "0",
    "contrast": "1000000000000",
    "jitter": "0 1000000000000",
    "noise": "0 1000000000000",
    "max_epochs": "-1 1000000000000",
    "min_epochs": "-1 0 1000000000000",
    "max_steps": "-1",
    "min_steps": "-1 0 1000000000000",
    "log_every_n_steps": "-1 0 1000000000000",
    "check_val_every_n_epoch": "-1 0 1000000000000",
    "fast_dev_run": "0 1000000000000",
    "limit_val_batches": "0 1000000000000",
    "limit_predict_batches": "0 1000000000000",
    "overfit_batches": "0",
    "reload_dataloaders_every_n_epochs": "0 1000000000000",
    "num_sanity_val_steps": "-1 0 1000000000000",
    "limit_test_batches": "0 1000000000000",
    "gradient_clip_val": "0",
    "count": "1000000000000",
    "rows": "1000000000000",
    "classes": "1000000000000",
}


def parameters(given: Any) -> dict[str, inspect.Parameter]:
    """Return the named parameters of a class, those of its bases with them."""
    found: dict[str, inspect.Parameter] = {}
    for one in given.__mro__[:-1]:
        found = {**inspect.signature(one.__init__).parameters, **found}
    return {name: one for name, one in found.items() if name not in ("self", "args", "kwargs")}


def kinds(annotation: Any) -> set[Any]:
    """Return what an annotation is made of, without tuples and lists."""
    if get_origin(annotation) in (None, Literal):
        return {annotation}
    if get_origin(annotation) not in (Union, UnionType):
        return set()
    return {kind for one in get_args(annotation) for kind in kinds(one)}


def paths() -> dict[str, str]:
    """Return what is no file that any option takes; `note.png` and `empty` have to be there."""
    return {
        "empty": "",
        "a folder": "empty",
        "a file": "note.png",
        "long": "a" * 300,
        "not UTF-8": os.fsdecode(b"bad\xff"),
        "not there": "nix/nix",
    }


def of_numbers(prefix: str, given: Any) -> Iterator[str]:
    """Yield each numeric option of a class with the values that it does not take."""
    for name, parameter in parameters(given).items():
        held = kinds(parameter.annotation)
        if not held & {int, float}:
            continue
        taken = TAKEN.get(name, "").split()
        for word in NUMBERS:
            optional = word == "null" and NoneType in held
            if not (optional or word in taken or (taken == ["*"] and word[-1].isdigit())):
                yield f"--{prefix}{name}={word}"
