"""Toy models with more features than hidden units: |x| and XOR, all random starts at once."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, final

import torch
from lightning import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from matplotlib.figure import Figure
from safetensors.torch import save_file
from torch import Tensor, nn

from mti_lightning.errors import InputError, RunError, check_range
from mti_lightning.files import replacing
from mti_lightning.images.seeds import START, derive_seed, generator_at
from mti_lightning.loggers import log_figure, loggers_of, run_folder, take_pictures
from mti_lightning.superposition.figures import Motifs, draw
from mti_lightning.superposition.networks import TENSION, WeightedError, Weights

_TEST_SAMPLES = 100_000
_TEST_STEP = -2  # of the stream that test samples come from
_AT_ONCE = 2**24  # numbers of a hidden layer that are computed at once: 64 MiB


class Toy(LightningModule, ABC):
    """A toy model of superposition, trained from many random starts; the best is kept.

    All starts see the same samples. What most samples hold is nothing, so each distinct one is
    computed once, and counted as often as it was drawn.

    Args:
        features: Features, n: one output each.
        hidden: Hidden units, m.
        probability: Of a feature's inputs being on.
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
    importance: Tensor  # [n]
    kept: Tensor  # [S], which starts are left
    error: Tensor  # [S], of the last test

    def __init__(
        self,
        features: int = 6,
        hidden: int = 8,
        probability: float = 0.05,
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
        check_range(1, features=features, hidden=hidden, starts=starts)
        check_range(1, batch_size=batch_size, steps_per_epoch=steps_per_epoch)
        for name, share in (("probability", probability), ("importance", importance)):
            if not 0 < share <= 1:
                raise InputError(f"{name} {share}: give more than 0, and 1 at most")
        self.features, self.probability = features, probability
        self.batch_size, self.steps_per_epoch = batch_size, steps_per_epoch
        self.halve_after, self.seed, self.make_optimizer = tuple(halve_after), seed, optimizer
        inputs = self.width * features
        shapes = ((hidden, inputs), (hidden,), (features, hidden), (features,))
        scales = (inputs, inputs, hidden, hidden)  # as torch's Linear starts
        generator = generator_at(derive_seed("toy", seed), START)
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
        self.register_buffer("error", torch.full((starts,), torch.inf))

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
        """Return the error of each start on samples that it was not trained on, [S].

        It is infinite for a start that has diverged.
        """
        drawn = self.draw(_TEST_SAMPLES, generator_at(derive_seed("toy", self.seed), _TEST_STEP))
        inputs, counts = (part.to(self.device) for part in drawn)
        rows = max(1, _AT_ONCE // self.trained["hidden_bias"].numel())
        total = torch.zeros_like(self.error)
        for start in range(0, len(inputs), rows):
            part = slice(start, start + rows)
            total += self._errors(inputs[part], counts[part]) * counts[part].sum()
        return (total / counts.sum()).nan_to_num(torch.inf, torch.inf)

    def train_dataloader(self) -> range:
        return range(self.steps_per_epoch)

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        generator = generator_at(derive_seed("toy", self.seed), self.global_step)
        inputs, counts = (part.to(self.device) for part in self.draw(self.batch_size, generator))
        return self._errors(inputs, counts).sum()  # the gradient of each start is its own

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(weight for weight in self.parameters() if weight.requires_grad)

    def on_train_epoch_end(self) -> None:
        self.error = self.test_error()
        if self.error.isinf().all():
            raise RunError(
                f"all {len(self.error)} starts have diverged; give a lower learning rate"
            )
        shares = torch.tensor([0, 0.1, 0.5, 0.9], device=self.device)
        names = ("best", "first_decile", "median", "last_decile")
        # Of those at hand, as there is nothing between a number and infinity.
        values = self.error.quantile(shares, interpolation="lower")
        for name, value in zip(names, values, strict=True):
            self.log(f"loss/{name}", value, prog_bar=name == "best")
        if takers := take_pictures(loggers_of(self.trainer)):
            for name, figure in self.figures().items():
                log_figure(takers, name, figure, self.current_epoch)
        if self.current_epoch + 1 in self.halve_after and len(self.kept) > 1:
            self.keep(self.error.argsort()[: (len(self.kept) + 1) // 2].sort().values)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.keep(torch.arange(len(checkpoint["state_dict"]["kept"])))

    def on_train_end(self) -> None:
        folder = run_folder(self.trainer)
        if folder and self.trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            best = {name: w.contiguous().cpu() for name, w in self.best()._asdict().items()}
            with replacing(folder / "weights.safetensors", lasting=True) as part:
                save_file(best, part)

    def keep(self, chosen: Tensor) -> None:
        """Drop all starts but the chosen ones, [S'] of the present ones, with their momenta."""
        optimizers = self.optimizers() if self._trainer is not None else []
        for weight in self.trained.values():
            weight.data, weight.grad = weight.data[chosen], None
            for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
                state = optimizer.state.get(weight, {})
                for name, value in state.items():
                    if isinstance(value, Tensor) and value.ndim:
                        state[name] = value[chosen]
        self.kept, self.error = self.kept[chosen], self.error[chosen]

    # --- figures ---

    def figures(self) -> dict[str, Figure]:
        """Draw the best network: its weights, who shares units, and what excites and inhibits."""
        best = Weights(*(weight.cpu() for weight in self.best()))
        return draw(best, self.motifs(best), self.own().cpu())

    def motifs(self, weights: Weights) -> Motifs:
        """Show one network each feature's inputs alone; return what they do to the outputs."""
        ways, names = self.alone()
        attribution = weights.attribute(torch.kron(torch.eye(self.features), ways))[0]
        tension = TENSION(attribution.flatten(0, 1)).view(attribution.shape[:2])  # [n · K, n]
        own = torch.eye(self.features).repeat_interleave(len(ways), 0) > 0  # [n · K, n]
        whole = ways.bool().all(1).repeat(self.features)  # of XOR, where one vetoes the other
        clearest = [tension.where(mask, -1).argmax() for mask in (own & whole[:, None], ~own)]
        return Motifs(
            attribution,
            tension,
            [f"{feature}:{name}" for feature in range(self.features) for name in names],
            *((int(place) // self.features, int(place) % self.features) for place in clearest),
        )


@final
class AbsoluteValue(Toy):
    """y = |x|: inputs in −1..1. Hidden units have no bias, as the authors have it."""

    width, biased = 1, False

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        on = torch.rand(count, self.features, generator=generator) < self.probability
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
        on = torch.rand(count, self.features, generator=generator) < self.probability
        on = on[on.any(1)]
        coins = torch.randint(4, on.shape, generator=generator) * on
        states = torch.cat([torch.zeros(1, self.features, dtype=torch.long), coins])
        states, counts = torch.unique(states, dim=0, return_counts=True)  # sorted: nothing first
        counts[0] += count - len(coins) - 1
        return torch.stack([states & 1, states >> 1], 2).flatten(1).float(), counts.float()

    def answer(self, inputs: Tensor) -> Tensor:
        return inputs.view(len(inputs), -1, 2).sum(2) % 2

    def alone(self) -> tuple[Tensor, list[str]]:
        return torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), ["01", "10", "11"]
