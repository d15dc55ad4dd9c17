"""The frozen network: any timm model, with taps on its layers."""

import contextlib
import math
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, final
from urllib.parse import urlparse

import timm
import torch
from timm.data import resolve_data_config
from torch import Tensor, nn

from mti_lightning.errors import InputError, nearest


@dataclass(frozen=True, order=True)
class Layer:
    """One side of a named module.

    Its string form is the module's name, with `/input` behind it for the input side: `layer3.0.act2/input` is the value
    before that activation function. Named by the input of the module that applies the function, a value before its
    activation can be reached in every family, also where timm fuses norm and activation (`bn1.act/input`).
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
            raise InputError(f"layer {text!r}: {side!r} is no side of a module; write {module}/input or {module}/output")
        return cls(module, "input" if side == "input" else "output")

    def __str__(self) -> str:
        return self.module + ("/input" if self.side == "input" else "")


@dataclass(frozen=True)
class Site:
    """How activations lie at a layer: [N, C, H, W], [N, H, W, C], tokens [N, T, C] or [N, C].

    `grid` is (height, width) of the positions, None where there are none; the first `prefix_tokens` tokens (class token,
    registers) lie outside it.
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
    def position_dims(self) -> tuple[int, ...]:
        """The dimensions of the batched tensor that are neither batch nor channel."""
        return tuple(d for d in range(1, len(self.shape) + 1) if d != self.channel_dim % (len(self.shape) + 1))


@dataclass(frozen=True)
class Preprocessing:
    """What the backbone was trained to see: (height, width) in pixels, and how a picture is brought to it."""

    size: tuple[int, int]
    crop_pct: float
    crop_mode: str
    interpolation: str


class _Stop(Exception):  # noqa: N818  it ends a forward pass, it reports no error
    """Raised by the last tap: nothing further on is needed."""


