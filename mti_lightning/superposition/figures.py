"""Figures of a toy: its weights, who shares units, and what excites and inhibits."""

from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from mti_lightning.attribution.signs import excitation, inhibition
from mti_lightning.superposition.networks import Weights


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


def draw(weights: Weights, motifs: Motifs, own: Tensor) -> dict[str, Figure]:
    """Draw a network.

    Args:
        weights: One network, S = 1.
        motifs: What each feature's inputs alone do to its outputs.
        own: Which inputs are each output's own, [n, D].
    """
    return {
        "weights": _draw_weights(weights),
        "shared_units": _draw_shared_units(weights, own),
        "motifs": _draw_motifs(motifs),
        "excitation_and_inhibition": _draw_outputs(motifs),
    }


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
