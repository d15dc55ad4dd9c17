"""The frozen network: any timm model, with taps on its layers."""

import contextlib
import functools
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, Self, final

import torch
from torch import Tensor, nn

from mti_lightning.backbone.batch_invariance import BatchInvariance
from mti_lightning.backbone.changes import Change
from mti_lightning.backbone.compiling import Asked, Compile, Compiler
from mti_lightning.backbone.folding import Fold, find_folds, folded, is_hooked
from mti_lightning.backbone.layout import ActivationLayout, Layer
from mti_lightning.backbone.preprocessing import find_preprocessing, own_ways
from mti_lightning.backbone.survey import Survey, find_layout
from mti_lightning.backbone.taps import tapped
from mti_lightning.backbone.weights import create_network
from mti_lightning.errors import InputError, nearest, reason_of
from mti_lightning.registry import register_own_backbones

Precision = Literal["float32", "bf16"]
_AS_IT_IS: Final = contextlib.nullcontext()


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
        labels: A text file of the names of its classes, one a line; by default timm's, where the
            model says what they are.
        fold: Whether convolutions do the work of the batch norms behind them, where nothing is read
            between the two: faster, and the same but for rounding.
        compile: Compile the passes of steps and sweeps, once for each shape, `reduce-overhead` and
            `max-autotune` with CUDA graphs. What cannot be compiled runs as it is; the log says so.
        precision: Of the network in steps and sweeps; images and attributions are float32.

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
        labels: str | None = None,
        fold: bool = True,
        compile: Compile = False,  # noqa: A002  as PyTorch calls it
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        if input_size and min(input_size) < 1:
            raise InputError(f"input_size {list(input_size)}: give a height and a width in pixels")
        self.name, self.labels = name, labels
        given = {"weights": weights, "seed": seed, "input_size": input_size, "labels": labels}
        ways: dict[str, object] = {"compile": compile, "precision": precision}
        self.ways = {of: way for of, way in ways.items() if way not in (False, "float32")}
        # By what, to make it again.
        self.made = {"name": name, **given, "arguments": arguments, **self.ways}
        register_own_backbones()
        network, self.absent = create_network(name, weights, seed, input_size, arguments or {})
        self._unregistered = (network.eval().requires_grad_(False),)
        self.compiles, self.precision = compile, precision
        self._lay_out(torch.device("cpu"))
        self.preprocessing, moments = find_preprocessing(network, name, input_size)
        self._own = own_ways(name, arguments or {}, moments)
        for moment, values in moments.items():
            self.register_buffer(moment, values[:, None, None], persistent=False)
        self._hashed: tuple[list[tuple[int, int, torch.dtype]], str] | None = None
        self._only_ways: dict[tuple[Layer, tuple[Layer, ...]], bool] = {}
        self._batch_invariance = BatchInvariance()
        self.fold = fold
        self._folds: list[Fold] | None = None if fold else []  # None: not looked for yet
        self._changes: tuple[Change, ...] = ()
        self._compiler = Compiler(name, compile)
        self._works = False  # in steps and sweeps
        self._twice: Layer | None = None

    @property
    def network(self) -> nn.Module:
        """The timm model itself."""
        return self._unregistered[0]

    def digest(self) -> str:
        """Return what tells the network's weights, and how it computes, from others.

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
        hashed, told = self._hashed[1], [self._own.encode(), *(c.digest for c in self._changes)]
        ours = b"".join([hashed.encode(), *told])
        return hashlib.sha256(ours).hexdigest()[:16] if any(told) else hashed

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        dtype = self.mean.dtype
        self.network._apply(fn)  # type: ignore[no-untyped-call]  # noqa: SLF001  overridden here
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.mean.dtype != dtype:
            self._hashed = None  # weights were rounded
            self._folds = None if self.fold else []
        self._lay_out(self.mean.device)
        return self

    def _lay_out(self, device: torch.device) -> None:
        """Put channels last where that is faster: on a CPU, and of tensor cores in bf16."""
        last = device.type == "cpu" or (device.type == "cuda" and self.precision == "bf16")
        layout = torch.channels_last if last else torch.contiguous_format
        for value in (*self.network.parameters(), *self.network.buffers()):
            if value.dim() == 4:  # those of volumes know another layout
                value.data = value.data.contiguous(memory_format=layout)

    def noise(self, count: int) -> Tensor:
        """Return pictures of noise to try the network on, always the same, [count, 3, H, W]."""
        size = (count, 3, *self.preprocessing.size)
        return torch.rand(size, generator=torch.Generator().manual_seed(0)).to(self.mean)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the whole network's output for pictures [N, 3, H, W] in 0..1."""
        changed = {change.layer for change in self._changes}
        with self._folded(changed), self._hooks(changed, self._changed):
            return self._compute(pictures)

    def _compute(self, pictures: Tensor) -> Tensor:
        output: Tensor = self.network((pictures - self.mean) / self.std)
        return output

    @contextlib.contextmanager
    def scaled(
        self,
        layer: Layer | str,
        channels: Sequence[int],
        factor: float | Sequence[float] | Tensor = 0.0,
    ) -> Iterator[Self]:
        """Multiply channels of a layer by a factor, for as long as this context lasts; 0 silences.

        Whatever runs what lies behind the layer computes from them: an objective, a sweep, the
        report. What is read *at* the layer is the network's own. Contexts may be nested.

        Args:
            layer: Such as `layer4`.
            channels: Which, [k] of them.
            factor: One for all, or one for each, [k].

        Raises:
            InputError: If the layer or a channel does not exist, or the factors do not fit.
        """
        with self._with_change(layer, channels, True, factor):
            yield self

    @contextlib.contextmanager
    def replaced(
        self,
        layer: Layer | str,
        channels: Sequence[int],
        values: float | Sequence[float] | Tensor,
    ) -> Iterator[Self]:
        """Set channels of a layer to other values, for as long as this context lasts; see `scaled`.

        Args:
            layer: Such as `layer4`.
            channels: Which, [k] of them.
            values: One for all, or for each, [k], such as their mean; or the layer's activations
                of other pictures, [M, ...]: row i of a batch gets those of i mod M.

        Raises:
            InputError: If the layer or a channel does not exist, or the values do not fit.
        """
        with self._with_change(layer, channels, False, values):
            yield self

    @contextlib.contextmanager
    def _with_change(self, layer: Layer | str, *change: Any) -> Iterator[None]:
        at = Layer.parse(layer) if isinstance(layer, str) else layer
        made = Change.of(at, self.layout(at), *change)
        self._changes = (*self._changes, made)
        try:
            yield
        finally:
            self._changes = tuple(other for other in self._changes if other is not made)

    def _changed(self, layer: Layer, value: Tensor) -> Tensor:
        own = (change for change in self._changes if change.layer == layer)
        return functools.reduce(lambda changed, change: change(changed), own, value)

    def run(
        self,
        pictures: Tensor,
        layers: Sequence[Layer],
        cut: Layer | Collection[Layer] | None = None,
        insert: Mapping[Layer, Tensor] | None = None,
    ) -> dict[Layer, Tensor]:
        """Run the network up to the last of `layers` and return what passes through each of them.

        What is returned is a copy that no operation in place can overwrite, still part of the
        graph, but with a layer `cut` the graph begins there: its copy is a leaf that the rest of
        the network is computed from. Of several the first is that, and the others follow from it.

        Args:
            pictures: [N, 3, H, W] in 0..1; their size is the network's input size.
            layers: The layers to tap.
            cut: The one, or those, of `layers` that gradients are taken with respect to.
            insert: Activations that replace the network's own at a layer.

        Returns:
            For each layer its activations, as the network lays them out.

        Raises:
            InputError: If one of the layers does not exist, is not passed a tensor, or did not run.
        """
        cuts = frozenset([cut] if isinstance(cut, Layer) else cut or ())
        pictures, taps = pictures.detach() if cuts else pictures, tuple(dict.fromkeys(layers))
        asked = Asked(pictures, taps, cuts, insert or {}, self._twice, bool(self._changes))
        recorded = functools.partial(self._run, layers=taps)
        plain, found = functools.partial(recorded, pictures, asked.insert, asked.begin), None
        with torch.autocast(pictures.device.type, torch.bfloat16) if self._half else _AS_IT_IS:
            if self._works and self.compiles:
                found = self._compiler.run(self.network, asked, plain, recorded)
            found = found or plain()
        for layer in layers:
            if layer not in found:
                raise InputError(
                    f"layer {str(layer)!r} of {self.name} takes no part in its forward pass"
                )
        return found

    def _run(
        self,
        pictures: Tensor,
        insert: Mapping[Layer, Tensor],
        begin: Callable[[Layer, Tensor], Tensor],
        layers: Sequence[Layer],
    ) -> dict[Layer, Tensor]:
        captured: dict[Layer, Tensor] = {}

        def tap(layer: Layer, value: Tensor) -> Tensor:
            value = insert.get(layer, value)
            if layer in layers:
                # Cloned twice: the first copy is ours, the network may overwrite the second.
                copy = value.to(torch.float32, copy=True) if self._half else value.clone()
                value = captured[layer] = begin(layer, copy)
                if len(captured) == len(layers):
                    raise _Stop
            return self._changed(layer, value.clone())

        alike: contextlib.AbstractContextManager[None] = _AS_IT_IS
        if self.mean.device.type == "cpu":
            alike = self._batch_invariance(self.network, len(pictures))
        at = {*layers, *insert, *(change.layer for change in self._changes)}
        with self._folded(at), alike, self._hooks(at, tap), contextlib.suppress(_Stop):
            self._compute(pictures)
        return captured

    def working(self) -> contextlib.AbstractContextManager[None]:
        """Compute as `compile` and `precision` say meanwhile; else it is as it is, and exact."""
        return self._meanwhile(_works=True)

    def differentiated_twice(self, layer: Layer) -> contextlib.AbstractContextManager[None]:
        """Say that what is behind a layer is differentiated again meanwhile: it is not compiled."""
        return self._meanwhile(_twice=layer)

    @property
    def _half(self) -> bool:
        return self._works and self.precision == "bf16"

    @contextlib.contextmanager
    def _meanwhile(self, **values: Any) -> Iterator[None]:
        before = {name: getattr(self, name) for name in values}
        vars(self).update(values)
        try:
            yield
        finally:
            vars(self).update(before)

    def run_behind(
        self, layer: Layer, activations: Tensor, layers: Sequence[Layer], pictures: Tensor
    ) -> dict[Layer, Tensor]:
        """Run what comes behind a layer, from other activations than the pictures' own.

        Where nothing goes round the layer, what comes before it runs for one blank picture only.

        Args:
            layer: Where the activations are put in.
            activations: [k · N, ...], k sets of those of all pictures.
            layers: The layers to tap.
            pictures: [N, 3, H, W] in 0..1.

        Returns:
            For each layer its activations, [k · N, ...].
        """
        if self.is_only_way(layer, tuple(layers)):
            pictures = torch.zeros_like(pictures[:1])
        else:
            pictures = pictures.repeat(len(activations) // len(pictures), 1, 1, 1)
        return self.run(pictures, layers, insert={layer: activations})

    @torch.no_grad()
    def is_only_way(self, layer: Layer, layers: tuple[Layer, ...]) -> bool:
        """Return whether all that reaches some layers passes through one: tried once, with NaN."""
        if (layer, layers) not in self._only_ways:
            with self._meanwhile(_changes=(), _works=False):  # changes would hide a NaN
                self._only_ways[layer, layers] = self._try_only_way(layer, layers)
        return self._only_ways[layer, layers]

    def _try_only_way(self, layer: Layer, layers: tuple[Layer, ...]) -> bool:
        pictures = self.noise(2)
        tapped = self.run(pictures, [layer, *layers])
        nothing = torch.full_like(pictures[:1], torch.nan)
        try:
            found = self.run(nothing, layers, insert={layer: tapped[layer]})
            # A NaN is close to nothing.
            return all(
                torch.allclose(found[one], wanted, 0, 0.01 * float(wanted.abs().max()))
                for one, wanted in tapped.items()
                if one != layer
            )
        except (AssertionError, IndexError, RuntimeError, ValueError):
            return False  # it does not take activations of more pictures than it was given

    def _hooks(
        self, layers: set[Layer], tap: Callable[[Layer, Tensor], Tensor]
    ) -> contextlib.AbstractContextManager[None]:
        """Pass on what `tap` makes of what goes through layers, meanwhile."""
        return tapped({layer: self._module(layer) for layer in layers}, tap, self.name)

    def _folded(self, layers: set[Layer]) -> contextlib.AbstractContextManager[None]:
        """Fold norms away where none of some layers is between; before any hook is put up."""
        if self._folds is None and not any(map(is_hooked, self.network.modules())):
            with torch.autocast(self.mean.device.type, enabled=False):
                self._folds = find_folds(self.network, lambda: self._compute(self.noise(1)))
        return folded(self._folds or [], layers)

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
        """Return how activations lie at a layer, found by trying which of them follow the pictures.

        Raises:
            InputError: If there is no such layer, it does not run exactly once in a forward pass,
                it does not keep the batch as its first dimension (as inside a windowed attention),
                it cannot be told which dimension is its channels, it is a classifier but not the
                network's whole output, or the network cannot take pictures of the input size.
        """
        self._module(layer)
        survey, layouts = self._survey
        return find_layout(layer, survey, layouts, self.name, self.absent)

    @functools.cached_property
    def _survey(self) -> tuple[Survey, dict[Layer, ActivationLayout]]:
        """What passes through all layers, and how it lies."""
        height, width = self.preprocessing.size
        survey = Survey(self.network, (height, width))
        try:
            with survey, torch.no_grad():
                survey.compare(self._compute(survey.pictures.to(self.mean)))
        except (AssertionError, RuntimeError) as error:
            raise InputError(
                f"{self.name} cannot take pictures of {height}x{width} pixels: {reason_of(error)}"
            ) from error
        # timm's name, absent from models of other families.
        return survey, survey.layouts(getattr(self.network, "num_prefix_tokens", 0))
