"""A timm model with its weights: from a file, from timm's own source, or random."""

import contextlib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import Any, Self
from urllib.parse import urlparse

import timm
import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from mti_lightning.backbone.weight_files import State, read_states
from mti_lightning.errors import InputError, nearest, reason_of
from mti_lightning.files import at_home
from mti_lightning.log import log_info, log_warning


def create_network(
    name: str,
    weights: str,
    seed: int,
    input_size: tuple[int, int] | None,
    arguments: Mapping[str, Any],
) -> tuple[nn.Module, tuple[str, ...]]:
    """Build the timm model and load its weights, with errors that say what would do.

    Every tensor of the network is then from its weights, but for those of its classifier, where
    these have none that fits: they are made NaN, so that nothing can be read from them unnoticed.

    Returns:
        The network, and the names of the classifier's tensors that its weights do not have.
    """
    source, is_path, _ = name.partition(":")  # such as hf-hub:timm/resnet50.a1_in1k
    if not is_path:
        _check_name(name)
    if arguments.get("in_chans", 3) != 3:
        raise InputError(
            f"arguments: in_chans {arguments['in_chans']} will not do: pictures have 3 channels; "
            "leave it out"
        )
    if source in ("hf-hub", "hf_hub") or (weights == "pretrained" and not is_path):
        _check_available(name)
    if weights in ("pretrained", "random"):
        return _load(name, weights, seed, input_size, arguments, None)
    file = at_home(weights)
    if not file.is_file():
        raise InputError(
            f"weights {weights!r} for {name} is no file; "
            "give the path of a .pth or .safetensors file, 'pretrained' or 'random'"
        )
    failures: list[InputError] = []
    for state in _read(name, str(file)):
        try:
            return _load(name, weights, seed, input_size, arguments, state)
        except InputError as error:
            failures.append(error)
    raise failures[0]


def _read(name: str, file: str) -> list[State]:
    try:
        return read_states(file)
    except Exception as error:
        reason = reason_of(error)
        if "weights_only" in reason:
            reason = "it holds more than weights; save the model's state_dict() alone"
        raise InputError(f"weights {file!r} do not fit {name}: {reason}") from error


def _load(
    name: str,
    weights: str,
    seed: int,
    input_size: tuple[int, int] | None,
    arguments: Mapping[str, Any],
    state: State | None,
) -> tuple[nn.Module, tuple[str, ...]]:
    """Build the network, and make sure that its tensors are from its weights.

    Args:
        name: As of `create_network`, and so are the next.
        weights: Named in errors.
        seed: Of random weights.
        input_size: Height and width.
        arguments: Of timm's.
        state: What a file holds; None where timm finds the weights, or there are none.
    """
    given = dict(arguments)
    if state is not None:
        overlay = {**(given.get("pretrained_cfg_overlay") or {}), **_sources(state)}
        if classes := arguments.get("num_classes"):
            overlay["num_classes"] = classes  # else timm drops the file's classifier
        # What is missing and what is too much is looked at here, by which it is.
        given |= {"pretrained_cfg_overlay": overlay, "pretrained_strict": False}
    try:
        with torch.random.fork_rng(devices=[]), _Loading() as loading:
            torch.manual_seed(seed)
            network = _build(name, weights != "random", input_size, given)
    except Exception as error:
        reason = reason_of(error)
        if weights == "random" or isinstance(error, TypeError):
            told = dict(arguments)
            raise InputError(f"{name} cannot be built with {told}: {reason}") from error
        raise InputError(
            f"weights {weights!r} do not fit {name}: {reason}{_classes(error)}"
        ) from error
    if weights == "random":
        return network, ()
    for module in network.modules():  # it would stay in memory
        (getattr(module, "pretrained_cfg", None) or {}).pop("state_dict", None)
    config = getattr(network, "pretrained_cfg", None) or {}
    strict = arguments.get("pretrained_strict", True)
    absent = _absent(
        loading, network, _heads(name, config), strict, f"weights {weights!r} of {name}"
    )
    for tensor in absent:
        network.get_parameter(tensor).data.fill_(torch.nan)
    _check_numbers(network, absent, f"weights {weights!r} of {name}")
    return network, absent


def _sources(state: State) -> dict[str, Any]:
    """Return what makes timm take these weights and no others."""
    return {"state_dict": state, "file": "", "url": "", "hf_hub_id": None, "source": ""}


