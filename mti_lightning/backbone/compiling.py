"""The network's passes compiled: one plain graph from pictures to taps for each shape.

A pass is recorded once, with its taps in it: what is behind the last of them is not there, and no
hook is left. Where a graph of gradients begins, or is differentiated twice, the record is cut.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, final

import torch
from torch import Tensor, fx, nn

from mti_lightning.backbone.folding import is_hooked
from mti_lightning.backbone.layout import Layer
from mti_lightning.errors import reason_of
from mti_lightning.log import log_warning

Compile = bool | Literal["reduce-overhead", "max-autotune", "aot_eager"]
_GRAPHS: Final = ("reduce-overhead", "max-autotune")  # with CUDA graphs
# Of the largest value, and of the gradient's norm: what is compiled wrongly is off by far more.
_SAME: Final = 1e-4, 1e-2
_HALF: Final = 3e-2, 0.3
_MOST: Final = 16  # kinds of passes: more are no loop

# Runs a pass of pictures, with activations that are put in, and with what each tap hands on.
Recorded = Callable[[Tensor, Mapping[Layer, Tensor], Callable[[Layer, Tensor], Tensor]], object]


@final
@dataclass(frozen=True)
class Asked:
    """What is asked of a pass.

    Attributes:
        pictures: [N, 3, H, W] in 0..1.
        layers: Those that are tapped.
        cuts: Those of them at which a graph begins anew.
        insert: Activations that replace the network's own.
        twice: The first layer from which on gradients are differentiated once more, or taken more
            than once; None for nowhere.
        changed: Whether units are changed.
    """

    pictures: Tensor
    layers: tuple[Layer, ...]
    cuts: frozenset[Layer]
    insert: Mapping[Layer, Tensor]
    twice: Layer | None
    changed: bool

    @property
    def splits(self) -> frozenset[Layer]:
        """Where its record is cut."""
        return self.cuts | ({self.twice} & {*self.layers} if self.twice else frozenset())

    @property
    def whole(self) -> int:
        """How many parts of the record are differentiated at most once."""
        return 0 if self.insert else 1

    def begin(self, layer: Layer, value: Tensor) -> Tensor:
        """Return what the network goes on with behind a tap: a leaf, where a graph begins."""
        if layer in self.cuts and not value.requires_grad:
            return value.detach().requires_grad_()
        return value

    @property
    def kind(self) -> tuple[object, ...]:
        """What is the same of all passes that one record does for."""
        given = (self.pictures, *self.insert.values())
        told = [(value.shape, value.dtype, value.requires_grad) for value in given]
        device = self.pictures.device
        cast = torch.is_autocast_enabled(device.type)
        ways = (torch.is_grad_enabled(), cast, torch.get_num_threads(), device)
        return self.layers, self.cuts, self.twice, (*self.insert,), *told, *ways


@final
@dataclass
class _Part:
    """A part of a record, by what it takes and gives, as the record names it."""

    compute: Callable[..., Any]
    takes: list[str]
    gives: list[str]


@final
@dataclass
class _Passage:
    """A recorded pass, in parts.

    Attributes:
        parts: In the order in which they run.
        given: What the record calls pictures and activations that are put in.
        begins: For each part but the first the layer where it begins, whose value it calls so.
        ends: What the record calls the value that is tapped at each layer.
    """

    parts: list[_Part]
    given: list[str]
    begins: list[Layer]
    ends: dict[Layer, str]

    def run(self, asked: Asked) -> dict[Layer, Tensor]:
        """Run it."""
        values = dict(zip(self.given, (asked.pictures, *asked.insert.values()), strict=True))
        found: dict[Layer, Tensor] = {}
        for part, layer in zip(self.parts, (*self.begins, None), strict=True):
            made = part.compute(*[values[name] for name in part.takes])
            values |= zip(part.gives, made, strict=True)
            if layer is not None:
                value = values[self.ends[layer]]
                found[layer] = values[str(layer)] = asked.begin(layer, value)
        return {layer: found.get(layer, values[end]) for layer, end in self.ends.items()}


@final
class Compiler:
    """Compiles a network's passes.

    Args:
        name: The network's, for messages.
        way: As `Backbone` takes it.
    """

    def __init__(self, name: str, way: Compile) -> None:
        self.name, self.way = name, way
        self._passages: dict[object, _Passage | None] = {}
        self._state: list[object] = []
        self._said: set[str] = set()

    def __deepcopy__(self, memo: object) -> "Compiler":
        return Compiler(self.name, self.way)

    def run(
        self,
        network: nn.Module,
        asked: Asked,
        plain: Callable[[], dict[Layer, Tensor]],
        recorded: Recorded,
    ) -> dict[Layer, Tensor] | None:
        """Run a pass; None where it has to run as it is.

        Args:
            network: What is run.
            asked: What is asked of it.
            plain: Runs it as it is.
            recorded: Runs it to be recorded.
        """
        modules = [vars(module) for module in network.modules()]
        if asked.changed or any(map(is_hooked, network.modules())):
            self._leave("units are changed" if asked.changed else "others look at its modules")
            return None
        state: list[object] = [
            (id(value), value.data_ptr(), value._version)  # noqa: SLF001
            for module in modules
            for own in (module["_parameters"], module["_buffers"])
            for value in own.values()
            if value is not None
        ]
        if state != self._state:
            self._passages, self._state = {}, state
        kind = asked.kind
        if kind not in self._passages:
            if len(self._passages) >= _MOST:
                self._leave(f"it is run in more than {_MOST} ways")
                return None
            self._passages[kind] = self._try(asked, plain, recorded)
        passage = self._passages[kind]
        if passage is None:
            return None
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return passage.run(asked)

    def _leave(self, reason: str) -> None:
        """Say, once, that passes run as they are."""
        if reason not in self._said:
            self._said.add(reason)
            log_warning(f"passes of {self.name} that run as they are, not compiled: {reason}")

    def _try(
        self, asked: Asked, plain: Callable[[], dict[Layer, Tensor]], recorded: Recorded
    ) -> _Passage | None:
        """Record and compile a pass, and make sure that it gives what it gives as it is."""
        wanted = plain()  # which also tries what batches are padded by
        try:
            # A graph that was compiled with donated buffers can be gone through but once.
            once = torch._functorch.config.patch(donated_buffer=False)  # noqa: SLF001
            with warnings.catch_warnings(), once:
                warnings.simplefilter("ignore")  # PyTorch's, of its own doings
                passage = self._record(asked, wanted, recorded)
                found = passage.run(asked)
            half = torch.is_autocast_enabled(asked.pictures.device.type)
            of_values, of_gradients = _HALF if half else _SAME
            alike = _alike(found, wanted, of_values)
            if alike and torch.is_grad_enabled():
                # Rounding opens or closes some units.
                own, other = _gradient(found, asked), _gradient(wanted, asked)
                alike = bool((own - other).norm() <= of_gradients * other.norm())
        except Exception as error:  # noqa: BLE001  of a compiler there are many
            self._leave(reason_of(error))
            return None
        if not alike:
            self._leave("it then gives other values")
        return passage if alike else None

    def _record(self, asked: Asked, wanted: Mapping[Layer, Tensor], recorded: Recorded) -> _Passage:
        """Record a pass, and compile its parts.

        Args:
            asked: What is asked of it.
            wanted: What it gives as it is, in the order in which layers run.
            recorded: Runs it to be recorded.
        """
        begins = [layer for layer in wanted if layer in asked.splits]
        given = (asked.pictures, *asked.insert.values())
        names = [f"given {place}" for place in range(len(given))] + [*map(str, begins)]

        def compute(*values: Tensor) -> list[Tensor]:
            insert = dict(zip(asked.insert, values[1:], strict=False))
            starts = dict(zip(begins, values[len(given) :], strict=True))
            fronts: dict[Layer, Tensor] = {}

            def begin(layer: Layer, value: Tensor) -> Tensor:
                fronts[layer] = value
                return starts.get(layer, value)

            recorded(values[0], insert, begin)
            return [fronts[layer] for layer in wanted]

        from torch.fx.experimental.proxy_tensor import make_fx  # noqa: PLC0415  slow to import

        starts = [wanted[layer].detach().clone() for layer in begins]
        record = make_fx(compute, pre_dispatch=True)(*given, *starts)
        record.graph.eliminate_dead_code()
        (output,) = record.graph.find_nodes(op="output")
        ends = dict(zip(wanted, (node.name for node in output.args[0]), strict=True))
        parts = _split(record, names, len(begins))
        for part in parts[: len(parts) if asked.twice is None else asked.whole]:
            part.compute = self._compiled(part.compute)
        return _Passage(parts, names[: len(given)], begins, ends)

    def _compiled(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        how: dict[str, Any] = {"mode": self.way} if self.way in _GRAPHS else {}
        how |= {"backend": self.way} if self.way == "aot_eager" else {}
        made: Callable[..., Any] = torch.compile(compute, fullgraph=True, dynamic=False, **how)
        # The next run overwrites what a CUDA graph gives.
        return (lambda *given: [v.clone() for v in made(*given)]) if self.way in _GRAPHS else made


def _split(record: fx.GraphModule, names: Sequence[str], splits: int) -> list[_Part]:
    """Cut a record where values are put in for it to begin anew.

    Args:
        record: What was recorded.
        names: What its inputs are called; the last `splits` of them are those values.
        splits: How many there are.
    """
    inputs = record.graph.find_nodes(op="placeholder")
    (output,) = record.graph.find_nodes(op="output")
    called = dict(zip(inputs, names, strict=True))
    level: dict[fx.Node, int] = dict.fromkeys(inputs, 0)
    level |= {node: place for place, node in enumerate(inputs[len(inputs) - splits :], 1)}
    of_part: list[list[fx.Node]] = [[] for _ in range(splits + 1)]
    for node in record.graph.nodes:
        level.setdefault(node, max((level[other] for other in node.all_input_nodes), default=0))
        if node.op not in ("placeholder", "get_attr", "output"):
            of_part[level[node]].append(node)
    parts = []
    for place, own in enumerate(of_part):
        graph, copies, takes = fx.Graph(), {}, []
        for node in dict.fromkeys(other for one in own for other in one.all_input_nodes):
            if node.op == "get_attr":
                copies[node] = graph.node_copy(node)
            elif node.op == "placeholder" or level[node] < place:
                takes.append(node)
                copies[node] = graph.placeholder(node.name)
        for node in own:
            copies[node] = graph.node_copy(node, copies.__getitem__)
        gives = [n for n in own if any(u is output or level[u] > place for u in n.users)]
        graph.output(tuple(copies[node] for node in gives))
        compute = fx.GraphModule(record, graph)
        parts.append(
            _Part(compute, [called.get(n, n.name) for n in takes], [n.name for n in gives])
        )
    return parts


def _alike(some: Mapping[Layer, Tensor], others: Mapping[Layer, Tensor], within: float) -> bool:
    """Say whether values are the same, but for rounding."""
    return all(
        some[layer].shape == other.shape
        and bool((some[layer] - other).abs().max() <= within * other.abs().max())
        for layer, other in others.items()
    )


def _gradient(found: Mapping[Layer, Tensor], asked: Asked) -> Tensor:
    """Return the gradient of some loss in all that has one, in a row."""
    given = [*(found[layer] for layer in asked.cuts), asked.pictures, *asked.insert.values()]
    leaves = [value for value in given if value.requires_grad]
    losses = [value.square().mean() for value in found.values() if value.requires_grad]
    if not (leaves and losses):
        return torch.zeros(1)
    gradients = torch.autograd.grad(losses, leaves, allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients]).detach()
