"""Toy models with more features than hidden units: |x| and XOR, all random starts at once."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, final

import torch
from lightning import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from torch import Tensor, nn

from mti_lightning.errors import InputError
from mti_lightning.signs import excitation, inhibition
from mti_lightning.streams import START, stream, stream_key

_TEST_SAMPLES = 100_000
_TEST_STEP = -2  # of the stream that test samples come from
_AT_ONCE = 2**24  # numbers of a hidden layer that are computed at once: 64 MiB


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
        """Return the attribution of each response to the hidden units, [S, N, n, m]."""
        return self.activate(inputs)[:, :, None] * self.output[:, None]


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


class Toy(LightningModule, ABC):
    """A toy model of superposition, trained from many random starts; the best is kept.

    All starts see the same samples. What most samples hold is nothing, so each distinct one is
    computed once, and counted as often as it was drawn.

    Args:
        features: Features, n: one output each.
        hidden: Hidden units, m.
        on: Probability that a feature's inputs are on.
        importance: The error of output i counts importanceⁱ.
        starts: Random starts.
        batch_size: Samples per step.
        steps_per_epoch: Steps between two looks at the figures.
        halve_after: Epochs after which the worse half of the starts is dropped.
        seed: Seed of the starts and of the samples.
        optimizer: Adam, lr 1e-3, by default; each start is optimised as if it were alone by any
            optimizer that treats each weight by itself.

    Raises:
        InputError: If a number is out of range.
    """

    width: ClassVar[int]  # inputs per feature
    biased: ClassVar[bool]  # whether hidden units have a bias
    kept: Tensor  # [S], which starts are left

    def __init__(
        self,
        features: int = 6,
        hidden: int = 8,
        on: float = 0.05,
        importance: float = 0.9,
        starts: int = 1000,
        batch_size: int = 600,
        steps_per_epoch: int = 1000,
        halve_after: Sequence[int] = (),
        seed: int = 0,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.Adam(
            parameters, lr=1e-3, fused=True
        ),
    ) -> None:
        super().__init__()
        counts = {"features": features, "hidden": hidden, "starts": starts}
        counts |= {"batch_size": batch_size, "steps_per_epoch": steps_per_epoch}
        for name, value in counts.items():
            if value < 1:
                raise InputError(f"{name} {value}: give 1 or more")
        for name, share in (("on", on), ("importance", importance)):
            if not 0 < share <= 1:
                raise InputError(f"{name} {share}: give more than 0, and 1 at most")
        self.features, self.on, self.starts = features, on, starts
        self.batch_size, self.steps_per_epoch = batch_size, steps_per_epoch
        self.halve_after, self.seed, self.make_optimizer = tuple(halve_after), seed, optimizer
        inputs = self.width * features
        shapes = ((hidden, inputs), (hidden,), (features, hidden), (features,))
        scales = (inputs, inputs, hidden, hidden)  # as torch's Linear starts
        generator = stream(stream_key("toy", seed), START)
        drawn = [
            (2 * torch.rand(starts, *shape, generator=generator) - 1) * scale**-0.5
            for shape, scale in zip(shapes, scales, strict=True)
        ]
        if not self.biased:
            drawn[1].zero_()
        self.trained = nn.ParameterDict(dict(zip(Weights._fields, drawn, strict=True)))
        self.trained["hidden_bias"].requires_grad_(self.biased)
        self.register_buffer("importance", importance ** torch.arange(features), persistent=False)
        self.register_buffer("kept", torch.arange(starts))
        self.register_buffer("error", torch.full((starts,), torch.nan))

    # --- samples ---

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw samples; return the distinct ones, [R, D], and how often each was drawn, [R]."""

    @abstractmethod
    def answer(self, inputs: Tensor) -> Tensor:
        """Return what the outputs should be, [N, n]."""

    @abstractmethod
    def alone(self) -> tuple[Tensor, list[str]]:
        """Return the ways in which one feature's inputs can be on, [K, width], and their names."""

    def own(self) -> Tensor:
        """Return which inputs are each output's own, [n, D]."""
        return torch.eye(self.features, dtype=torch.bool).repeat_interleave(self.width, 1)

    # --- training ---

    @property
    def weights(self) -> Weights:
        """The networks of the starts that are left."""
        return Weights(*(self.trained[name] for name in Weights._fields))

    def best(self) -> Weights:
        """Return the network with the least error in the last test, S = 1."""
        return Weights(*(w.detach() for w in self.weights.at([int(self.error.argmin())])))

    def _errors(self, inputs: Tensor, counts: Tensor) -> Tensor:
        factors = (counts / counts.sum())[:, None] * self.importance
        error: Tensor = WeightedError.apply(inputs, self.answer(inputs), factors, *self.weights)
        return error

    @torch.no_grad()
    def test_error(self) -> Tensor:
        """Return the error of each start on samples that it was not trained on, [S]."""
        drawn = self.draw(_TEST_SAMPLES, stream(stream_key("toy", self.seed), _TEST_STEP))
        inputs, counts = (part.to(self.device) for part in drawn)
        rows = max(1, _AT_ONCE // self.trained["hidden_bias"].numel())
        total = torch.zeros_like(self.error)
        for part, count in zip(inputs.split(rows), counts.split(rows), strict=True):
            total += self._errors(part, count) * count.sum()
        return total / counts.sum()

    def train_dataloader(self) -> range:
        return range(self.steps_per_epoch)

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        generator = stream(stream_key("toy", self.seed), self.global_step)
        inputs, counts = self.draw(self.batch_size, generator)
        errors = self._errors(inputs.to(self.device), counts.to(self.device))
        if self.trainer.is_last_batch or batch_idx % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log("loss/best_of_batch", errors.detach().min(), prog_bar=True)
        return errors.sum()  # the gradient of each start is its own

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(p for p in self.parameters() if p.requires_grad)


@final
class AbsoluteValue(Toy):
    """y = |x|: inputs in −1..1. Hidden units have no bias, as the authors have it."""

    width, biased = 1, False

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        on = torch.rand(count, self.features, generator=generator) < self.on
        on = on[on.any(1)]
        values = 2 * torch.rand(on.shape, generator=generator) - 1
        inputs = torch.cat([torch.zeros(1, self.features), values * on])
        counts = torch.ones(len(inputs))
        counts[0] = count - len(on)
        return inputs, counts

    def answer(self, inputs: Tensor) -> Tensor:
        return inputs.abs()

    def alone(self) -> tuple[Tensor, list[str]]:
        return torch.tensor([[1.0], [-1.0]]), ["+", "−"]


@final
class ExclusiveOr(Toy):
    """y = a XOR b of input pairs; in a pair that is on, each of the two is 1 or 0 by a coin."""

    width, biased = 2, True

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        on = torch.rand(count, self.features, generator=generator) < self.on
        on = on[on.any(1)]
        coins = torch.randint(4, on.shape, generator=generator) * on
        states = torch.cat([torch.zeros(1, self.features, dtype=torch.long), coins])
        code = (states * 4 ** torch.arange(self.features)).sum(1)
        codes, counts = code.unique(return_counts=True)
        counts[0] += count - len(states)
        bits = 2 ** torch.arange(2 * self.features)  # a and b, pair by pair
        return (codes[:, None] & bits).ne(0).float(), counts.float()

    def answer(self, inputs: Tensor) -> Tensor:
        return inputs.unflatten(1, (-1, 2)).sum(2) % 2

    def alone(self) -> tuple[Tensor, list[str]]:
        return torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), ["01", "10", "11"]
