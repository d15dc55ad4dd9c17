"""A timm model with its weights: from a file, from timm's own source, or random."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlparse

import timm
import torch
from torch import nn

from mti_lightning.errors import InputError, nearest, reason_of


def create_network(
    name: str,
    weights: str,
    seed: int,
    input_size: tuple[int, int] | None,
    arguments: Mapping[str, Any],
) -> nn.Module:
    """Build the timm model and load its weights, with errors that say what would do."""
    source, is_path, _ = name.partition(":")  # such as hf-hub:timm/resnet50.a1_in1k
    if not is_path:
        _check_name(name)
    if source in ("hf-hub", "hf_hub") or (weights == "pretrained" and not is_path):
        _check_available(name)
    overlay = {} if weights in ("pretrained", "random") else _overlay(name, weights, arguments)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _build(name, weights != "random", input_size, {**arguments, **overlay})
    except Exception as error:
        reason = reason_of(error)
        if weights == "random" or isinstance(error, TypeError):
            given = dict(arguments)
            raise InputError(f"{name} cannot be built with {given}: {reason}") from error
        if "weights_only=True" in reason:
            reason = "it holds more than weights; save the model's state_dict() alone"
        raise InputError(f"weights {weights!r} do not fit {name}: {reason}") from error


def _build(
    name: str, pretrained: bool, input_size: tuple[int, int] | None, arguments: Mapping[str, Any]
) -> nn.Module:
    if input_size:
        try:
            return timm.create_model(name, pretrained, img_size=input_size, **arguments)
        except TypeError as error:
            # Only transformers are built for one input size; the others refuse the argument.
            if "img_size" not in str(error):
                raise
    return timm.create_model(name, pretrained, **arguments)


def _overlay(name: str, file: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that make timm load a file."""
    if not Path(file).is_file():
        raise InputError(
            f"weights {file!r} for {name} is no file; "
            "give the path of a .pth or .safetensors file, 'pretrained' or 'random'"
        )
    overlay: dict[str, Any] = {"file": file, "url": "", "hf_hub_id": None, "source": ""}
    if classes := arguments.get("num_classes"):
        overlay["num_classes"] = classes  # else timm drops the file's classifier without a word
    return {"pretrained_cfg_overlay": overlay}


def _check_name(name: str) -> None:
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise InputError(f"timm has no model {name!r}{nearest(architecture, timm.list_models())}")
    try:
        timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:  # that model, but not that tag
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
        there = f"there are {', '.join(tags)}" if tags else "leave it out"
        raise InputError(f"timm has no weights {tag!r} for {architecture}; {there}") from error


def _check_available(name: str) -> None:
    """Find out at once whether a download can succeed: timm itself retries for most of a minute.

    Raises:
        InputError: If what is needed is neither on this machine nor within reach.
    """
    from huggingface_hub import constants, try_to_load_from_cache  # noqa: PLC0415  slow to import

    _, is_hub_name, repository = name.partition(":")
    give = f"give a file: weights: /path/to/{name}.safetensors (or .pth), or weights: random"
    if is_hub_name:
        subject, address, download = f"the files of {name}", repository, ""
        files = ["config.json"]
        give = "give the name of one of timm's own models, and a file as weights"
    else:
        config = timm.get_pretrained_cfg(name)
        if not config or not config.has_weights:
            notes = "".join(f"{note}, or " for note in (config and config.notes) or ())
            raise InputError(f"timm has no pretrained weights for {name}; {notes}{give}")
        if config.file:
            if not Path(config.file).is_file():
                raise InputError(f"the weights of {name} are missing at {config.file}; {give}")
            return
        subject, address = f"the pretrained weights of {name}", config.hf_hub_id or ""
        download = str(config.url)
        files = ["model.safetensors", "pytorch_model.bin", config.hf_hub_filename or "model.bin"]
    if address:
        repository, _, revision = address.partition("@")
        cached = [try_to_load_from_cache(repository, f, revision=revision or None) for f in files]
        present = any(isinstance(path, str) for path in cached)
        url, offline = constants.ENDPOINT, constants.HF_HUB_OFFLINE
    else:
        url, offline = download, False
        file = Path(urlparse(url).path).name
        present = (Path(torch.hub.get_dir()) / "checkpoints" / file).is_file()
    if not present and (offline or not _answers(url)):
        host = urlparse(url).hostname
        raise InputError(f"{subject} are not on this machine and {host} cannot be reached; {give}")


def _answers(url: str, seconds: float = 1.5) -> bool:
    """Ask by the client that would download, so by the same proxy and certificates."""
    from huggingface_hub import get_session  # noqa: PLC0415  slow to import

    answers: list[object] = []

    def ask() -> None:
        with contextlib.suppress(Exception):  # whatever it is, nothing can be downloaded
            answers.append(get_session().head(url, timeout=seconds))

    # A thread, as a name look-up heeds no timeout; a daemon, as nobody waits for it in the end.
    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answers)
