"""The signs of a network's weights, layer by layer: how far units excite only, or inhibit only."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mti_lightning.backbone import Backbone
from mti_lightning.errors import InputError
from mti_lightning.features.classes import class_layer

_LISTED: Final = 5  # units of a head
_ONE_SIGN: Final = 0.9  # the Dale index from which on a unit counts as of one sign
_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


@final
@dataclass(frozen=True)
class Signs:
    """The signs of the weights by which one layer's units act on the next.

    Attributes:
        model: Whose they are.
        layer: The module that has the weights.
        kind: What it is.
        depth: Where it stands among all of them, 0..1.
        negative: The share of negative weight, Σ|w < 0| / Σ|w|.
        dale: The Dale index of each unit that it takes, |Σw| / Σ|w| over its outgoing weights, [U]:
            1 where all have one sign.
        chance: What the mean index would be if signs were drawn at random.
        inhibits: Of a linear head the share of the classes that each unit inhibits, [U].
    """

    model: str
    layer: str
    kind: str
    depth: float
    negative: float
    dale: Tensor
    chance: float
    inhibits: Tensor | None = None

    @property
    def row(self) -> dict[str, str]:
        """A row of the table."""
        low, middle, high = np.quantile(self.dale.numpy(), [0.1, 0.5, 0.9])
        told = {
            "negative": self.negative,
            "dale": float(self.dale.mean()),
            "dale_chance": self.chance,
            "dale_10": low,
            "dale_50": middle,
            "dale_90": high,
            "one_sign": float((self.dale >= _ONE_SIGN).float().mean()),
        }
        return {
            "model": self.model,
            "layer": self.layer,
            "kind": self.kind,
            "units": str(len(self.dale)),
            **{name: f"{value:.3f}" for name, value in told.items()},
            "inhibit_most_classes": self.told_head,
        }

    @property
    def told_head(self) -> str:
        """The units of a head that inhibit most classes, and what share of them."""
        if self.inhibits is None:
            return ""
        most = self.inhibits.argsort(descending=True, stable=True)[:_LISTED].tolist()
        return ", ".join(f"{unit} ({float(self.inhibits[unit]):.0%})" for unit in most)


def find_signs(backbone: Backbone) -> list[Signs]:
    """Return the signs of each convolution and linear map, by their weights alone.

    A batch norm that follows is counted in: where its scale is negative the signs turn.

    Raises:
        InputError: If the network has no such weights.
    """
    found, head = [*_maps(backbone.network)], class_layer(backbone)
    signs = []
    for place, (name, module, weight) in enumerate(found):
        by_unit = _outgoing(module, weight)  # [U, ...]
        size, total = by_unit.abs(), by_unit.abs().sum(1).clamp(min=1e-30)
        negative = float((-by_unit.clamp(max=0)).sum() / size.sum().clamp(min=1e-30))
        dale = by_unit.sum(1).abs() / total
        chance = float(((2 / np.pi) ** 0.5 * by_unit.norm(dim=1) / total).mean().clamp(max=1))
        is_head = head is not None and head.module == name and head.side == "output"
        inhibits = (weight.flatten(1) < 0).float().mean(0) if is_head else None
        depth, kind = place / max(len(found) - 1, 1), type(module).__name__
        signs.append(Signs(backbone.name, name, kind, depth, negative, dale, chance, inhibits))
    if not signs:
        raise InputError(f"{backbone.name} has no convolution and no linear map")
    return signs


def _maps(network: nn.Module) -> Iterator[tuple[str, Any, Tensor]]:
    """Yield the modules that mix units, with their weights, [O, I, ...]."""
    every = [
        (name, module)
        for name, module in network.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    after = [module for _, module in every[1:]]
    for (name, module), following in zip(every, [*after, None], strict=True):
        if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            continue
        weight = module.weight.detach().double()
        if isinstance(following, _BatchNorm) and following.num_features == len(weight):
            scale = following.weight.detach().double()
            if following.running_var is not None:
                scale = scale / (following.running_var + following.eps).sqrt()
            weight = weight * scale.view(-1, *[1] * (weight.ndim - 1))
        if weight.isfinite().all():  # those of a classifier that nobody gave are not
            yield name, module, weight


def _outgoing(module: Any, weight: Tensor) -> Tensor:
    """Return the outgoing weights of each unit that a module takes, [U, ...]."""
    groups = getattr(module, "groups", 1)
    of_group = weight.view(groups, len(weight) // groups, *weight.shape[1:])  # [G, O/G, I/G, ...]
    return of_group.transpose(1, 2).flatten(0, 1).flatten(1)


def summary(signs: Sequence[Signs]) -> list[str]:
    """Return what a model's signs come to, in lines."""
    least, most = (pick(signs, key=lambda one: one.negative) for pick in (min, max))
    dale = np.mean([float(one.dale.mean()) for one in signs])
    chance = np.mean([one.chance for one in signs])
    negative = f"{least.negative:.0%} ({least.layer}) to {most.negative:.0%} ({most.layer})"
    heads = [
        f"units of {one.layer} that inhibit most classes: {one.told_head}"
        for one in signs
        if one.told_head
    ]
    whole = (
        f"{signs[0].model}: {len(signs)} layers; negative weight from {negative}; mean Dale index"
    )
    return [f"{whole} {dale:.2f}, with signs at random {chance:.2f}", *heads]


def draw_signs(models: Sequence[Sequence[Signs]]) -> Figure:
    """Draw the share of negative weight and the Dale index of several models, by depth."""
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    shares, dales = figure.subplots(1, 2, sharex=True)
    for place, of_model in enumerate(models):
        colour, depth = _COLOURS[place % len(_COLOURS)], [one.depth for one in of_model]
        name = of_model[0].model
        shares.plot(depth, [one.negative for one in of_model], ".-", color=colour, label=name)
        dales.plot(depth, [float(one.dale.mean()) for one in of_model], ".-", color=colour)
        dales.plot(depth, [one.chance for one in of_model], ":", color=colour)
    shares.axhline(0.5, color="0.7", linewidth=1)
    shares.set(xlabel="depth", ylabel="share of negative weight", ylim=(0, 1))
    dales.set(xlabel="depth", ylabel="mean Dale index; dotted: signs at random", ylim=(0, 1))
    for text in shares.legend(frameon=False).get_texts():
        text.set_parse_math(False)
    return figure