@final
class Backbone(nn.Module):
    """A timm model, frozen, in eval mode, with its own mean, standard deviation and input size.

    The network is kept out of the module tree: no optimizer finds its parameters, no checkpoint holds them, and no
    `train()` reaches it. It follows the backbone to other devices and dtypes.

    Args:
        name: A timm model, such as `resnet50.a1_in1k`, or one that a plugin registered with timm.
        weights: `pretrained`, `random`, or the path of a file (.pth, .safetensors).
        seed: Seed of random weights.
        input_size: Height and width in pixels the network sees; None for its own.
        arguments: Further arguments for `timm.create_model`, such as `num_classes`.

    Raises:
        InputError: If there is no such model, its weights cannot be had, or they do not fit it.
    """

    def __init__(
        self,
        name: str,
        weights: str = "pretrained",
        seed: int = 0,
        input_size: tuple[int, int] | None = None,
        arguments: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        arguments = dict(arguments or {})
        network = _create(name, weights, seed, input_size, arguments).eval().requires_grad_(False)
        self._unregistered = (network,)
        config = resolve_data_config(model=network)
        size = tuple(input_size or config["input_size"][1:])
        self.preprocessing = Preprocessing(
            (size[0], size[1]), config["crop_pct"], config["crop_mode"], config["interpolation"]
        )
        self.register_buffer("mean", torch.tensor(config["mean"])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(config["std"])[:, None, None], persistent=False)
        self._sites: dict[Layer, Site] = {}

    @property
    def network(self) -> nn.Module:
        """The timm model itself."""
        return self._unregistered[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.network._apply(fn)
        return super()._apply(fn, recurse)

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

        What is returned is a copy that no operation in place can overwrite, still part of the graph, but for the layer
        `cut`: there the graph ends, and the copy is a leaf that the rest of the network is computed from.

        Args:
            pictures: [N, 3, H, W] in 0..1; their size is the network's input size.
            layers: The layers to tap.
            cut: The one of `layers` that gradients are taken with respect to.
            insert: Activations that replace the network's own at a layer.

        Returns:
            For each layer its activations, as the network lays them out.

        Raises:
            InputError: If one of the layers did not run.
        """
        captured: dict[Layer, Tensor] = {}
        insert = insert or {}

        def tap(layer: Layer, value: object) -> Tensor:
            if not isinstance(value, Tensor):
                kind = type(value).__name__
                raise InputError(f"the {layer.side} of layer {layer.module!r} of {self.name} is a {kind}, not a tensor")
            value = insert.get(layer, value)
            if layer not in layers:
                return value.clone()
            # Cloned twice: the first copy is ours, the network may overwrite the second.
            captured[layer] = value.detach().clone().requires_grad_() if layer == cut else value.clone()
            if len(captured) == len(set(layers)):
                raise _Stop
            return captured[layer].clone()

        with self._hooks({*layers, *insert}, tap), contextlib.suppress(_Stop):
            self(pictures)
        for layer in layers:
            if layer not in captured:
                raise InputError(f"layer {str(layer)!r} of {self.name} takes no part in its forward pass")
        return captured

    @contextlib.contextmanager
    def _hooks(self, layers: set[Layer], tap: Callable[[Layer, object], Tensor]) -> Iterator[None]:
        """Call `tap` on what passes through `layers` and pass on what it returns; remove the hooks whatever happens."""

        def on_input(layer: Layer) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
            return lambda _, inputs: (tap(layer, inputs[0] if inputs else None), *inputs[1:])

        def on_output(layer: Layer) -> Callable[[nn.Module, Any, object], Tensor]:
            return lambda _module, _inputs, output: tap(layer, output)

        modules = {layer: self._module(layer) for layer in layers}
        handles = [
            module.register_forward_pre_hook(on_input(layer))
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
        modules = dict(self.network.named_modules())
        if layer.module not in modules or not layer.module:
            near = nearest(layer.module, modules)
            raise InputError(
                f"layer {layer.module!r} is not in {self.name}{near or '; its top is: ' + ', '.join(dict(self.network.named_children()))}"
            )
        return modules[layer.module]

    def site(self, layer: Layer) -> Site:
        """Return how activations lie at a layer, found by running one grey picture twice over.

        Raises:
            InputError: If there is no such layer, it does not run exactly once in a forward pass, or it does not keep the
                batch as its first dimension (as inside a windowed attention).
        """
        if layer not in self._sites:
            seen: list[Tensor] = []

            def tap(_: Layer, value: object) -> Tensor:
                if not isinstance(value, Tensor):
                    kind = type(value).__name__
                    raise InputError(f"the {layer.side} of layer {layer.module!r} of {self.name} is a {kind}, not a tensor")
                seen.append(value)
                return value

            with self._hooks({layer}, tap), torch.no_grad():
                self(torch.full((2, 3, *self.preprocessing.size), 0.5, device=self.mean.device, dtype=self.mean.dtype))
            if len(seen) != 1:
                raise InputError(
                    f"layer {str(layer)!r} of {self.name} runs {len(seen)} times in a forward pass; "
                    "only a layer that runs exactly once can be tapped"
                )
            self._sites[layer] = self._lie(layer, seen[0].shape)
        return self._sites[layer]

    def _lie(self, layer: Layer, batched: torch.Size) -> Site:
        batch, *rest = batched
        shape = tuple(rest)
        if batch != 2 or not 1 <= len(shape) <= 3:
            raise InputError(
                f"layer {str(layer)!r} of {self.name} gives {list(batched)} for 2 pictures: not [N, C], [N, T, C], "
                "[N, C, H, W] or [N, H, W, C]; name a layer outside the windows or groups"
            )
        if len(shape) == 1:
            return Site(shape, -1, None)
        if len(shape) == 2:
            prefix = int(getattr(self.network, "num_prefix_tokens", 0))  # timm's name, absent from its convolutional models
            return Site(shape, -1, self._token_grid(shape[0] - prefix), prefix)
        first = self._has_aspect(shape[1], shape[2])
        last = self._has_aspect(shape[0], shape[1])
        if last and (not first or getattr(self.network, "output_fmt", "NCHW") == "NHWC"):
            return Site(shape, -1, (shape[0], shape[1]))
        return Site(shape, 1, (shape[1], shape[2]))

    def _has_aspect(self, rows: int, columns: int) -> bool:
        height, width = self.preprocessing.size
        return abs(rows * width - columns * height) <= max(width, height)  # within one position

    def _token_grid(self, tokens: int) -> tuple[int, int] | None:
        height, width = self.preprocessing.size
        rows = round(math.sqrt(max(tokens, 0) * height / width))
        return (rows, tokens // rows) if rows and tokens % rows == 0 and self._has_aspect(rows, tokens // rows) else None


def _create(
    name: str, weights: str, seed: int, input_size: tuple[int, int] | None, arguments: dict[str, Any]
) -> nn.Module:
    """Build the timm model and load its weights, with errors that say what would do."""
    hub_name = ":" in name  # such as hf-hub:timm/resnet50.a1_in1k or local-dir:/path
    if not hub_name and not timm.is_model(name):
        known = timm.list_models()
        raise InputError(f"timm has no model {name!r}{nearest(name.partition('.')[0], known)}")
    if weights == "pretrained" and not hub_name:
        _check_pretrained(name)
    if weights not in ("pretrained", "random"):
        if not Path(weights).is_file():
            raise InputError(
                f"weights {weights!r} for {name} is no file; give the path of a .pth or .safetensors file, "
                "'pretrained' or 'random'"
            )
        arguments["pretrained_cfg_overlay"] = {"file": weights, "url": "", "hf_hub_id": None, "source": ""}
    # Only transformers are built for one input size; the others refuse the argument.
    sizes = [{"img_size": input_size}, {}] if input_size else [{}]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for size in sizes:
            try:
                return timm.create_model(name, pretrained=weights != "random", **arguments, **size)
            except TypeError as error:
                if not size or "img_size" not in str(error):
                    raise InputError(f"{name} cannot be built with {arguments}: {error}") from error
            except Exception as error:
                if weights == "random":
                    raise
                reason = " ".join(str(error).split())[:300]
                raise InputError(f"weights {weights!r} do not fit {name}: {reason or type(error).__name__}") from error
    raise AssertionError("unreachable: the last attempt returns or raises")


def _check_pretrained(name: str) -> None:
    """Find out at once whether pretrained weights can be had: timm itself retries for most of a minute.

    Raises:
        InputError: If they are neither on this machine nor within reach.
    """
    from huggingface_hub import constants, try_to_load_from_cache  # noqa: PLC0415  slow to import

    config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    give = f"give a file: weights: /path/to/{name}.safetensors (or .pth), or weights: random"
    if config is None or not config.has_weights:
        raise InputError(f"timm has no pretrained weights for {name}; {give}")
    if config.file:
        if not Path(config.file).is_file():
            raise InputError(f"the weights of {name} are missing at {config.file}; {give}")
        return
    if config.hf_hub_id:
        files = ("model.safetensors", "pytorch_model.bin", config.hf_hub_filename)
        cached = [try_to_load_from_cache(config.hf_hub_id, file) for file in files if file]
        url, offline = constants.ENDPOINT, constants.HF_HUB_OFFLINE
        present = any(isinstance(path, str) for path in cached)
    else:
        url, offline = config.url, False
        present = (Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name).is_file()
    host = urlparse(url).hostname or ""
    if not present and (offline or not _reachable(host)):
        raise InputError(f"the pretrained weights of {name} are not on this machine and {host} cannot be reached; {give}")


def _reachable(host: str, seconds: float = 1.0) -> bool:
    def connect() -> bool:
        with socket.create_connection((host, 443), timeout=seconds):
            return True

    pool = ThreadPoolExecutor(1)  # a name look-up heeds no timeout of its own
    try:
        return pool.submit(connect).result(timeout=seconds)
    except (OSError, TimeoutError):
        return False
    finally:
        pool.shutdown(wait=False)
