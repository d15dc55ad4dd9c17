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
from mti_lightning.attribution.ground import ground_of
from mti_lightning.attribution.steps import as_recorded, choose_steps, measure_gap, recorded
from mti_lightning.backbone import ActivationLayout
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
    assert recorded(flat)["init_args"] == {"steps": 1, "baseline": "ground"}
    assert isinstance(deep, IntGrad)
    assert deep.baseline == "ground"
    way = "integrated gradients from the ground in"
    assert f"layer4: {way} 1 step, whose sum misses" in caplog.messages[0]
    assert f"layer2: {way} {deep.steps} steps, whose sum" in caplog.messages[1]
    assert f"over 16 pictures; each picture costs {deep.steps} forward" in caplog.messages[1]
    turns = [asked[row % 2] for row in range(16)]
    for layer, method, most in (("layer4", flat, 0.01), ("layer2", deep, 0.15)):
        assert measure_gap(method, shapes, pictures, turns, Layer(layer)) <= most
    fewer = IntGrad(deep.steps // 2 if deep.steps > 4 else 1, "ground")
    assert measure_gap(fewer, shapes, pictures, turns, Layer("layer2")) > 0.15
    # Features of several layers get as many as the one that needs most.
    both = [*asked, *bind(shapes, "layer3.0.bn1:3@mean")]
    assert choose_steps(IntGrad(), shapes, Layer("layer2"), both, [pictures]).steps == deep.steps
    assert choose_steps(IntGrad(3), shapes, Layer("layer2"), asked, []).steps == 3
    given = ActGrad()
    assert choose_steps(given, shapes, Layer("layer2"), asked, []) is given


def test_attributions_begin_at_zeros_where_a_picture_has_no_ground_for_a_feature(
    shapes: Backbone, pictures: Tensor
) -> None:
    asked, place = bind(shapes, "fc:3"), bind(shapes, "layer4.0.bn1:5@1,2")
    kept = choose_steps(IntGrad(), shapes, Layer("layer4"), asked, [pictures], ground=False)
    assert isinstance(kept, ActGrad)
    of_place = choose_steps(IntGrad(), shapes, Layer("layer3"), asked + place, [pictures])
    assert of_place.baseline is None
    pooled = Layer("global_pool")  # no positions
    assert isinstance(choose_steps(IntGrad(), shapes, pooled, asked, [pictures]), ActGrad)
    with pytest.raises(InputError, match="baseline 'ground': the attribution layer has no posit"):
        attribute(shapes, pictures[:1], asked, pooled, IntGrad(1, "ground"))
    rendered = PositiveInversion(shapes, ["fc:3"], "layer4")
    rendered.settle([pictures])
    assert recorded(rendered.attribution) == recorded(IntGrad(1, "ground"))  # for its numbers
    assert isinstance(rendered.from_zeros(rendered.attribution), ActGrad)


@pytest.mark.parametrize(("name", "layer"), [("shapes", "layer2"), ("vit", "blocks.1")])
def test_the_ground_is_the_half_that_is_most_alike(
    name: str, layer: str, shapes: Backbone, pictures: Tensor
) -> None:
    backbone = shapes if name == "shapes" else Backbone("test_vit", "random")
    shown = pictures[:2] if name == "shapes" else backbone.noise(2)
    on, layout = Layer(layer), backbone.layout(Layer(layer))
    a = backbone.run(shown, [on])[on].detach()
    found = ground_of(a, layout).expand_as(a).movedim(layout.channel_dim, -1).flatten(1, -2)
    rows = a.movedim(layout.channel_dim, -1).flatten(1, -2)  # [N, P, C]
    assert (found[:, : layout.off_grid] == 0).all()
    for row, own in zip(rows[:, layout.off_grid :], found[:, layout.off_grid :], strict=True):
        middle = row.median(0).values
        for _ in range(3):
            apart = [float(((one - middle) ** 2).sum()) for one in row]
            order = sorted(range(len(row)), key=apart.__getitem__)
            middle = row[order[: (len(row) + 1) // 2]].mean(0)
        torch.testing.assert_close(own, middle.expand_as(own))


def test_a_thing_on_plain_ground_is_not_of_the_ground() -> None:
    layout = ActivationLayout((4, 6, 6), 1, (6, 6))
    a = torch.full((1, 4, 6, 6), 2.0)
    a[:, :, 1:4, 2:6] = torch.randn(1, 4, 3, 4, generator=torch.Generator().manual_seed(0)) * 9
    assert (ground_of(a, layout) == 2).all()


def test_integrated_gradients_from_the_ground_add_up(shapes: Backbone, pictures: Tensor) -> None:
    asked, layer = bind(shapes, *["fc:3"] * 16), Layer("layer4")
    a, found, r = attribute(shapes, pictures, asked, layer, IntGrad(1, "ground"))
    start = ground_of(a, shapes.layout(layer))
    (_, plain, _), tapped = (
        attribute(shapes, pictures, asked, layer, ActGrad()),
        shapes.run(pictures, [asked[0].layer], insert={layer: start.expand_as(a).contiguous()}),
    )
    torch.testing.assert_close(found * a, (a - start) * plain, rtol=1e-4, atol=1e-5)
    change = r - asked[0](tapped[asked[0].layer])
    torch.testing.assert_close(found.flatten(1).sum(1), change, rtol=1e-4, atol=1e-4)


def test_the_gap_is_what_the_sum_misses(shapes: Backbone, pictures: Tensor) -> None:
    asked, layer = bind(shapes, *["fc:3"] * 16), Layer("layer2")
    a, found, r = attribute(shapes, pictures, asked, layer, IntGrad(2))
    tapped = shapes.run(pictures, [asked[0].layer], insert={layer: torch.zeros_like(a)})
    change = r - asked[0](tapped[asked[0].layer])
    wanted = (found.flatten(1).sum(1) - change).abs().sum() / change.abs().sum()
    assert measure_gap(IntGrad(2), shapes, pictures, asked, layer) == pytest.approx(float(wanted))


def test_where_no_steps_add_up_a_warning_says_so(caplog: pytest.LogCaptureFixture) -> None:
    vit = Backbone("test_vit", "random")  # a norm forgets how far from 0 it is
    of = (vit, Layer("blocks.1"), bind(vit, "head:3"), [])
    assert choose_steps(IntGrad(), *of).baseline == "ground"
    assert not caplog.records or caplog.records[-1].levelname == "INFO"  # from there it adds up
    chosen = choose_steps(IntGrad(), *of, ground=False)
    (message,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert "no number of steps adds up, so name a later attribution layer, a baseline" in message
    assert isinstance(chosen, ActGrad | IntGrad)


@pytest.mark.parametrize("ground", [False, True])
def test_a_linear_head_costs_no_more_than_act_grad(
    ground: bool, shapes: Backbone, pictures: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, layer = bind(shapes, *["fc:3"] * 16), Layer("layer4")
    chosen = choose_steps(IntGrad(), shapes, layer, asked, [pictures], ground)
    taken, run, grad = [], Backbone.run, torch.autograd.grad
    monkeypatch.setattr(Backbone, "run", lambda *a, **k: taken.append("run") or run(*a, **k))
    monkeypatch.setattr(
        torch.autograd, "grad", lambda *a, **k: taken.append("grad") or grad(*a, **k)
    )
    found = attribute(shapes, pictures, asked, layer, chosen)
    # From zeros it is one pass; of a way, the pass that reads the activations begins.
    assert taken.count("grad") == 1
    if ground:
        return
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
    for method in (ActGrad(), IntGrad(8), IntGrad(8, "ground")):
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
    before = None if data is None else second.target(second.chunks[0])[second.layer][0]
    second.on_load_checkpoint(checkpoint)
    assert recorded(second.attribution) == begun
    if before is not None:
        assert not torch.equal(second.target(second.chunks[0])[second.layer][0], before)
        torch.testing.assert_close(
            second.target(second.chunks[0])[second.layer][0],
            first.target(first.chunks[0])[first.layer][0],
        )
