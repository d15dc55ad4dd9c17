"""Toys: gradients, samples and starts against plain PyTorch; runs, stops and resumed ones."""

from pathlib import Path

import pytest
import torch
from lightning import Trainer
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from benchmarks.superposition import batches, label, one, train_one
from mti_lightning.cli import main
from mti_lightning.errors import InputError, RunError
from mti_lightning.superposition.networks import WeightedError, Weights, tension_causes
from mti_lightning.superposition.toys import AbsoluteValue, ExclusiveOr, Toy

CONFIGS = Path(__file__).parents[2] / "configs"
TOYS = [AbsoluteValue, ExclusiveOr]

toys = pytest.mark.parametrize("kind", TOYS)


def perfect_xor(pairs: int) -> Weights:
    """XOR by hand: units a + b and a + b − 1 for each pair, the second of which vetoes."""
    each = torch.eye(pairs)
    hidden = torch.kron(each, torch.ones(2, 2))
    output = torch.kron(each, torch.tensor([[1.0, -2.0]]))
    bias = torch.tensor([0.0, -1.0]).repeat(pairs)
    return Weights(hidden[None], bias[None], output[None], torch.zeros(1, pairs))


def trainer(epochs: int) -> Trainer:
    names = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return Trainer(max_epochs=epochs, accelerator="cpu", **dict.fromkeys(names, False))


def reference_error(
    inputs: Tensor, answers: Tensor, factors: Tensor, weights: Weights
) -> list[Tensor]:
    errors = []
    for start in range(len(weights.hidden)):
        of = weights.at(start)
        hidden = torch.relu(inputs @ of.hidden.T + of.hidden_bias)
        outputs = torch.relu(hidden @ of.output.T + of.output_bias)
        errors.append(((outputs - answers) ** 2 * factors).sum())
    return errors


def test_gradient_against_autograd() -> None:
    shapes = ((3, 5, 8), (3, 5), (3, 4, 5), (3, 4))
    weights = Weights(*(torch.randn(shape, dtype=torch.double) for shape in shapes))
    inputs, answers = torch.randn(7, 8, dtype=torch.double), torch.rand(7, 4, dtype=torch.double)
    factors = torch.rand(7, 4, dtype=torch.double)
    upstream = torch.tensor([1.0, -2.0, 0.5], dtype=torch.double)
    leaves = Weights(*(weight.clone().requires_grad_() for weight in weights))
    errors = torch.stack(reference_error(inputs, answers, factors, leaves))
    expected = torch.autograd.grad((errors * upstream).sum(), leaves)
    leaves = Weights(*(weight.clone().requires_grad_() for weight in weights))
    found = WeightedError.apply(inputs, answers, factors, *leaves)
    torch.testing.assert_close(found, errors)
    gradients = torch.autograd.grad((found * upstream).sum(), leaves)
    for gradient, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, wanted)


@toys
def test_distinct_samples_are_counted(kind: type[Toy]) -> None:
    toy = kind(features=3, probability=0.3)
    inputs, counts = toy.draw(20_000, torch.Generator().manual_seed(0))
    assert counts.sum() == 20_000
    assert len(inputs.unique(dim=0)) == len(inputs)
    assert not inputs[0].any()
    off = 0.7 if kind is AbsoluteValue else 0.7 + 0.3 / 4  # both of a pair may be 0
    assert float(counts[0]) / 20_000 == pytest.approx(off**3, abs=0.015)
    on = ((inputs.view(-1, 3, toy.width) != 0).any(2) * counts[:, None]).sum(0) / 20_000
    torch.testing.assert_close(on, torch.full((3,), 1 - off), atol=0.015, rtol=0)
    if kind is ExclusiveOr:
        assert len(inputs) == 4**3
        assert toy.answer(torch.tensor([[0.0, 0, 0, 1, 1, 1]])).tolist() == [[0, 1, 0]]
    else:
        assert inputs.abs().max() <= 1
        assert toy.answer(torch.tensor([[0.5, -0.5, 0]])).tolist() == [[0.5, 0.5, 0]]


@toys
def test_every_start_trains_as_it_would_alone(kind: type[Toy]) -> None:
    toy = kind(probability=0.2, starts=4, steps_per_epoch=40, batch_size=50)
    networks = [one(toy, start) for start in range(4)]
    before = [weight.clone() for weight in toy.weights]
    data = list(batches(toy, 40))
    assert {len(inputs) for inputs, _ in data} == {50}
    trainer(1).fit(toy)
    for start, network in enumerate(networks):
        train_one(network, data, toy)
        torch.testing.assert_close(network[0].weight, toy.weights.hidden[start])
        torch.testing.assert_close(network[2].weight, toy.weights.output[start])
        torch.testing.assert_close(network[2].bias, toy.weights.output_bias[start])
        if toy.biased:
            torch.testing.assert_close(network[0].bias, toy.weights.hidden_bias[start])
    if not toy.biased:
        assert not toy.weights.hidden_bias.any()
    moved = [(new - old).abs().max() for new, old in zip(toy.weights, before, strict=True)]
    assert moved[0] > 0.01
    assert moved[2] > 0.01


