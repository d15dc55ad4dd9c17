"""The names of a network's classes: `classifier:peacock` for `classifier:84`.

A feature stays the same whatever it is called: it is its index that checkpoints and sweeps record.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, final
from weakref import WeakKeyDictionary

import torch
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import Tensor, nn

from mti_lightning.backbone.layers import usable_layers
from mti_lightning.backbone.layout import Layer
from mti_lightning.backbone.network import Backbone
from mti_lightning.errors import InputError, shortened
from mti_lightning.features.feature import Feature
from mti_lightning.files import at_home, read_text

_MOST_NAMED = 4
_LONGEST = 60


@final
@dataclass(frozen=True)
class ClassNames:
    """What classes are called, each by one name or several.

    Args:
        names: By a class's index its names, the one that is shown first; none where it has none.
        whose: What errors say they are the classes of.
        exclusive: Whether a picture is known to be of one of them, as in ImageNet.
    """

    names: Mapping[int, tuple[str, ...]]
    whose: str
    exclusive: bool = False

    def __getitem__(self, index: int) -> str:
        """Return the name that is shown of a class; "" where it has none."""
        return short(self.names.get(index, ()))

    def index(self, name: str) -> int:
        """Return the class of a name, in whatever case.

        Raises:
            InputError: If no class or more than one has it, naming those that are near.
        """
        wanted = one_line(name).casefold()
        known: dict[str, list[int]] = {}  # the classes that have a name
        for index, names in self.names.items():
            for one in dict.fromkeys(name.casefold() for name in names):
                known.setdefault(one, []).append(index)
        found = known.get(wanted, [])
        if len(found) == 1:
            return found[0]
        given = f"class {one_line(name)!r} of {self.whose}"
        if found:
            told = " or ".join(f"{index} ({', '.join(self.names[index][:2])})" for index in found)
            raise InputError(f"{given} may be {told}; give the index")
        # Whole words first: spelling does not find `tiger cat` for `cat`.
        near = [one for one in known if re.search(rf"\b{re.escape(wanted)}\b", one)]
        near = near or get_close_matches(wanted, [*known], n=_MOST_NAMED, cutoff=0.6)
        classes = dict.fromkeys(index for one in near for index in known[one])
        told = ", ".join(f"{self[index]!r} ({index})" for index in [*classes][:_MOST_NAMED])
        raise InputError(
            f"there is no {given}; " + (f"near it are {told}" if told else "give its index")
        )


def short(names: Sequence[str]) -> str:
    """Return the name of several that is shown, cut short if need be; "" of none."""
    return shortened(names[0] if names else "", _LONGEST)


def display(feature: Feature | str, name: str) -> str:
    """Return how a feature is shown to people: by its index, and its class's name if it has one."""
    return f"{feature} ({name})" if name else str(feature)


def class_names(backbone: Backbone) -> ClassNames | None:
    """Return what a backbone's classes are called; None where it is not known.

    Raises:
        InputError: If the backbone was given a file of names that cannot be read, or does not have
            as many as there are classes.
    """
    return _known(backbone).names


def gives_classes(layer: Layer, backbone: Backbone) -> bool:
    """Return whether a layer's channels are the classes: whether it gives the network's output.

    Raises:
        InputError: If there is no such layer.
    """
    known = _known(backbone)
    if layer not in known.gives:
        layout = backbone.layout(layer)
        known.gives[layer] = False
        if known.output is not None and layout.shape[0] == known.output.shape[1]:
            value = backbone.run(_noise(backbone), [layer])[layer].flatten(1)
            known.gives[layer] = value.shape == known.output.shape and torch.allclose(
                value, known.output.to(value), rtol=1e-3, atol=1e-4
            )
    return known.gives[layer]


def class_layer(backbone: Backbone) -> Layer | None:
    """Return the layer whose channels are the classes; None where no layer's are."""
    network: Any = backbone.network
    with suppress(AttributeError, NotImplementedError):  # some models have none to name
        head = network.get_classifier()
        for name, module in network.named_modules():
            if module is head and not isinstance(module, nn.Identity):
                with suppress(InputError):  # it may run twice, or not at all
                    if gives_classes(Layer(name), backbone):
                        return Layer(name)
    output = _known(backbone).output
    if output is None:
        return None
    for one in reversed(usable_layers(backbone)):
        if one.layout.channels == output.shape[1] and gives_classes(one.layer, backbone):
            return one.layer
    return None


def names_of(feature: Feature, backbone: Backbone) -> tuple[str, ...]:
    """Return the names of the class that a feature stands for; none where it stands for none."""
    names = class_names(backbone)
    if names is None or feature.channel is None or feature.channel not in names.names:
        return ()
    gives = gives_classes(Layer.parse(feature.layer), backbone)
    return names.names[feature.channel] if gives else ()


