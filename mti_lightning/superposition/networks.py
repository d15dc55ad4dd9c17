"""Two-layer ReLU networks, many at once: what they respond, what adds to it, and their error."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mti_lightning.attribution.tension import Tension

TENSION = Tension("minimum")  # of hidden units that have no positions


class Weights(NamedTuple):
    """Two-layer ReLU networks: y = max(W₂ max(W₁x + b₁, 0) + b₂, 0), S of them.

    Attributes:
        hidden: W₁, [S, m, D].
        hidden_bias: b₁, [S, m].
        output: W₂, [S, n, m].
        output_bias: b₂, [S, n].
    """

    hidden: Tensor
    hidden_bias: Tensor
    output: Tensor
    output_bias: Tensor

    def at(self, starts: Any) -> "Weights":
        """Return the networks of some starts, an index or a list of them."""
        return Weights(*(weight[starts] for weight in self))

    def activate(self, inputs: Tensor) -> Tensor:
        """Return the hidden activations, [S, N, m], for inputs [N, D] that all networks share."""
        starts, hidden, width = self.hidden.shape
        # One large product over all networks, where a batched one would make S tiny ones.
        flat = self.hidden.reshape(starts * hidden, width)
        values = torch.addmm(self.hidden_bias.reshape(-1), inputs, flat.T)
        return values.view(len(inputs), starts, hidden).transpose(0, 1).relu()

    def respond(self, activations: Tensor) -> Tensor:
        """Return the responses, [S, N, n]: the outputs before their ReLU."""
        return torch.baddbmm(self.output_bias[:, None], activations, self.output.mT)

    def attribute(self, inputs: Tensor) -> Tensor:
        """Return what the inputs' hidden activations add to each response, [S, N, n, m].

        Activation less that at rest, where all inputs are 0, times gradient.
        """
        moved = self.activate(inputs) - self.activate(torch.zeros_like(inputs[:1]))
        return moved[:, :, None] * self.output[:, None]


def tension_causes(weights: Weights, inputs: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Take inputs away to find what causes tension.

    Args:
        weights: One network, S = 1.
        inputs: [N, D].
        own: Which inputs are each output's own, [n, D].

    Returns:
        min(E⁺, E⁻) of each response with its own inputs alone, and with the others alone, [N, n].
    """
    found = []
    for mask in (own, ~own):
        columns = []
        for output, left in enumerate(mask):
            attribution = weights.attribute(inputs * left)[0, :, output]  # [N, m]
            columns.append(TENSION(attribution))
        found.append(torch.stack(columns, 1))
    return found[0], found[1]


class WeightedError(torch.autograd.Function):
    """Each network's error, its gradient by hand: half the time of autograd on such small matrices.

    Called with inputs [N, D], answers [N, n], the weight of each of their squared differences
    [N, n], and the fields of `Weights`; returns [S].
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, answers: Tensor, factors: Tensor, *weights: Tensor
    ) -> Tensor:
        of = Weights(*weights)
        activations = of.activate(inputs)
        difference = of.respond(activations).relu_()
        on = difference > 0
        difference -= answers
        weighted = difference * factors
        error = (weighted * difference).sum((1, 2))
        ctx.save_for_backward(inputs, activations, weighted.mul_(2).mul_(on), of.output)
        return error

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs, activations, slope, output = ctx.saved_tensors
        slope = slope * grads[0][:, None, None]  # [S, N, n]
        below = torch.bmm(slope, output).mul_(activations > 0)  # [S, N, m]
        return (
            *(None, None, None),
            torch.matmul(below.mT, inputs) if ctx.needs_input_grad[3] else None,
            below.sum(1) if ctx.needs_input_grad[4] else None,
            torch.bmm(slope.mT, activations),
            slope.sum(1),
        )