def test_error_is_of_samples_at_large() -> None:
    toy = ExclusiveOr(features=2, hidden=4, probability=0.5, importance=0.5, starts=2)
    for weight, value in zip(toy.weights, perfect_xor(2), strict=True):
        weight.data[0] = value[0]
        weight.data[1] = 0
    found = toy.test_error()
    # A pair is on in half of the samples, its XOR in half of these; the second output counts half.
    torch.testing.assert_close(found, torch.tensor([0.0, 0.25 * 1.5]), atol=0.005, rtol=0)
    assert found[0] == 0


def test_both_motifs_by_hand() -> None:
    weights, toy = perfect_xor(2), ExclusiveOr(features=2, hidden=4, starts=1)
    inputs = torch.tensor([[0.0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 1]])
    attribution = weights.attribute(inputs)[0]
    assert attribution[:, 0].tolist() == [[0] * 4, [1, 0, 0, 0], [2, -2, 0, 0], [2, -2, 0, 0]]
    own, others = tension_causes(weights, inputs, toy.own())
    assert own.tolist() == [[0, 0], [0, 0], [2, 0], [2, 0]]
    assert not others.any()
    genuine, interference = label(toy, weights, inputs, torch.ones(4, 2))
    assert genuine.tolist() == [[False, False], [False, False], [True, False], [True, False]]
    assert interference.tolist() == [[False, False], [False, True], [False, True], [False, False]]
    assert not any(of.any() for of in label(toy, weights, inputs, torch.zeros(4, 2)))
    # Both pairs read by the units of the first: the second's inputs cause the first's tension.
    weights.hidden[0, :2, 2:] = 1
    own, others = tension_causes(weights, inputs.flip(1), toy.own())
    assert own[:, 0].tolist() == [0, 0, 0, 0]
    assert others[:, 0].tolist() == [0, 0, 2, 2]


@pytest.mark.parametrize("kind", TOYS)
def test_attribution_adds_up_to_the_response(kind: type[Toy]) -> None:
    toy = kind(probability=0.3, starts=3)
    inputs, _ = toy.draw(50, torch.Generator().manual_seed(1))
    with torch.no_grad():
        response = toy.weights.respond(toy.weights.activate(inputs))
        torch.testing.assert_close(
            toy.weights.attribute(inputs).sum(3), response - response[:, :1], atol=1e-6, rtol=1e-5
        )


@toys
def test_halving_keeps_the_better_half_as_it_was(kind: type[Toy]) -> None:
    small = {"starts": 7, "steps_per_epoch": 30, "batch_size": 50, "probability": 0.2}
    whole, halved = kind(**small), kind(**small, halve_after=[1, 2])
    trainer(1).fit(first := kind(**small))
    trainer(3).fit(whole)
    trainer(3).fit(halved)
    assert len(halved.kept) == len(halved.weights.hidden) == 2
    assert set(halved.kept.tolist()) <= set(first.error.argsort()[:4].tolist())
    # Momenta went along: those that stayed trained on as if the others were still there.
    torch.testing.assert_close(halved.error, whole.error[halved.kept])
    torch.testing.assert_close(halved.weights.hidden, whole.weights.hidden[halved.kept])


def test_a_start_that_diverges_is_never_the_best() -> None:
    small = {"starts": 5, "steps_per_epoch": 5, "batch_size": 50, "probability": 0.2}
    toy = ExclusiveOr(**small, halve_after=[1])
    toy.trained["output"].data[1] = torch.nan
    toy.trained["output_bias"].data[3] = 1e30  # the square of its error is infinite
    (run := trainer(1)).fit(toy)
    assert toy.kept.tolist() == sorted(set(toy.kept.tolist()) - {1, 3})
    assert toy.error.isfinite().all()
    for name in ("best", "first_decile", "median"):
        assert run.callback_metrics[f"loss/{name}"].isfinite()
    assert run.callback_metrics["loss/last_decile"] == torch.inf
    assert all(weight.isfinite().all() for weight in toy.best())


def test_where_all_starts_diverge_the_run_says_so() -> None:
    toy = ExclusiveOr(starts=2, steps_per_epoch=1, batch_size=50)
    toy.trained["output"].data[:] = torch.nan
    with pytest.raises(RunError, match="all 2 starts have diverged; give a lower learning rate"):
        trainer(1).fit(toy)


def test_resumed_after_a_halving(tmp_path: Path) -> None:
    small = {"starts": 6, "steps_per_epoch": 20, "batch_size": 50, "halve_after": [1]}
    trainer(3).fit(whole := ExclusiveOr(**small))
    (stopped := trainer(2)).fit(ExclusiveOr(**small))
    stopped.save_checkpoint(tmp_path / "stopped.ckpt")
    trainer(3).fit(resumed := ExclusiveOr(**small), ckpt_path=tmp_path / "stopped.ckpt")
    assert torch.equal(resumed.kept, whole.kept)
    for found, wanted in zip(resumed.weights, whole.weights, strict=True):
        assert torch.equal(found, wanted)


