"""Toys with more features than hidden units: the units that are named are those the weights say."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from lightning import Trainer
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from mti_lightning import Backbone, BoundFeature, Feature, IntGrad, Layer, attribute
from mti_lightning.inhibitors.network import Network
from mti_lightning.inhibitors.ranking import rank_units
from mti_lightning.inhibitors.trial import try_units
from mti_lightning.superposition.networks import Weights
from mti_lightning.superposition.toys import AbsoluteValue, ExclusiveOr, Toy
from mti_lightning.sweep.measures import Array

FEATURES, HIDDEN, PICTURES = 3, 5, 40  # |x| and XOR need six hidden units
UNITS = Layer("act")
AS_IT_IS = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "input_size": (3, 2, 6)}
default_cfgs = generate_default_cfgs({"two_layers": AS_IT_IS})  # where timm looks for them


@register_model
def two_layers(inputs: int = 6, hidden: int = 1, outputs: int = 1, **_: object) -> nn.Module:
    """A toy whose inputs are the columns of a picture."""

    class TwoLayers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.act = nn.Linear(inputs, hidden), nn.ReLU()
            self.output = nn.Linear(hidden, outputs)
            self.pretrained_cfg = AS_IT_IS

        def forward(self, pictures: Tensor) -> Tensor:
            columns = pictures.mean((1, 2))[:, :inputs]
            found: Tensor = self.output(self.act(self.hidden(columns)))
            return found

    return TwoLayers()


def network_of(weights: Weights) -> Backbone:
    sizes = {"inputs": weights.hidden.shape[2], "hidden": HIDDEN, "outputs": FEATURES}
    backbone = Backbone("two_layers", "random", arguments=sizes)
    for name, value in zip(("hidden", "output"), (weights[:2], weights[2:]), strict=True):
        module = backbone.network.get_submodule(name)
        module.weight.data[:], module.bias.data[:] = (one[0] for one in value)
    return backbone


@pytest.fixture(scope="module", params=[AbsoluteValue, ExclusiveOr])
def toy(request: pytest.FixtureRequest) -> Toy:
    made: Toy = request.param(
        *(FEATURES, HIDDEN, 0.2),
        starts=8,
        steps_per_epoch=800,
        optimizer=lambda weights: torch.optim.Adam(weights, lr=0.01, fused=True),
    )
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    Trainer(max_epochs=1, accelerator="cpu", **dict.fromkeys(quiet, False)).fit(made)
    return made


@pytest.mark.parametrize("motif", ["genuine", "interference"])
def test_units_are_named_as_the_weights_say(toy: Toy, motif: str) -> None:
    weights = toy.best()
    motifs = toy.motifs(weights)
    row, output = getattr(motifs, motif)
    shown = torch.kron(torch.eye(FEATURES), toy.alone()[0])[row]  # one feature's inputs
    said = weights.output[0, output] * weights.activate(shown[None])[0, 0]
    pictures = torch.zeros(PICTURES, 3, 2, 6)
    size = torch.linspace(0.9, 1, PICTURES)[:, None]
    pictures[..., : len(shown)] = (size * shown)[:, None, None]
    backbone = network_of(weights)
    feature = BoundFeature(Feature("output", output), backbone)

    def load(rows: Array, read: list[int]) -> Iterator[Tensor]:
        read.extend(rows.tolist())
        yield pictures[rows]

    def contributions(rows: Array) -> Array:
        of = (backbone, pictures[rows], [feature] * len(rows), UNITS, IntGrad(4))
        return attribute(*of)[1].detach().numpy()

    ranked, tested = np.arange(0, PICTURES, 2), np.arange(1, PICTURES, 2)
    ranking = rank_units([(contributions(ranked), np.arange(len(ranked)) % 2)])
    network = Network(backbone, feature, UNITS, load, ranked)
    for kind, sign in (("inhibitors", -1), ("excitors", 1)):
        order = (-sign * said).argsort().tolist()
        clear = [unit for unit in order if sign * said[unit] > 0.05]
        found = try_units(network, kind, ranking, len(clear), tested, np.random.default_rng(0))
        assert clear
        assert [unit.unit for unit in found.units] == clear
        for unit in found.units:
            weight = weights.output[0, output, unit.unit]
            assert float(weight) * sign > 0
            silenced = -weight * weights.activate(pictures[tested].mean((1, 2))[:, : len(shown)])
            by_hand = float(silenced[0, :, unit.unit].mean())
            assert unit.real.mean == pytest.approx(by_hand, abs=1e-5)
