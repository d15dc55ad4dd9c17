"""Toy models with more features than hidden units: |x| and XOR, all random starts at once."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, final

import torch
from lightning import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from safetensors.torch import save_file
from torch import Tensor, nn

from mti_lightning.attribution.signs import excitation, inhibition
from mti_lightning.errors import InputError, RunError, check_range
from mti_lightning.images.seeds import START, derive_seed, generator_at

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
            columns.append(torch.minimum(excitation(attribution), inhibition(attribution)))
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
        if isinstance(self.logger, TensorBoardLogger):
            for name, figure in self.figures().items():
                self.logger.experiment.add_figure(name, figure, self.current_epoch, close=False)
        if self.current_epoch + 1 in self.halve_after and len(self.kept) > 1:
            self.keep(self.error.argsort()[: (len(self.kept) + 1) // 2].sort().values)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.keep(torch.arange(len(checkpoint["state_dict"]["kept"])))

    def on_train_end(self) -> None:
        folder = self.trainer.log_dir
        if self.trainer.loggers and folder and self.trainer.is_global_zero:
            best = {name: w.contiguous().cpu() for name, w in self.best()._asdict().items()}
            save_file(best, Path(folder) / "weights.safetensors")

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
        motifs = self.motifs(best)
        return {
            "weights": _draw_weights(best),
            "shared_units": _draw_shared_units(best, self.own().cpu()),
            "motifs": _draw_motifs(motifs),
            "excitation_and_inhibition": _draw_outputs(motifs),
        }

    def motifs(self, weights: Weights) -> "Motifs":
        """Show one network each feature's inputs alone; return what they do to the outputs."""
        ways, names = self.alone()
        attribution = weights.attribute(torch.kron(torch.eye(self.features), ways))[0]
        tension = torch.minimum(attribution.clamp(min=0).sum(2), (-attribution).clamp(min=0).sum(2))
        own = torch.eye(self.features).repeat_interleave(len(ways), 0) > 0  # [n · K, n]
        whole = ways.bool().all(1).repeat(self.features)  # of XOR, where one vetoes the other
        clearest = [tension.where(mask, -1).argmax() for mask in (own & whole[:, None], ~own)]
        return Motifs(
            attribution,
            tension,
            [f"{feature}:{name}" for feature in range(self.features) for name in names],
            *((int(place) // self.features, int(place) % self.features) for place in clearest),
        )


class Motifs(NamedTuple):
    """What each feature's inputs do to the outputs while all others are 0.

    Attributes:
        attribution: [n · K, n, m], for each feature and each of K ways in which it can be on.
        tension: min(E⁺, E⁻), [n · K, n].
        inputs: Names of the rows, [n · K].
        genuine: Where an output's own inputs, all of them on, cause the most tension: row and
            output.
        interference: Where another output's inputs do.
    """

    attribution: Tensor
    tension: Tensor
    inputs: list[str]
    genuine: tuple[int, int]
    interference: tuple[int, int]


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


def _draw_weights(weights: Weights) -> Figure:
    figure = Figure((9, 3.5), layout="constrained")
    parts = (
        ("W₁", weights.hidden[0], "input", "unit"),
        ("W₂", weights.output[0], "unit", "output"),
    )
    for ax, (name, weight, across, down) in zip(figure.subplots(1, 2), parts, strict=True):
        limit = float(weight.abs().max())
        image = ax.imshow(weight.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
        ax.set(title=name, xlabel=across, ylabel=down)
        figure.colorbar(image, ax=ax)
    return figure


def _draw_shared_units(weights: Weights, own: Tensor) -> Figure:
    """Stack, for each hidden unit, the norms of the weights by which it reads each feature."""
    read = torch.stack([weights.hidden[0][:, mask].norm(dim=1) for mask in own]).numpy()  # [n, m]
    figure = Figure((6, 3.5), layout="constrained")
    ax = figure.subplots()
    for feature, height in enumerate(read):
        below = read[:feature].sum(0)
        ax.bar(range(len(height)), height, bottom=below, label=str(feature))
    ax.set(xlabel="hidden unit", ylabel="norm of the weights that read a feature")
    ax.legend(title="feature", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def _draw_motifs(motifs: Motifs) -> Figure:
    """Draw which inputs cause tension where, and the clearest two cases unit by unit."""
    tension, outputs = motifs.tension.T, motifs.tension.shape[1]  # [n, n · K]
    ways = len(motifs.inputs) // outputs
    figure = Figure((11, 6.5), layout="constrained")
    axes: dict[str, Axes] = figure.subplot_mosaic([["all", "all"], ["genuine", "interference"]])
    ax = axes["all"]
    image = ax.imshow(tension.numpy(), cmap="magma_r", vmin=0, aspect="auto")
    figure.colorbar(image, ax=ax)
    ax.set_xticks(range(len(motifs.inputs)), motifs.inputs, rotation=90)
    ax.set(
        title="tension min(E⁺, E⁻): genuine inside the frames, interference outside",
        xlabel="the only inputs that are on",
        ylabel="output",
    )
    for output in range(outputs):
        corner = (output * ways - 0.5, output - 0.5)
        ax.add_patch(Rectangle(corner, ways, 1, fill=False, edgecolor="tab:green", linewidth=2))
    for name, (row, output) in (("genuine", motifs.genuine), ("interference", motifs.interference)):
        ax, feature = axes[name], row // ways
        limit = float(motifs.attribution[feature * ways : (feature + 1) * ways, output].abs().max())
        for way in range(ways):
            place = feature * ways + way
            values = motifs.attribution[place, output].tolist()
            at = [way * (len(values) + 2) + unit for unit in range(len(values))]
            ax.bar(at, values, color=["tab:red" if value > 0 else "tab:blue" for value in values])
            ax.plot([at[0] - 0.5, at[-1] + 0.5], [sum(values)] * 2, "k--", linewidth=1)
            ax.text(
                at[0],
                1.1 * limit,
                motifs.inputs[place],
                weight="bold" if place == row else "normal",
            )
        ax.axhline(0, color="k", linewidth=0.5)
        ax.set_ylim(-1.3 * limit, 1.3 * limit)
        ax.set_xticks([])
        ax.set(
            title=f"{name}: output {output} while {motifs.inputs[row]} is on",
            xlabel="hidden units",
            ylabel="adds to the response (--: sum)",
        )
    return figure


def _draw_outputs(motifs: Motifs) -> Figure:
    """Draw for each output what each feature's inputs alone excite and inhibit."""
    places, outputs = range(len(motifs.inputs)), motifs.tension.shape[1]
    ways, columns = len(motifs.inputs) // outputs, min(3, outputs)
    rows = -(-outputs // columns)
    figure = Figure((4.5 * columns, 2 * rows), layout="constrained")
    axes: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes[outputs:]:
        ax.set_axis_off()
    for output, ax in enumerate(axes[:outputs]):
        attribution = motifs.attribution[:, output]
        ax.axvspan(output * ways - 0.5, (output + 1) * ways - 0.5, color="0.9")
        ax.bar(places, excitation(attribution).numpy(), color="tab:red")
        ax.bar(places, -inhibition(attribution).numpy(), color="tab:blue")
        ax.plot(places, attribution.sum(1).numpy(), "k.", markersize=3)
        ax.axhline(0, color="k", linewidth=0.5)
        ax.set_xticks(places, motifs.inputs, rotation=90, fontsize=6)
        ax.set_title(f"output {output}", fontsize=8)
    figure.suptitle(
        "E⁺ (red), E⁻ (blue), their sum (dots); grey: the output's own inputs", fontsize=9
    )
    return figure
