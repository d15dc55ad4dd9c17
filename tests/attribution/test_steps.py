"""Integrated gradients, and how many steps of them a run takes."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mti_lightning import (
    ActGrad,
    Backbone,
    BoundFeature,
    Feature,
    InputError,
    IntGrad,
    Layer,
    MaximallyTense,
    PositiveInversion,
    VetoedShapes,
    VetoedShapesPictures,
    attribute,
    render,
)
from mti_lightning.attribution.gradients import mean_gradients
from mti_lightning.attribution.steps import as_recorded, choose_steps, measure_gap, recorded
from mti_lightning.testing import check_attribution

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def shapes() -> Backbone:
    return Backbone("vetoed_shapes_resnet")


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    world = VetoedShapes(16, seed=5, contents="tense")
    return torch.stack([world[index]["picture"] for index in range(16)])


def bind(backbone: Backbone, *features: str) -> list[BoundFeature]:
    return [BoundFeature(Feature.parse(feature), backbone) for feature in features]


def test_the_method_keeps_its_word() -> None:
    check_attribution(IntGrad(24))


@pytest.mark.parametrize("layer", ["layer1", "layer3"])
@pytest.mark.parametrize("from_mean", [False, True])
def test_integrated_gradients_against_a_loop(
    shapes: Backbone, pictures: Tensor, layer: str, from_mean: bool, tmp_path: Path
) -> None:
    place, start, path = Layer(layer), torch.zeros(1), None
    if from_mean:
        values = np.linspace(0, 1, shapes.layout(place).channels, dtype=np.float32)
        np.save(path := tmp_path / "mean.npy", values)
        start = torch.from_numpy(values)[:, None, None]
    asked = bind(shapes, "fc:3", "layer4.0.bn1:5@1,2", "fc:0")
    shown = pictures[:3]
    a, found, r = attribute(shapes, shown, asked, place, IntGrad(4, path and str(path)))
    wanted = torch.zeros_like(a)
    for step in range(4):
        point = (start + (step + 0.5) / 4 * (a - start)).requires_grad_()
        tapped = shapes.run(shown, sorted({one.layer for one in asked}), insert={place: point})
        for row, one in enumerate(asked):
            response = one(tapped[one.layer])[row]
            gradient = torch.autograd.grad(response, point, retain_graph=True)[0]
            wanted[row] += ((a - start) * gradient / 4)[row]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    for row in range(3):
        alone = attribute(shapes, shown[row : row + 1], asked[row : row + 1], place, IntGrad(4))
        if not from_mean:
            torch.testing.assert_close(alone[1], found[row : row + 1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone[2], r[row : row + 1])


def test_one_step_from_zeros_over_a_linear_head_is_act_grad(
    shapes: Backbone, pictures: Tensor
) -> None:
    asked = bind(shapes, *["fc:3"] * 16)
    plain = attribute(shapes, pictures, asked, Layer("layer4"), ActGrad())[1]
    for steps in (1, 3):
        found = attribute(shapes, pictures, asked, Layer("layer4"), IntGrad(steps))[1]
        torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-6)


def test_steps_are_as_many_as_the_head_needs(
    shapes: Backbone, pictures: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    asked = bind(shapes, "fc:3", "fc:5")
    with caplog.at_level(logging.INFO, "mti_lightning"):
        flat, deep = (
            choose_steps(IntGrad(), shapes, Layer(layer), asked, [pictures[:9], pictures[9:]])
            for layer in ("layer4", "layer2")
        )
    assert isinstance(flat, ActGrad)
    assert isinstance(deep, IntGrad)
    assert "layer4: act×grad, whose sum misses" in caplog.messages[0]
    assert f"layer2: integrated gradients in {deep.steps} steps, whose sum" in caplog.messages[1]
    assert f"over 16 pictures; each picture costs {deep.steps} forward" in caplog.messages[1]
    turns = [asked[row % 2] for row in range(16)]
    for layer, method, most in (("layer4", flat, 0.01), ("layer2", deep, 0.15)):
        assert measure_gap(method, shapes, pictures, turns, Layer(layer)) <= most
    fewer = IntGrad(deep.steps // 2) if deep.steps > 4 else ActGrad()
    assert measure_gap(fewer, shapes, pictures, turns, Layer("layer2")) > 0.15
    # Features of several layers get as many as the one that needs most.
    both = [*asked, *bind(shapes, "layer3.0.bn1:3@mean")]
    assert choose_steps(IntGrad(), shapes, Layer("layer2"), both, [pictures]).steps == deep.steps
    assert choose_steps(IntGrad(3), shapes, Layer("layer2"), asked, []).steps == 3
    given = ActGrad()
    assert choose_steps(given, shapes, Layer("layer2"), asked, []) is given


def test_the_gap_is_what_the_sum_misses(shapes: Backbone, pictures: Tensor) -> None:
    asked, layer = bind(shapes, *["fc:3"] * 16), Layer("layer2")
    a, found, r = attribute(shapes, pictures, asked, layer, IntGrad(2))
    tapped = shapes.run(pictures, [asked[0].layer], insert={layer: torch.zeros_like(a)})
    change = r - asked[0](tapped[asked[0].layer])
    wanted = (found.flatten(1).sum(1) - change).abs().sum() / change.abs().sum()
    assert measure_gap(IntGrad(2), shapes, pictures, asked, layer) == pytest.approx(float(wanted))


def test_where_no_steps_add_up_a_warning_says_so(caplog: pytest.LogCaptureFixture) -> None:
    vit = Backbone("test_vit", "random")  # a norm forgets how far from 0 it is
    chosen = choose_steps(IntGrad(), vit, Layer("blocks.1"), bind(vit, "head:3"), [])
    (message,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert "no number of steps adds up, so name a later attribution layer, a baseline" in message
    assert isinstance(chosen, ActGrad | IntGrad)


def test_a_linear_head_costs_no_more_than_act_grad(
    shapes: Backbone, pictures: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, layer = bind(shapes, *["fc:3"] * 16), Layer("layer4")
    chosen = choose_steps(IntGrad(), shapes, layer, asked, [pictures])
    taken, run, grad = [], Backbone.run, torch.autograd.grad
    monkeypatch.setattr(Backbone, "run", lambda *a, **k: taken.append("run") or run(*a, **k))
    monkeypatch.setattr(
        torch.autograd, "grad", lambda *a, **k: taken.append("grad") or grad(*a, **k)
    )
    found = attribute(shapes, pictures, asked, layer, chosen)
    assert taken == ["run", "grad"]
    wanted = attribute(shapes, pictures, asked, layer, ActGrad())
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("points", [(1.0,), (0.25, 0.75)])
def test_mean_gradients_of_many_features(count: int, points: tuple[float, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(3, 4, 2, 2, generator=generator)
    start, weights = torch.ones(4, 1, 1), torch.randn(16, 7, generator=generator)

    def head(values: Tensor) -> Tensor:
        return (values.flatten(1) @ weights[:, :count]).tanh()

    for at_once in (1, 3, 9):
        found = torch.full((count, *a.shape), torch.nan)
        for features, gradient in mean_gradients(head, a, start, points, count, at_once):
            found[features] = gradient
        for feature in range(count):
            leaves = [(start + point * (a - start)).requires_grad_() for point in points]
            wanted = [torch.autograd.grad(head(v)[:, feature].sum(), v)[0] for v in leaves]
            torch.testing.assert_close(found[feature], torch.stack(wanted).mean(0))


def test_what_was_chosen_is_recorded_and_taken_up() -> None:
    assert recorded(IntGrad(8)) == {
        "class_path": "mti_lightning.IntGrad",
        "init_args": {"steps": 8, "baseline": None},
    }
    for method in (ActGrad(), IntGrad(8)):
        assert recorded(as_recorded(IntGrad(), recorded(method))) == recorded(method)
    assert as_recorded(IntGrad(2), recorded(IntGrad(8))).steps == 2
    assert as_recorded(IntGrad(), recorded(IntGrad(8, "mean.npy"))).steps is None
    assert isinstance(as_recorded(ActGrad(), recorded(IntGrad(8))), ActGrad)


@pytest.mark.parametrize("steps", [0, -1])
def test_steps_are_one_or_more(steps: int) -> None:
    with pytest.raises(InputError, match=f"steps {steps}: give 1 or more"):
        IntGrad(steps)


@pytest.mark.parametrize("kind", ["inversion", "mti"])
def test_a_run_goes_on_with_the_steps_that_it_began_with(
    kind: str, shapes: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make() -> PositiveInversion | MaximallyTense:
        cls = PositiveInversion if kind == "inversion" else MaximallyTense
        return cls(shapes, ["fc:3"], "layer2", steps_per_epoch=1)

    data = VetoedShapesPictures(2, contents="tense") if kind == "inversion" else None
    first = make()
    render(first, data, epochs=1, **QUIET)
    begun = recorded(first.attribution)
    assert begun["init_args"]["steps"] in (4, 8, 16)
    checkpoint = {}
    first.on_save_checkpoint(checkpoint)
    monkeypatch.setattr("mti_lightning.attribution.steps._EXACT", 100)  # measured otherwise
    second = make()
    second.build_bank(data)
    assert recorded(second.attribution) != begun
    before = None if data is None else second.target(second.chunks[0])[0]
    second.on_load_checkpoint(checkpoint)
    assert recorded(second.attribution) == begun
    if before is not None:
        assert not torch.equal(second.target(second.chunks[0])[0], before)
        torch.testing.assert_close(
            second.target(second.chunks[0])[0], first.target(first.chunks[0])[0]
        )
