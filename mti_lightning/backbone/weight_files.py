"""Files of weights: what is around a network's tensors in them, and what is before their names."""

import argparse
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from torch import Tensor

from mti_lightning.errors import InputError, reason_of
from mti_lightning.log import log_info

State = dict[str, Tensor]
_PICKLED: Final = (b"PK", b"\x80", b"././@")  # today, once, and before: zip, pickle, tar

# What training code puts around weights. Averaged ones come first: they are what is evaluated.
_WRAPPERS: Final = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema"),
    *("state_dict", "model_state_dict", "model", "net", "network", "module", "backbone", "weights"),
)
_DEEPEST: Final = 8  # wrappers in one another: a pickle may hold itself
_AVERAGED: Final = ("ema_model.", "model_ema.", "ema.")
_PREFIXES: Final = (
    *_AVERAGED,
    *("_orig_mod.", "module.", "model.", "net.", "network.", "backbone."),
)


def read_states(file: str) -> list[State]:
    """Read a file of weights without running anything that it may hold.

    Returns:
        The tensors by their names without known prefixes, and, where some were taken off, as the
        file has them: a network may have a module of such a name itself.

    Raises:
        InputError: If it holds no tensors by names.
    """
    with Path(file).open("rb") as opened:
        head = opened.read(512)
    if head[8:9] == b"{":  # behind the length of a header in JSON
        found: Any = safetensors.torch.load_file(file)
    elif not head.startswith(_PICKLED):
        raise InputError(_what(head))
    else:
        check_archive(Path(file))
        # timm's own training script writes its arguments beside the weights.
        # Opened here, as PyTorch goes by the ending, too.
        with (
            torch.serialization.safe_globals([argparse.Namespace]),
            Path(file).open("rb") as opened,
        ):
            found = torch.load(opened, map_location="cpu", weights_only=True)
    held, within = _unwrapped(found)
    if not held:
        raise InputError("it holds no tensors by the names of a network's weights")
    plain, taken_off, left_out = _without_prefixes(held)
    if within:
        log_info(f"weights {file!r}: those in {' / '.join(within)}")
    if not taken_off:
        return [held]
    beside = f"; left out beside them: {_listed(left_out)}" if left_out else ""
    log_info(f"weights {file!r}: taken off their names: {''.join(taken_off)}{beside}")
    return [plain, held]


def _what(head: bytes) -> str:
    """Say what a file is that holds no weights, by its beginning."""
    text = head.lstrip().lower()
    if not head:
        return "the file is empty"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "the file is a web page, as a download leaves that was refused; fetch it anew"
    if text.startswith(b"version https://git-lfs"):
        return "the file is a pointer of Git LFS; git lfs pull fetches what it stands for"
    return "the file is neither of safetensors nor of PyTorch; give a .safetensors or .pth file"


def check_archive(file: Path) -> None:
    """Make sure that nothing changed in a file of PyTorch's, which does not look at its checksums.

    Raises:
        InputError: If something did.
    """
    if not zipfile.is_zipfile(file):
        return  # of an early version, or another thing
    try:
        with zipfile.ZipFile(file) as archive:
            changed = archive.testzip()
    except Exception as error:  # of bytes that were changed it raises anything
        raise InputError(f"{file} is damaged: {reason_of(error)}") from error
    if changed is not None:
        raise InputError(f"{file} is damaged: the checksum of {changed} is another")


def _unwrapped(found: Any) -> tuple[State, list[str]]:
    """Return the tensors that are somewhere in what a file holds, and where."""
    within: list[str] = []
    while isinstance(found, Mapping) and len(within) < _DEEPEST:
        inner = [key for key in _WRAPPERS if _holds_tensors(found.get(key))]
        if not inner:
            tensors = {k: v for k, v in found.items() if isinstance(v, Tensor)}
            return {str(name): value for name, value in tensors.items()}, within
        within.append(inner[0])
        found = found[inner[0]]
    return {}, within


def _holds_tensors(found: Any, depth: int = _DEEPEST) -> bool:
    """Return whether it wraps tensors: what is called `ema` may hold no more than its settings."""
    if not isinstance(found, Mapping) or not depth:
        return False
    return any(
        isinstance(value, Tensor) or (key in _WRAPPERS and _holds_tensors(value, depth - 1))
        for key, value in found.items()
    )


def _without_prefixes(held: State) -> tuple[State, list[str], list[str]]:
    """Take off what most names begin with, as long as that is a known prefix.

    Returns:
        The tensors, what was taken off, and the names of those that did not begin with it.
    """
    taken_off: list[str] = []
    left_out: list[str] = []
    while True:
        groups = {prefix: [k for k in held if k.startswith(prefix)] for prefix in _PREFIXES}
        prefix = max(groups, key=lambda prefix: len(groups[prefix]))  # the first of equals
        others = [k for k in held if not k.startswith(_PREFIXES)]
        if len(groups[prefix]) <= len(others):
            return held, taken_off, left_out
        taken_off.append(prefix)
        left_out += [name for name in held if not name.startswith(prefix)]
        held = {name.removeprefix(prefix): held[name] for name in groups[prefix]}


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
