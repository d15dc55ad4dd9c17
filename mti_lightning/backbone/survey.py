"""One pass that finds how the values at each layer follow the pictures."""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from mti_lightning.backbone.layout import ActivationLayout, Layer, Movement, infer_layout
from mti_lightning.backbone.taps import check_tensor
from mti_lightning.errors import InputError

_COUNT: Final = 5  # a picture, and four in which one half of it is another
# What these take and give has its channels there, whatever else it is.
_FIRST: Final = (
    *(nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d, LayerNorm2d),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
)
_LAST: Final = (nn.Linear, nn.LayerNorm)


@final
@dataclass(frozen=True)
class Passing:
    """What passed through a layer in the pass over `halves`.

    Attributes:
        kind: The type's name, where it was no tensor.
        shape: Of the whole batch.
        finite: Whether all values were numbers.
        movement: How they follow the pictures; None where their batch is not the first dimension,
            or nothing changed.
    """

    kind: str = "Tensor"
    shape: tuple[int, ...] = ()
    finite: bool = True
    movement: Movement | None = None


def halves(size: tuple[int, int]) -> Tensor:
    """Return a picture, and it with another top, bottom, left and right half, [5, 3, H, W].

    It is noise, and so is the other; both are the same in each quarter: then halves of a map change
    by the same, moved.
    """
    generator, (height, width) = torch.Generator().manual_seed(0), size
    noise = torch.rand(2, 3, -(-height // 2), -(-width // 2), generator=generator)
    picture, other = noise.tile(1, 1, 2, 2)[..., :height, :width]
    shown: Tensor = picture.repeat(_COUNT, 1, 1, 1)
    rows, columns = height // 2, width // 2
    shown[1, :, :rows], shown[2, :, rows:] = other[:, :rows], other[:, rows:]
    shown[3, ..., :columns], shown[4, ..., columns:] = other[..., :columns], other[..., columns:]
    return shown


def find_layout(
    layer: Layer,
    survey: "Survey",
    layouts: Mapping[Layer, ActivationLayout],
    name: str,
    absent: Sequence[str],
) -> ActivationLayout:
    """Return how activations lie at a layer.

    Args:
        layer: One that the network has.
        survey: Of the network.
        layouts: Those that it tells.
        name: The network's, for messages.
        absent: The tensors that its weights do not have.

    Raises:
        InputError: If it cannot be told, as of `Backbone.layout`.
    """
    passings = survey.passings.get(layer, [])
    for passing in passings:
        check_tensor(layer, passing.kind, name)
    if len(passings) != 1:
        raise InputError(
            f"layer {str(layer)!r} of {name} runs {len(passings)} times in a forward "
            "pass; only a layer that runs exactly once can be tapped"
        )
    if not passings[0].finite and absent:
        raise InputError(
            f"layer {str(layer)!r} of {name} depends on {', '.join(absent)}, which "
            "its weights do not have; name an earlier layer, or give weights that have them"
        )
    if not passings[0].finite:
        raise InputError(
            f"layer {str(layer)!r} of {name} gives values that are no numbers (NaN or "
            "infinite) for a picture of noise; its weights are broken, or its mean and std are not "
            "its own"
        )
    if layer in survey.other_outputs:
        raise InputError(
            f"layer {str(layer)!r} of {name} is one of several that its output is made "
            "of: its channels are not the network's classes; name a layer before it"
        )
    if layer not in layouts:
        raise InputError(
            f"layer {str(layer)!r} of {name} gives {list(passings[0].shape)} for "
            f"{len(survey.pictures)} pictures: {survey.reason(layer)}"
        )
    return layouts[layer]


@final
class Survey:
    """Notes what passes through all layers of a network, of pictures of `halves`."""

    def __init__(self, network: nn.Module, picture_size: tuple[int, int]) -> None:
        self.picture_size, self.pictures = picture_size, halves(picture_size)
        self.passings: dict[Layer, list[Passing]] = {}
        self.other_outputs: set[Layer] = set()  # of classifiers, but not the network's own
        named = (getattr(network, "pretrained_cfg", None) or {}).get("classifier") or ()
        classifiers = {named} if isinstance(named, str) else {*named}
        self._outputs: dict[Layer, Any] = {Layer(name): None for name in classifiers}
        self._last_dims: dict[Layer, bool | None] = {}
        self._known: dict[int, tuple[weakref.ref[Tensor], int, Passing]] = {}
        self._modules = {name: module for name, module in network.named_modules() if name}

    def __enter__(self) -> "Survey":
        self._handles = []
        for name, module in self._modules.items():
            given, made = Layer(name, "input"), Layer(name)
            self._last_dims |= dict.fromkeys((given, made), _channels_last(module))
            self._handles += [
                module.register_forward_pre_hook(
                    lambda _, inputs, given=given: self._note(given, inputs[0] if inputs else None)
                ),
                module.register_forward_hook(
                    lambda _, _inputs, output, made=made: self._note(made, output)
                ),
            ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._known.clear()

    def layouts(self, prefix_tokens: int) -> dict[Layer, ActivationLayout]:
        """Return how activations lie, of those layers of which it can be told.

        Args:
            prefix_tokens: How many tokens stand before those of the map.
        """
        once = {layer: passed[0] for layer, passed in self.passings.items() if len(passed) == 1}
        fitting = {
            layer: passing
            for layer, passing in once.items()
            if passing.shape[:1] == (_COUNT,) and 2 <= len(passing.shape) <= 4
        }
        sequences: set[int] = set()  # lengths of what is known to be a sequence of tokens
        found: dict[Layer, ActivationLayout] = {}
        for known_lengths in (set(), sequences):  # those that tell by themselves come first
            for layer, passing in fitting.items():
                layout = infer_layout(
                    passing.shape[1:],
                    self.picture_size,
                    passing.movement,
                    self._last_dims[layer],
                    prefix_tokens,
                    known_lengths,
                )
                if layout is None:
                    found.pop(layer, None)
                    continue
                found[layer] = layout
                if layout.is_tokens:
                    sequences.add(layout.shape[0])
        return found

    def compare(self, output: Any) -> None:
        """Note which classifiers give something else than the network does.

        Args:
            output: The network's, of the pictures.
        """
        for layer, value in self._outputs.items():
            alike = isinstance(value, Tensor) and isinstance(output, Tensor)
            if not alike or value.shape != output.shape or value.isnan().any():
                continue
            if not torch.allclose(value, output, rtol=1e-3, atol=1e-5 * float(output.abs().max())):
                self.other_outputs.add(layer)
        self._outputs.clear()

    def reason(self, layer: Layer) -> str:
        """Say why it is not known how activations lie at a layer that runs once."""
        shape = self.passings[layer][0].shape
        if shape[:1] != (_COUNT,) or not 2 <= len(shape) <= 4:
            return (
                "not [N, C], [N, T, C], [N, C, H, W] or [N, H, W, C]; "
                "name a layer outside the windows or groups"
            )
        return (
            "it cannot be told which are its channels and which positions of the picture; "
            "name a layer before or after it"
        )

    def _note(self, layer: Layer, value: Any) -> None:
        self.passings.setdefault(layer, []).append(self._look(value))
        if layer in self._outputs:
            self._outputs[layer] = value

    def _look(self, value: Any) -> Passing:
        if not isinstance(value, Tensor):
            return Passing(type(value).__name__)
        known = self._known.get(id(value))
        # The same tensor comes out of one module and goes into the next.
        if known and known[0]() is value and known[1] == value._version:  # noqa: SLF001
            return known[2]
        shape = tuple(value.shape)
        if not value.is_floating_point():
            return Passing(shape=shape)
        if not value.isfinite().all():
            return Passing(shape=shape, finite=False)
        movement = None
        if shape[0] == _COUNT and 3 <= len(shape) <= 4:
            movement = Movement.of(value)
        passing = Passing(shape=shape, movement=movement)
        self._known[id(value)] = weakref.ref(value), value._version, passing  # noqa: SLF001
        return passing


def _channels_last(module: nn.Module) -> bool | None:
    """Say whether a module's values have their channels last; None where it does not tell."""
    if isinstance(module, _FIRST):
        return False
    return True if isinstance(module, _LAST) else None