class _Loading:
    """Notes which tensors modules lack, or do not know, when their weights are loaded.

    timm logs it, and goes on with random ones.
    """

    def __init__(self) -> None:
        self.missing: dict[str, None] = {}  # in the network's order
        self.unexpected: dict[str, None] = {}
        self._handles: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._global = register_module_module_registration_hook(self._on_registration)
        return self

    def __exit__(self, *_: object) -> None:
        self._global.remove()
        for handle in self._handles.values():
            handle.remove()

    def _on_registration(self, module: nn.Module, name: str, child: nn.Module | None) -> None:
        if id(module) not in self._handles:
            self._handles[id(module)] = module.register_load_state_dict_post_hook(  # type: ignore[no-untyped-call]
                self._note
            )

    def _note(self, module: nn.Module, keys: Any) -> None:
        lacking = [key for key in keys.missing_keys if "num_batches_tracked" not in key]
        self.missing |= dict.fromkeys(lacking)
        self.unexpected |= dict.fromkeys(keys.unexpected_keys)


def _heads(name: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return how the names of a network's classifiers begin."""
    registered = timm.get_pretrained_cfg(name) if timm.is_model(name.partition(".")[0]) else None
    found = config.get("classifier") or (registered and registered.classifier) or ()
    names = (found,) if isinstance(found, str) else found
    return tuple(f"{name}." for name in names)


def _absent(
    loading: _Loading, network: nn.Module, heads: tuple[str, ...], strict: bool, what: str
) -> tuple[str, ...]:
    """Return the tensors of the classifier that the weights do not have.

    Raises:
        InputError: If another one is missing, or there are some of another network.
    """
    no_fit = what.replace(" of ", " do not fit ")
    if lacking := [name for name in loading.missing if not name.startswith(heads)]:
        raise InputError(f"{no_fit}: Missing key(s) in state_dict: {_quoted(lacking)}")
    strange = [name for name in loading.unexpected if not name.startswith(heads)]
    if strict and strange:
        raise InputError(f"{no_fit}: Unexpected key(s) in state_dict: {_quoted(strange)}")
    # Custom formats are copied tensor by tensor; timm passes a classifier over that does not fit.
    config = getattr(network, "pretrained_cfg", None) or {}
    other = config.get("num_classes") != getattr(network, "num_classes", None)
    missing = loading.missing if not (config.get("custom_load") and other) else None
    there = [name for name, _ in network.named_parameters() if name.startswith(heads)]
    absent = sorted(name for name in there if missing is None or name in missing)
    if absent:
        log_warning(
            f"{what} have no classifier that fits ({', '.join(absent)}): nothing can be read "
            "from it or behind it"
        )
    if left := strange + [name for name in loading.unexpected if name.startswith(heads)]:
        log_info(f"{what}: left out {_quoted(left)}")
    return tuple(absent)


def _check_numbers(network: nn.Module, absent: Collection[str], what: str) -> None:
    """Make sure that weights are numbers.

    Raises:
        InputError: If one is not.
    """
    broken = [
        name
        for name, value in network.named_parameters()
        if name not in absent and not value.isfinite().all()
    ]
    broken += [name for name, value in network.named_buffers() if value.isnan().any()]
    if broken:
        raise InputError(
            f"{what} are no numbers (NaN or infinite) in {_quoted(broken)}; the training that made "
            "them has failed, or the file is damaged"
        )


def _quoted(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f'"{name}"' for name in names[:3]) + more


def _classes(error: Exception) -> str:
    """Say that a classifier is of another number of classes, where an error of PyTorch's is so."""
    found = re.findall(
        r"size mismatch for (\S+): copying a param with shape torch.Size\(\[(\d+)[^]]*\]\) from "
        r"checkpoint, the shape in current model is torch.Size\(\[(\d+)[^]]*\]\)",
        str(error),
    )
    counts = {(theirs, ours) for _, theirs, ours in found if theirs != ours}
    if len({name.rpartition(".")[0] for name, _, _ in found}) != 1 or len(counts) != 1:
        return ""
    theirs, ours = counts.pop()
    return (
        f"; the file is of a network of {theirs} classes, not {ours}: give arguments: "
        f"{{num_classes: {theirs}}}"
    )


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


def _check_name(name: str) -> None:
    architecture, _, tag = name.partition(".")
    if name in timm.models.get_deprecated_models():
        return  # timm knows what it is called now
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
        if current := timm.models.get_deprecated_models().get(name):
            raise InputError(
                f"timm has no pretrained weights for {name}: it calls it {current} now"
            )
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
