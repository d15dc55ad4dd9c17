"""The frozen network: any timm model, with taps on its layers."""

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, Literal, Self, final
from urllib.parse import urlparse

import timm
import torch
from timm.data import resolve_data_config
from torch import Tensor, nn

from mti_lightning.backbone.batch_invariance import BatchInvariance
from mti_lightning.errors import InputError, nearest


@dataclass(frozen=True, order=True)
class Layer:
    """One side of a named module.

    Its string form is the module's name, with `/input` behind it for the input side:
    `layer3.0.act2/input` is the value before that activation function. Named by the input of the
    module that applies the function, a value before its activation can be reached in every family,
    also where timm fuses norm and activation (`bn1.act/input`).
    """

    module: str
    side: Literal["output", "input"] = "output"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the string form.

        Raises:
            InputError: If what stands behind the slash is not `input` or `output`.
        """
        module, slash, side = text.partition("/")
        if slash and side not in ("input", "output"):
            raise InputError(
                f"layer {text!r}: {side!r} is no side of a module; "
                f"write {module}/input or {module}/output"
            )
        return cls(module, "input" if side == "input" else "output")

    def __str__(self) -> str:
        return self.module + ("/input" if self.side == "input" else "")


@dataclass(frozen=True)
class ActivationLayout:
    """How activations lie at a layer: [N, C, H, W], [N, H, W, C], tokens [N, T, C] or [N, C].

    `grid` is (height, width) of the positions, None where there are none; the first
    `prefix_tokens` tokens (class token, registers) lie outside it.
    """

    shape: tuple[int, ...]  # without the batch
    channel_dim: int  # of the batched tensor: 1 or -1
    grid: tuple[int, int] | None
    prefix_tokens: int = 0

    @property
    def channels(self) -> int:
        return self.shape[0 if self.channel_dim == 1 else -1]

    @property
    def is_tokens(self) -> bool:
        return len(self.shape) == 2

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Names of the dimensions, without the batch."""
        names = {1: (), 2: ("token",), 3: ("row", "column")}[len(self.shape)]
        return ("channel", *names) if self.channel_dim == 1 else (*names, "channel")

    @property
    def position_dims(self) -> tuple[int, ...]:
        """The dimensions of positions, counted from the end: any number may stand before them."""
        dims = range(-len(self.shape), 0)
        return tuple(dims[1:] if self.channel_dim == 1 else dims[:-1])

    def per_channel(self, values: Tensor) -> Tensor:
        """View one value per channel, [C], so that it broadcasts against activations."""
        shape = [1] * (len(self.shape) + 1)
        shape[self.channel_dim] = -1
        return values.view(shape)

    def pool_mean(self, values: Tensor) -> Tensor:
        """Average values of the layer's shape, [..., *shape], over its positions, [..., C]."""
        return values.mean(self.position_dims) if self.position_dims else values

    def pool_sum(self, values: Tensor) -> Tensor:
        """Sum values of the layer's shape, [..., *shape], over its positions, [..., C]."""
        return values.sum(self.position_dims) if self.position_dims else values


@dataclass(frozen=True)
class Preprocessing:
    """What the backbone was trained to see.

    `size` is (height, width) in pixels; the rest is how a picture is brought to it.
    """

    size: tuple[int, int]
    crop_pct: float
    crop_mode: str
    interpolation: str


class _Stop(Exception):  # noqa: N818  it ends a forward pass, it reports no error
    """Raised by the last tap: nothing further on is needed."""


