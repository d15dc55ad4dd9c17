"""An attribution method at work: the networks it is tried on, and what it makes of them."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple, Never, final

import torch
from torch import Tensor

from mti_lightning.attribution.methods import Attribution, Pass, attribute
from mti_lightning.backbone import Backbone, Layer
from mti_lightning.errors import InputError
from mti_lightning.features.bound import BoundFeature
from mti_lightning.features.feature import Feature
from mti_lightning.testing.checks import fail
from mti_lightning.vetoed_shapes.world import VetoedShapes


class Given(NamedTuple):
    """What a method was given, and what it made of it."""

    forward: Pass
    before: Tensor  # the activations, as they were
    result: Any


@final
class _Watch(Attribution):
    """Stands between `attribute`, which stops at a wrong result, and the method."""

    def __init__(self, method: Attribution, fails: bool, from_mean: bool) -> None:
        self.method, self.fails, self.from_mean = method, fails, from_mean
        self.baseline, self.grey = method.baseline, method.grey
        self.given: Given | None = None

    def attribute(self, forward: Pass, create_graph: bool) -> Tensor:
        before = forward.activations.detach().clone()
        if self.from_mean:
            dims = (0, *forward.layout.position_dims)
            forward = replace(forward, baseline=before.mean(dims, keepdim=True))
        passed = replace(forward, head=_broken) if self.fails else forward
        result = self.method.attribute(passed, create_graph)
        self.given = Given(forward, before, result)
        return forward.activations


def _broken(_: Tensor) -> Never:
    raise Broken


class Broken(Exception):  # noqa: N818  raised on purpose
    """A head that fails, as where memory runs out."""


class World(NamedTuple):
    """A network that methods are tried on; over its last layer the head is linear."""

    lies: str  # how its activations do
    backbone: Backbone
    pictures: Tensor
    head: str
    layer: str
    last: str


@final
class MethodTrial:
    """A method, and the networks it is tried on.

    They are the vetoed shapes', and a small transformer of random weights, which is smooth and
    lays its activations out as tokens. A method may decline one of them.
    """

    channels: Sequence[int] = (0, 3, 5)  # each picture has a feature of its own

    def __init__(self, method: Attribution) -> None:
        self.method, self.declined = method, ""

    @cached_property
    def accepted(self) -> dict[World, Given]:
        """The networks that it does not decline, and what it gives for two pictures.

        Raises:
            Failure: If there are none.
        """
        shapes, vit = Backbone("vetoed_shapes_resnet"), Backbone("test_vit", "random")
        shown = VetoedShapes(3, seed=7)
        pictures = torch.stack([shown[i]["picture"] for i in range(3)])  # [3, 3, 96, 96]
        found: dict[World, Given] = {}
        for world in (
            World("maps", shapes, pictures, "fc", "layer3", "layer4"),
            World("tokens", vit, vit.noise(3), "head", "blocks.1", "norm"),
        ):
            try:
                found[world] = self.attribute(world, slice(2))
            except InputError as error:
                self.declined += f"{'; ' * bool(self.declined)}declines {world.lies}: {error}"
        if not found:
            fail(f"it {self.declined}; one of them has to do")
        return found

    @cached_property
    def world(self) -> World:
        return next(iter(self.accepted))

    @cached_property
    def batch(self) -> Given:
        return self.attribute(self.world)

    @cached_property
    def bent(self) -> list[Given]:
        return [self.batch, *self._from_mean(self.world.layer)]

    @cached_property
    def linear(self) -> list[Given]:
        last = self.world.last
        return [self.attribute(self.world, layer=last), *self._from_mean(last)]

    def _from_mean(self, layer: str) -> list[Given]:
        """Attribute from the mean activation, where the method takes any baseline."""
        if not self.method.needs_baseline or self.method.grey is not None:
            return []
        return [self.attribute(self.world, layer=layer, from_mean=True)]

    def attribute(
        self,
        world: World,
        rows: slice = slice(None),
        layer: str = "",
        create_graph: bool = False,
        fails: bool = False,
        from_mean: bool = False,
    ) -> Given:
        backbone = world.backbone
        bound_features = [
            BoundFeature(Feature(world.head, channel), backbone) for channel in self.channels[rows]
        ]
        watch = _Watch(self.method, fails, from_mean)
        on = Layer.parse(layer or world.layer)
        attribute(backbone, world.pictures[rows], bound_features, on, watch, create_graph)
        assert watch.given is not None
        return watch.given