def read_feature(given: str | Mapping[str, Any] | Feature, backbone: Backbone) -> Feature:
    """Read a feature whose channel may be named by its class, as `fc:Egyptian cat`.

    Raises:
        InputError: If it cannot be read, or no class or several are called so.
    """
    if isinstance(given, Mapping) and isinstance(name := given.get("channel"), str):
        if name != "*" and not name.isdecimal() and given.get("direction") is None:
            given = {key: value for key, value in given.items() if key != "channel"}
            given["direction"] = name
    elif isinstance(given, str) and (match := re.fullmatch(r"\s*([^:@]+):([^\[\]]*@.*)", given)):
        # A class's name may hold what is the grammar's elsewhere.
        with suppress(InputError):
            layer, name = match[1], match[2]
            names = class_names(backbone)
            if names is not None and gives_classes(Layer.parse(layer), backbone):
                return Feature(layer, channel=names.index(name))
    feature = Feature.parse(given)
    name = feature.direction
    if not isinstance(name, str) or _is_file(name):
        return feature
    names = class_names(backbone)
    if names is None:
        return feature  # whose direction is then missed
    if not gives_classes(Layer.parse(feature.layer), backbone):
        layer = class_layer(backbone)
        classes = f"; classes are named at layer {layer}" if layer else ""
        raise InputError(
            f"feature {str(feature)!r}: {name!r} is no file of a direction{classes}, not at "
            f"{feature.layer}"
        )
    try:
        return Feature(feature.layer, channel=names.index(name), position=feature.position)
    except InputError as error:
        raise InputError(f"feature {str(feature)!r}: {error}") from error


def in_network(feature: Feature, backbone: Backbone, other: Backbone) -> Feature:
    """Return what a network's feature is in another: of a class that of its name there.

    Raises:
        InputError: If the other has no class of that name, or several.
    """
    own, there, layer = names_of(feature, backbone), class_names(other), class_layer(other)
    if other is backbone or not own or there is None or layer is None or feature.channel is None:
        return feature
    names = class_names(backbone)
    if names is not None and names.names == there.names:
        return Feature(str(layer), channel=feature.channel)
    return Feature(str(layer), channel=there.index(own[0]))


@dataclass
class _Known:
    """What is known of a backbone's classes."""

    output: Tensor | None  # the network's, of two pictures, [2, K]; None where it is not that
    names: ClassNames | None
    gives: dict[Layer, bool] = field(default_factory=dict)


_KNOWN: WeakKeyDictionary[Backbone, _Known] = WeakKeyDictionary()


def _known(backbone: Backbone) -> _Known:
    if backbone not in _KNOWN:
        with torch.no_grad():
            output: object = backbone(_noise(backbone))
        if not isinstance(output, Tensor) or output.ndim != 2:
            output = None
        _KNOWN[backbone] = _Known(output, _names(backbone, output))
    return _KNOWN[backbone]


def _noise(backbone: Backbone) -> Tensor:
    size = (2, 3, *backbone.preprocessing.size)
    return torch.rand(size, generator=torch.Generator().manual_seed(0)).to(backbone.mean)


def _names(backbone: Backbone, output: Tensor | None) -> ClassNames | None:
    count = 0 if output is None else output.shape[1]
    if backbone.labels is not None:
        lines = _read(at_home(backbone.labels))
        if len(lines) != count:
            raise InputError(
                f"labels {backbone.labels!r} names {len(lines)} classes, one a line; "
                f"{backbone.name} has {count}"
            )
        return _named(([line, *line.split(", ")] for line in lines), backbone)
    config: Any = getattr(backbone.network, "pretrained_cfg", None)
    config = config if isinstance(config, Mapping) else {}
    labels: Sequence[str] = config.get("label_names") or ()
    if count and len(labels) == count:
        told: Any = config.get("label_descriptions")
        exclusive = all(re.fullmatch(r"n\d{8}", label) for label in labels)  # ImageNet's
        if exclusive and not told:
            told = ImageNetInfo("imagenet-22k").label_descriptions(as_dict=True)
        told = told if isinstance(told, Mapping) else {}
        texts = [str(told.get(label, label)) for label in labels]
    elif subset := infer_imagenet_subset({"num_classes": count}):
        exclusive, texts = True, [*ImageNetInfo(subset).label_descriptions()]
    else:
        return None
    return _named(([*text.split(", "), text] for text in texts), backbone, exclusive)


def _named(
    names: Iterable[Sequence[str]], backbone: Backbone, exclusive: bool = False
) -> ClassNames:
    plain = (tuple(dict.fromkeys(filter(None, map(one_line, of_class)))) for of_class in names)
    return ClassNames(dict(enumerate(plain)), backbone.name, exclusive)


def one_line(text: str) -> str:
    """Return a name on one line, without what cannot be printed: a file may hold anything."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _read(path: Path) -> list[str]:
    try:
        lines = read_text(path).split("\n")
    except OSError as error:
        raise InputError(f"labels {str(path)!r} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"labels {str(path)!r} is no text in UTF-8") from error
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def _is_file(text: str) -> bool:
    with suppress(OSError, ValueError):  # a name may be too long for a path
        return bool(re.search(r"\.(npy|pt|pth)(#.*)?$", text)) or at_home(text).is_file()
    return False