@final
class Backbone(nn.Module):
    """A timm model, frozen, in eval mode, with its own mean, standard deviation and input size.

    The network is kept out of the module tree: no optimizer finds its parameters, no checkpoint
    holds them, and no `train()` reaches it. It follows the backbone to other devices and dtypes.

    Args:
        name: A timm model, such as `resnet50.a1_in1k`, or one that a plugin registered with timm.
        weights: `pretrained`, `random`, or the path of a file (.pth, .safetensors).
        seed: Seed of random weights.
        input_size: Height and width in pixels the network sees; None for its own.
        arguments: Further arguments for `timm.create_model`, such as `num_classes`.

    Raises:
        InputError: If there is no such model, its weights cannot be had, or they do not fit it.
    """

    mean: Tensor  # [3, 1, 1]
    std: Tensor  # [3, 1, 1]

    def __init__(
        self,
        name: str,
        weights: str = "pretrained",
        seed: int = 0,
        input_size: tuple[int, int] | None = None,
        arguments: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if input_size and min(input_size) < 1:
            raise InputError(f"input_size {list(input_size)}: give a height and a width in pixels")
        self.name = name
        network = _create(name, weights, seed, input_size, arguments or {})
        self._unregistered = (network.eval().requires_grad_(False),)
        self._lay_out(torch.device("cpu"))
        config = resolve_data_config(model=network)  # type: ignore[no-untyped-call]
        height, width = input_size or config["input_size"][1:]
        self.preprocessing = Preprocessing(
            (height, width), config["crop_pct"], config["crop_mode"], config["interpolation"]
        )
        self.register_buffer("mean", torch.tensor(config["mean"])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(config["std"])[:, None, None], persistent=False)
        self._layouts: dict[Layer, ActivationLayout] = {}
        self._hashed: tuple[list[tuple[int, int, torch.dtype]], str] | None = None
        self._batch_invariance = BatchInvariance()

    @property
    def network(self) -> nn.Module:
        """The timm model itself."""
        return self._unregistered[0]

    def digest(self) -> str:
        """Return what tells the network's weights from others; hashed anew where they changed.

        What is written to a weight's `data`, behind PyTorch's back, is not seen once it is hashed.
        """
        state = self.network.state_dict(keep_vars=True)
        # The tensors themselves and how often they were written to.
        now = [(id(value), value._version, value.dtype) for value in state.values()]  # noqa: SLF001
        if self._hashed is None or self._hashed[0] != now:
            weights = hashlib.sha256()
            for name, value in state.items():
                plain = value.detach().cpu().contiguous().flatten()
                weights.update(name.encode() + plain.view(torch.uint8).numpy().tobytes())
            self._hashed = now, weights.hexdigest()[:16]
        return self._hashed[1]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        dtype = self.mean.dtype
        self.network._apply(fn)  # type: ignore[no-untyped-call]  # noqa: SLF001  overridden here
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.mean.dtype != dtype:
            self._hashed = None  # weights were rounded
        self._lay_out(self.mean.device)
        return self

    def _lay_out(self, device: torch.device) -> None:
        """Put channels last on a CPU: pools run several times as fast, and convolutions faster."""
        last = device.type == "cpu"
        layout = torch.channels_last if last else torch.contiguous_format
        self.network.to(memory_format=layout)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the whole network's output for pictures [N, 3, H, W] in 0..1."""
        output: Tensor = self.network((pictures - self.mean) / self.std)
        return output

    def run(
        self,
        pictures: Tensor,
        layers: Sequence[Layer],
        cut: Layer | None = None,
        insert: Mapping[Layer, Tensor] | None = None,
    ) -> dict[Layer, Tensor]:
        """Run the network up to the last of `layers` and return what passes through each of them.

        What is returned is a copy that no operation in place can overwrite, still part of the
        graph, but with a layer `cut` the graph begins there: its copy is a leaf that the rest of
        the network is computed from.

        Args:
            pictures: [N, 3, H, W] in 0..1; their size is the network's input size.
            layers: The layers to tap.
            cut: The one of `layers` that gradients are taken with respect to.
            insert: Activations that replace the network's own at a layer.

        Returns:
            For each layer its activations, as the network lays them out.

        Raises:
            InputError: If one of the layers does not exist, is not passed a tensor, or did not run.
        """
        captured: dict[Layer, Tensor] = {}
        insert = insert or {}

        def tap(layer: Layer, value: Tensor) -> Tensor:
            value = insert.get(layer, value)
            if layer in layers:
                # Cloned twice: the first copy is ours, the network may overwrite the second.
                copy = value.clone()
                value = captured[layer] = copy.detach().requires_grad_() if layer == cut else copy
                if len(captured) == len(set(layers)):
                    raise _Stop
            return value.clone()

        evenly: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if self.mean.device.type == "cpu":
            evenly = self._batch_invariance(self.network, len(pictures))
        with evenly, self._hooks({*layers, *insert}, tap), contextlib.suppress(_Stop):
            self(pictures.detach() if cut else pictures)
        for layer in layers:
            if layer not in captured:
                raise InputError(
                    f"layer {str(layer)!r} of {self.name} takes no part in its forward pass"
                )
        return captured

    @contextlib.contextmanager
    def _hooks(self, layers: set[Layer], tap: Callable[[Layer, Tensor], Tensor]) -> Iterator[None]:
        """Pass on what `tap` makes of what goes through `layers`; remove the hooks in any case."""

        def checked(layer: Layer, value: object) -> Tensor:
            if not isinstance(value, Tensor):
                raise InputError(
                    f"the {layer.side} of layer {layer.module!r} of {self.name} is a "
                    f"{type(value).__name__}, not a tensor; name a layer before, inside or after it"
                )
            return tap(layer, value)

        def on_input(layer: Layer) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
            return lambda _, inputs: (checked(layer, inputs[0] if inputs else None), *inputs[1:])

        def on_output(layer: Layer) -> Callable[[nn.Module, Any, object], Tensor]:
            return lambda _module, _inputs, output: checked(layer, output)

        modules = {layer: self._module(layer) for layer in layers}
        handles = [  # outside what fills a batch up with copies
            module.register_forward_pre_hook(on_input(layer), prepend=True)
            if layer.side == "input"
            else module.register_forward_hook(on_output(layer))
            for layer, module in modules.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _module(self, layer: Layer) -> nn.Module:
        with contextlib.suppress(AttributeError):
            if layer.module:
                return self.network.get_submodule(layer.module)
        modules: dict[str, nn.Module] = dict(self.network.named_modules())
        # Spelling finds `act1` for `akt1`; for `relu` it takes a look at what is there.
        parent = layer.module.rpartition(".")[0]
        near = nearest(layer.module, filter(None, modules))
        if parent in modules and (parent or not near):
            children = ", ".join(name for name, _ in modules[parent].named_children())
            near = f"{near or ';'} {parent or 'its top'} holds {children or 'nothing'}"
        raise InputError(f"layer {layer.module!r} is not in {self.name}{near}")

    def layout(self, layer: Layer) -> ActivationLayout:
        """Return how activations lie at a layer, found by running two grey pictures.

        Raises:
            InputError: If there is no such layer, it does not run exactly once in a forward pass,
                it does not keep the batch as its first dimension (as inside a windowed attention),
                or the network cannot take pictures of the input size.
        """
        if layer not in self._layouts:
            seen: list[torch.Size] = []

            def tap(_: Layer, value: Tensor) -> Tensor:
                seen.append(value.shape)
                return value

            height, width = self.preprocessing.size
            with self._hooks({layer}, tap), torch.no_grad():
                try:
                    self(self.mean.new_full((2, 3, height, width), 0.5))
                except (AssertionError, RuntimeError) as error:
                    raise InputError(
                        f"{self.name} cannot take pictures of {height}x{width} pixels: "
                        f"{_reason(error)}"
                    ) from error
            if len(seen) != 1:
                raise InputError(
                    f"layer {str(layer)!r} of {self.name} runs {len(seen)} times in a forward "
                    "pass; only a layer that runs exactly once can be tapped"
                )
            self._layouts[layer] = self._lie(layer, seen[0])
        return self._layouts[layer]

    def _lie(self, layer: Layer, batched: torch.Size) -> ActivationLayout:
        batch, *rest = batched
        shape = tuple(rest)
        if batch != 2 or not 1 <= len(shape) <= 3:
            raise InputError(
                f"layer {str(layer)!r} of {self.name} gives {list(batched)} for 2 pictures: not "
                "[N, C], [N, T, C], [N, C, H, W] or [N, H, W, C]; "
                "name a layer outside the windows or groups"
            )
        if len(shape) == 1:
            return ActivationLayout(shape, -1, None)
        if len(shape) == 2:
            # timm's name, absent from its convolutional models; patches have no prefix yet.
            for prefix in (getattr(self.network, "num_prefix_tokens", 0), 0):
                if grid := self._token_grid(shape[0] - prefix):
                    return ActivationLayout(shape, -1, grid, prefix)
            return ActivationLayout(shape, -1, None)
        first = self._has_aspect(shape[1], shape[2])
        last = self._has_aspect(shape[0], shape[1])
        if last and (not first or getattr(self.network, "output_fmt", "NCHW") == "NHWC"):
            return ActivationLayout(shape, -1, (shape[0], shape[1]))
        return ActivationLayout(shape, 1, (shape[1], shape[2]))

    def _has_aspect(self, rows: int, columns: int) -> bool:
        height, width = self.preprocessing.size
        return abs(rows * width - columns * height) <= max(width, height)  # within one position

    def _token_grid(self, tokens: int) -> tuple[int, int] | None:
        height, width = self.preprocessing.size
        rows = round(math.sqrt(max(tokens, 0) * height / width))
        if rows and tokens % rows == 0 and self._has_aspect(rows, tokens // rows):
            return rows, tokens // rows
        return None


def _create(
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
        reason = _reason(error)
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


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


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
            raise InputError(f"timm has no pretrained weights for {name}; {give}")
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