def test_seeds_differ_and_repeat() -> None:
    drawn = [ExclusiveOr(starts=2, seed=seed).weights.hidden for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert drawn[0].abs().max() <= 12**-0.5


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"features": 0}, "features 0: give 1 or more"),
        ({"starts": -1}, "starts -1"),
        ({"probability": 0.0}, "probability 0.0: give more than 0"),
        ({"importance": 1.5}, "importance 1.5"),
    ],
)
def test_what_is_refused(given: dict[str, float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ExclusiveOr(**given)


def test_short_names_do_and_a_wrong_one_is_told_them(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--model.starts=2", "--model.steps_per_epoch=1", "--trainer.max_epochs=1"]
    small += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    main(["fit", "--model=ExclusiveOr", *small])
    assert Path("tb_logs/run/version_0/weights.safetensors").is_file()
    with pytest.raises(SystemExit):
        main(["fit", "--model=ExclusivOr", *small])
    assert "did you mean 'ExclusiveOr'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["superposition_abs", "superposition_xor"])
def test_run_from_the_command_line(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--model.starts=5", "--model.steps_per_epoch=10", "--model.halve_after=[1]"]
    small += ["--trainer.max_epochs=2", "--trainer.enable_progress_bar=false"]
    main(["fit", f"--config={CONFIGS / name}.yaml", *small])
    (folder,) = Path("tb_logs", name).iterdir()
    best = Weights(**load_file(folder / "weights.safetensors"))
    width = 12 if name.endswith("xor") else 6
    assert [list(w.shape) for w in best] == [[1, 8, width], [1, 8], [1, 6, 8], [1, 6]]
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    figures = {"weights", "shared_units", "motifs", "excitation_and_inhibition"}
    assert set(events.Tags()["images"]) == figures
    assert all(len(events.Images(figure)) == 2 for figure in figures)
    curves = [events.Scalars(f"loss/{name}") for name in ("best", "median", "last_decile")]
    for points in zip(*curves, strict=True):
        values = [point.value for point in points]
        assert values == sorted(values)
        assert values[0] > 0


def test_motifs_are_found_by_hand() -> None:
    weights, toy = perfect_xor(2), ExclusiveOr(features=2, hidden=4, starts=1)
    weights.hidden[0, :2, 3] = 2  # the first pair's units read an input of the second, too
    motifs = toy.motifs(weights)
    assert motifs.inputs == ["0:01", "0:10", "0:11", "1:01", "1:10", "1:11"]
    assert motifs.tension.tolist() == [[0, 0], [0, 0], [2, 0], [2, 0], [0, 0], [2, 2]]
    assert motifs.genuine == (2, 0)
    assert motifs.interference == (3, 0)
    assert motifs.attribution[2, 0].tolist() == [2, -2, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "probability"), [(ExclusiveOr, 0.05), (AbsoluteValue, 0.01)])
def test_the_best_start_shows_the_motifs(kind: type[Toy], probability: float) -> None:
    toy = kind(
        probability=probability,
        starts=20,
        batch_size=400,
        steps_per_epoch=6000,
        optimizer=lambda weights: torch.optim.Adam(weights, lr=3e-3, fused=True),
    )
    trainer(1).fit(toy)
    motifs = toy.motifs(toy.best())
    # Another feature's inputs excite and inhibit an output at once, and leave it silent ...
    assert motifs.tension[motifs.interference] > 0.5
    assert motifs.attribution[motifs.interference].sum() < 0.3
    if kind is ExclusiveOr:  # ... and so do both of its own; for |x| none is in the other's way
        assert motifs.tension[motifs.genuine] > 0.5
        assert motifs.attribution[motifs.genuine].sum() < 0.3


@pytest.mark.slow
def test_it_learns_xor_and_shows_both_motifs() -> None:
    toy = ExclusiveOr(
        features=2,
        hidden=4,
        probability=0.5,
        starts=200,
        steps_per_epoch=2000,
        optimizer=lambda weights: torch.optim.Adam(weights, lr=0.01, fused=True),
    )
    trainer(1).fit(toy)
    solved = (toy.error < 1e-3).nonzero()[:, 0].tolist()
    assert len(solved) > 5
    both = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]])
    with torch.no_grad():
        causes = [tension_causes(toy.weights.at([start]), both, toy.own()) for start in solved]
    # A pair with units of its own may be a + b and a veto for both ...
    assert any(own.diagonal().max() > 0.4 and others.max() < 0.1 for own, others in causes)
    # ... or |a − b|, where both cancel before any unit is on ...
    assert any(own.max() < 0.01 for own, _ in causes)
    # ... or units that the pairs share, so that each is excited and inhibited by the other.
    assert any(others.max() > 0.4 for _, others in causes)
