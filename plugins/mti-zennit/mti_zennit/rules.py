"""Zennit's rules on a network for the length of one pass, and what lies between its modules.

Zennit has a rule for each kind of module. What a network does outside of modules its rules do not
see: a shortcut's sum, for one, would hand its relevance on to both branches, doubling it. So the
graph between the modules is read, sums get the rule of `zennit.layer.Sum`, and what has no rule is
refused.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import Node
from zennit.core import Composite, Hook, stabilize
from zennit.rules import Epsilon
from zennit.types import Activation, Linear, MaxPool

from mti_lightning import InputError, moves_values

# Modules that move values on, or leave some out: their gradient is their rule.
_HARMLESS = (MaxPool, nn.Identity, nn.Dropout, nn.Flatten)
# What makes a rule in zennit's hooks.
_RULE = ("input_modifiers", "param_modifiers", "output_modifiers", "gradient_mapper", "reducer")
Edge = Callable[[Tensor], Tensor]  # what becomes of a gradient on its way down


class _Carried(Enum):
    """What comes down the graph."""

    GRADIENT = "gradient"  # above the first modules
    SIGNED = "signed"  # relevance of values that may be negative
    RELEVANCE = "relevance"


@dataclass
class _Call:
    """One call of a module."""

    module: nn.Module
    hook: Hook | None  # its rule
    output: Tensor
    below: Node | None  # what gave its input; None where no gradient is wanted


@dataclass
class Trace:
    """The calls of a pass, by the nodes that end them, and the handles that the pass put up."""

    calls: dict[Node, _Call] = field(default_factory=dict)
    handles: list[Any] = field(default_factory=list)

    def start(self, responses: Tensor, activations: Tensor, epsilon: float) -> None:
        """Make relevance of gradients where they reach the first modules, and split it at sums.

        Up to there relevance is value times gradient: the response is a channel's value at a
        position, or a sum of such values, weighted. The first layer below gets the ε rule: values
        before an activation function may be negative, and the rules that tell positive from
        negative contributions would then take what excites for what inhibits.

        Args:
            responses: r, [N].
            activations: What they were computed from; no leaf.
            epsilon: Of the ε rule.

        Raises:
            InputError: If the network does something on the way that has no rule.
        """
        assert responses.grad_fn is not None
        assert activations.grad_fn is not None
        leading = _between(responses.grad_fn, activations.grad_fn)
        seen: dict[Node, _Carried] = {}
        waiting: list[tuple[Node | None, _Carried]] = [(responses.grad_fn, _Carried.GRADIENT)]
        while waiting:
            node, carried = waiting.pop()
            if node is None or node is activations.grad_fn or node not in leading:
                continue
            if node in seen:
                if (_Carried.GRADIENT in (seen[node], carried)) and seen[node] != carried:
                    raise InputError(
                        "Relevance: one of the features lies on the way to another, where their "
                        "relevances mix; render them in runs of their own"
                    )
                continue
            seen[node] = carried
            if call := self.calls.get(node):
                waiting.append((call.below, _pass(call, carried, epsilon)))
                continue
            is_gradient = carried is _Carried.GRADIENT
            edges = self._edges(node, activations, is_gradient)
            if any(edges):
                self.handles.append(node.register_hook(_along(edges)))
            for (below, _), edge in zip(node.next_functions, edges, strict=True):
                waiting.append((below, _Carried.SIGNED if is_gradient and edge else carried))

    def _edges(self, node: Node, activations: Tensor, is_gradient: bool) -> list[Edge | None]:
        """Return what to do with what a function outside of modules passes down."""
        below = [child for child, _ in node.next_functions]
        if is_gradient:
            reached = [self._known(child, activations) for child in below]
            return [None if value is None else _times(value) for value in reached]
        if node.name().startswith("AddBackward"):
            values = [self._value(child, activations) for child in below]
            total = stabilize(sum(values[1:], values[0]))
            return [_times(value / total) for value in values]
        if not moves_values(node):
            raise _no_rule(f"the function {node.name().removesuffix('0')} outside of modules")
        return [None] * len(below)

    def _known(self, node: Node | None, activations: Tensor) -> Tensor | None:
        if node is activations.grad_fn:
            return activations
        call = self.calls.get(node) if node is not None else None
        return None if call is None else call.output

    def _value(self, node: Node | None, activations: Tensor) -> Tensor:
        """Return a term of a sum."""
        known = self._known(node, activations)
        if known is not None:
            return known
        if node is not None and node.name().startswith("Clone"):
            return self._value(node.next_functions[0][0], activations)
        if node is not None and node.name().startswith("AddBackward"):
            terms = [self._value(child, activations) for child, _ in node.next_functions]
            return sum(terms[1:], terms[0])
        name = "a constant" if node is None else node.name().removesuffix("0")
        raise _no_rule(f"a sum that {name} is part of")


def _pass(call: _Call, carried: _Carried, epsilon: float) -> _Carried:
    """Return what comes out below a module."""
    if call.hook is None and not isinstance(call.module, _HARMLESS):
        raise _no_rule(f"modules of type {type(call.module).__name__}")
    if carried is _Carried.RELEVANCE or not isinstance(call.module, (Linear, Activation)):
        return carried
    if isinstance(call.module, Linear):
        rule = vars(Epsilon(epsilon=epsilon))
        vars(call.hook).update({name: rule[name] for name in _RULE})
    return _Carried.RELEVANCE


def _between(top: Node, bottom: Node) -> set[Node]:
    """Return the nodes on all ways from one down to another."""
    above: dict[Node, list[Node]] = {}
    waiting = [top]
    while waiting:
        node = waiting.pop()
        for child, _ in node.next_functions:
            if child is not None:
                if child not in above:
                    waiting.append(child)
                above.setdefault(child, []).append(node)
    found, waiting = {bottom}, [bottom]
    while waiting:
        new = set(above.get(waiting.pop(), [])) - found
        found |= new
        waiting += new
    return found


def _no_rule(what: str) -> InputError:
    return InputError(
        f"Relevance: zennit's rules do not cover {what}, which the network has between the "
        "attribution layer and the feature; take a later attribution layer, or ActGrad"
    )


def _times(factor: Tensor) -> Edge:
    return lambda gradient: gradient * factor


def _along(edges: Sequence[Edge | None]) -> Callable[[Any, Any], tuple[Tensor | None, ...]]:
    def hook(gradients: tuple[Tensor | None, ...], _: Any) -> tuple[Tensor | None, ...]:
        return tuple(
            gradient if edge is None or gradient is None else edge(gradient)
            for gradient, edge in zip(gradients, edges, strict=True)
        )

    return hook


@dataclass
class _Watch:
    """Puts a rule on a module, if there is one for it, and notes its call."""

    module: nn.Module
    hook: Hook | None
    trace: Trace
    below: Node | None = None

    def before(self, module: nn.Module, inputs: tuple[Any, ...]) -> Any:
        self.below = None
        if not inputs or not isinstance(inputs[0], Tensor) or not inputs[0].requires_grad:
            return None
        self.below = inputs[0].grad_fn
        return self.hook.pre_forward(module, inputs) if self.hook else None

    def after(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if self.below is None or not isinstance(output, Tensor):
            return None
        if self.hook:
            self.hook.post_forward(module, inputs, output)
            self.hook.forward(module, inputs, output)
        if output.grad_fn not in (None, self.below):  # an identity adds no node
            call = _Call(module, self.hook, output, self.below)
            self.trace.calls[output.grad_fn] = call
        return output.clone()  # for operations in place


def _watches(network: nn.Module, composite: Composite, trace: Trace) -> list[_Watch]:
    """Return what watches each module that has a rule, and each that has no parts."""
    context: dict[Any, Any] = {}
    watches = []
    for name, module in network.named_modules():
        rule = composite.module_map(context, name, module)
        if module is not network and (rule is not None or not any(True for _ in module.children())):
            watches.append(_Watch(module, rule and rule.copy(), trace))
    return watches


@contextmanager
def registered(network: nn.Module, composite: Composite) -> Iterator[Trace]:
    """Put a composite's rules on a network, as `Composite.context` does, and trace its modules.

    Hooks on inputs are put up when the pass begins, behind the backbone's taps: what a tap
    inserts as a module's input then goes through the module's rule.
    """
    trace = Trace()
    watches = _watches(network, composite, trace)
    # Else an activation function overwrites the input that its rule looks at.
    in_place = [module for module in network.modules() if getattr(module, "inplace", False)]

    def begin(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        for watch in watches:
            trace.handles.append(watch.module.register_forward_pre_hook(watch.before))
        # Everything is part of the graph: a sum may have a term that goes round the layer.
        return None if inputs[0].requires_grad else (inputs[0].detach().requires_grad_(),)

    try:
        for canonizer in composite.canonizers:
            trace.handles += canonizer.apply(network)
        network.requires_grad_(False)  # not even the biases that canonizers add
        for module in in_place:
            module.inplace = False  # type: ignore[assignment]
        for watch in watches:
            trace.handles.append(watch.module.register_forward_hook(watch.after))
        trace.handles.append(network.register_forward_pre_hook(begin))
        yield trace
    finally:
        for module in in_place:
            module.inplace = True  # type: ignore[assignment]
        for handle in (*trace.handles, *(watch.hook for watch in watches if watch.hook)):
            handle.remove()
