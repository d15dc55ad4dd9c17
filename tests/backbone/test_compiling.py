"""Compiled passes: the same values as of the network as it is, which runs where they cannot be."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mti_lightning import (
    ActGrad,
    Backbone,
    IntGrad,
    Layer,
    MaximallyTense,
    PositiveInversion,
    Sweep,
    VetoedShapesPictures,
    Views,
    render,
)
from mti_lightning.backbone.compiling import Compiler
from mti_lightning.backbone.network import _Stop
from tests.backbone.networks import liven

QUIET: Any = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
WORLD = "vetoed_shapes_resnet"
EARLY, LATE = Layer("layer2"), Layer("layer4.0.bn1")


def both(name: str = "test_resnet", way: Any = "aot_eager", **options: Any) -> list[Backbone]:
    """Return a network that is compiled, and the same as it is."""
    made = [Backbone(name, "random", compile=compiled, **options) for compiled in (way, False)]
    for backbone in made:
        liven(backbone.network)
    return made


def close(found: Tensor, wanted: Tensor, within: float = 1e-5) -> bool:
    return torch.allclose(found, wanted, 0, within * float(wanted.detach().abs().max()))


@pytest.fixture
def plain_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each pass of a network had that ran by its modules."""
    counted: list[int] = []
    compute = Backbone._compute

    def count(self: Backbone, pictures: Tensor) -> Tensor:
        counted.append(len(pictures))
        return compute(self, pictures)

    monkeypatch.setattr(Backbone, "_compute", count)
    return counted


def gradients(backbone: Backbone, pictures: Tensor, first: Layer, last: Layer) -> list[Tensor]:
    """Return what objectives and sweeps take of a network: values, and gradients of both kinds."""
    shown = pictures.clone().requires_grad_()
    with backbone.working():
        values = backbone.run(shown, [first])[first]
        moves = torch.autograd.grad(values.square().sum(), shown)
        tapped = backbone.run(pictures, [first, last], cut=first)
        slopes = torch.autograd.grad(tapped[last].square().sum(), tapped[first])
        with torch.no_grad():
            behind = backbone.run_behind(first, torch.cat([tapped[first]] * 2), [last], pictures)
    return [values, *moves, *tapped.values(), *slopes, *behind.values()]


def check(name: str, first: Layer, last: Layer, counted: list[int], way: Any = "aot_eager") -> None:
    compiled, plain = both(name, way)
    pictures = plain.noise(2)
    for _ in range(2):
        counted.clear()
        found = gradients(compiled, pictures, first, last)
    assert counted == []
    assert all(map(close, found, gradients(plain, pictures, first, last)))


def test_a_pass_is_recorded_once_and_gives_the_same(plain_runs: list[int]) -> None:
    check("test_resnet", EARLY, LATE, plain_runs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("test_efficientnet", "blocks.1", "blocks.4"),
        ("test_convnext", "stages.1", "stages.3"),
        ("densenet121", "features.transition1", "features.denseblock2"),
        ("test_vit", "blocks.1", "blocks.3.mlp.act"),
    ],
)
def test_families_of_networks_compile(
    name: str, first: str, last: str, plain_runs: list[int]
) -> None:
    check(name, Layer(first), Layer(last), plain_runs)


@pytest.mark.slow
def test_a_network_is_compiled_to_machine_code(plain_runs: list[int]) -> None:
    check("test_resnet", EARLY, LATE, plain_runs, way=True)


def test_what_lies_round_a_layer_comes_along(plain_runs: list[int]) -> None:
    inner = Layer("layer2.0.act1")  # the block's shortcut goes round it
    check("test_resnet", inner, LATE, plain_runs)


def test_each_shape_is_compiled_once_and_set_ups_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, _ = both()
    tried: list[int] = []
    record = Compiler._record

    def count(self: Compiler, asked: Any, *rest: Any) -> Any:
        tried.append(len(asked.pictures))
        return record(self, asked, *rest)

    monkeypatch.setattr(Compiler, "_record", count)
    compiled.run(compiled.noise(3), [EARLY])
    compiled.is_only_way(EARLY, (LATE,))
    assert tried == []
    with compiled.working(), torch.no_grad():
        for pictures in (2, 1, 2, 1):
            compiled.run(compiled.noise(pictures), [EARLY])
    assert tried == [2, 1]


def test_two_layers_at_which_gradients_are_taken() -> None:
    found = []
    for backbone in both():
        with backbone.working():
            between = Layer("layer3")
            tapped = backbone.run(backbone.noise(2), [EARLY, between, LATE], {EARLY, between})
        loss = tapped[LATE].square().sum()
        found.append(torch.autograd.grad(loss, [tapped[EARLY], tapped[between]]))
        single = backbone.run(backbone.noise(2), [between, LATE], between)
        alone = torch.autograd.grad(single[LATE].square().sum(), single[between])
        assert close(found[-1][1], alone[0])
    assert all(map(close, *found))


def test_gradients_of_gradients_are_those_of_the_network_as_it_is(plain_runs: list[int]) -> None:
    found = []
    for backbone in both():
        shown = backbone.noise(2).requires_grad_()
        for _ in range(2):
            plain_runs.clear()
            with backbone.working(), backbone.differentiated_twice(EARLY):
                tapped = backbone.run(shown, [EARLY, LATE])
                (slope,) = torch.autograd.grad(
                    tapped[LATE].square().sum(), tapped[EARLY], create_graph=True
                )
                behind = backbone.run_behind(EARLY, tapped[EARLY] / 2, [LATE], shown)
                (half,) = torch.autograd.grad(
                    behind[LATE].square().sum(), tapped[EARLY], create_graph=True
                )
            loss = ((slope + half) * tapped[EARLY]).sum()
            gradient = torch.autograd.grad(loss, shown)[0]
        assert bool(plain_runs) == (not backbone.compiles)
        found.append(gradient)
    assert close(*found)


def test_changed_units_and_hooks_of_others_run_as_they_are(
    plain_runs: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    compiled, plain = both()
    pictures = plain.noise(2)

    def values(backbone: Backbone) -> Tensor:
        with backbone.working(), torch.no_grad():
            return backbone.run(pictures, [LATE])[LATE]

    values(compiled)
    for _ in range(2):
        with compiled.scaled(EARLY, [0, 1]), plain.scaled(EARLY, [0, 1]):
            assert close(values(compiled), values(plain))
    handles = [
        backbone.network.get_submodule("layer1").register_forward_hook(lambda *of: 2 * of[2])
        for backbone in (compiled, plain)
    ]
    assert close(values(compiled), values(plain))
    for handle in handles:
        handle.remove()
    told = [record.message for record in caplog.records if "not compiled" in record.message]
    assert len(told) == 2  # of each reason once
    plain_runs.clear()
    assert close(values(compiled), values(plain))
    assert plain_runs == [2]  # the one that is not compiled


def test_other_weights_are_compiled_anew() -> None:
    compiled, plain = both()
    pictures = plain.noise(1)
    with compiled.working():
        compiled.run(pictures, [LATE])
        copied = copy.deepcopy(compiled)
        for backbone in (copied, plain):
            with torch.no_grad():
                module: Any = backbone.network.get_submodule("layer1.0.bn1")
                module.running_var *= 4
                conv: Any = backbone.network.get_submodule("layer2.0.conv1")
                conv.weight.data = conv.weight.data.flip(0)
        assert close(copied.run(pictures, [LATE])[LATE], plain.run(pictures, [LATE])[LATE])


class _Moody(nn.Module):
    """Asks its values what to do, which no record can hold."""

    def forward(self, values: Tensor) -> Tensor:
        return values if values.sum().item() > 0 else -values


@pytest.mark.parametrize("broken", ["network", "compiler", "values"])
def test_what_cannot_be_compiled_runs_as_it_is(
    broken: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiled, plain = both()
    if broken == "network":
        for backbone in (compiled, plain):
            backbone.network.get_submodule("layer1").add_module("act", _Moody())
            block: Any = backbone.network.get_submodule("layer1.0")
            block.act2 = _Moody()
    elif broken == "compiler":

        def fail(*_: Any, **__: Any) -> Any:
            raise RuntimeError("no C++ compiler\nis here")

        monkeypatch.setattr(torch, "compile", fail)
    else:
        monkeypatch.setattr(torch, "compile", lambda f, **_: lambda *of: [2 * v for v in f(*of)])
    pictures = plain.noise(2)
    with compiled.working():
        for _ in range(2):
            found = compiled.run(pictures, [EARLY, LATE], cut=EARLY)
    assert close(found[LATE], plain.run(pictures, [LATE])[LATE])
    (told,) = [record.message for record in caplog.records if "not compiled" in record.message]
    assert "test_resnet" in told
    assert "\n" not in told
    assert broken != "compiler" or "no C++ compiler is here" in told
    assert broken != "values" or "other values" in told


def test_no_pass_ends_by_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, _ = both()
    with compiled.working(), torch.no_grad():
        compiled.run(compiled.noise(2), [EARLY])
        monkeypatch.setattr(_Stop, "__init__", lambda *_: pytest.fail("stopped"))
        compiled.run(compiled.noise(2), [EARLY])


@pytest.mark.parametrize("kind", [PositiveInversion, MaximallyTense])
def test_images_are_made_by_compiled_passes(kind: Any, plain_runs: list[int]) -> None:
    data = VetoedShapesPictures(1) if kind.needs_sources else None
    made = []
    for way in ("aot_eager", False):
        backbone = Backbone(WORLD, compile=way)
        objective = kind(
            backbone, ["fc:0"], "layer4", IntGrad(2), steps_per_epoch=3, views=Views(noise=0)
        )
        made += render(objective, data, epochs=1, **QUIET)
        made[-1].measures["passes"] = len(plain_runs)
        plain_runs.clear()
    assert made[0].measures.pop("passes") < made[1].measures.pop("passes")
    assert made[0].measures == pytest.approx(made[1].measures, rel=1e-3, nan_ok=True)


@pytest.mark.parametrize("method", [ActGrad(), IntGrad(2)])
@pytest.mark.filterwarnings("ignore:feature .* is read after its activation function")
def test_a_sweep_measures_by_compiled_passes(method: Any, plain_runs: list[int]) -> None:
    found = []
    features = [*(f"layer4.0.act2:{channel}@mean" for channel in range(3)), "fc:0"]
    for way in ("aot_eager", False):
        sweep = Sweep(Backbone(WORLD, compile=way), features, "layer3", method, rivals=0)
        sweep.prepare()
        pictures = sweep.backbone.noise(4)
        for _ in range(2):
            plain_runs.clear()
            measured = sweep.measure(pictures)
        assert bool(plain_runs) == (not way)
        found.append(measured)
    for name, values in found[0].items():
        torch.testing.assert_close(values, found[1][name], rtol=1e-4, atol=1e-5, equal_nan=True)


def test_stores_tell_how_the_network_was_run(tmp_path: Path) -> None:
    told = [
        Sweep(Backbone(WORLD, **how), ["fc:0"], "layer4").provenance(None)["network"]
        for how in ({}, {"compile": "aot_eager"}, {"compile": True, "precision": "bf16"})
    ]
    assert told == [None, {"compile": "aot_eager"}, {"compile": True, "precision": "bf16"}]


class _Dtypes(TorchDispatchMode):
    """Notes what convolutions and linear maps compute in."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "convolution" in func._schema.name:
            self.found.add(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("way", [False, "aot_eager"])
def test_half_precision_is_of_the_network_alone(way: Any) -> None:
    half, full = both(way=way, precision="bf16")[0], both()[1]
    shown = [full.noise(2).requires_grad_() for _ in range(2)]
    with _Dtypes() as dtypes, half.working():
        tapped = half.run(shown[0], [EARLY, LATE])
    assert dtypes.found >= {torch.bfloat16}
    assert {value.dtype for value in tapped.values()} == {torch.float32}
    wanted = full.run(shown[1], [EARLY, LATE])
    assert close(tapped[LATE], wanted[LATE], 0.03)
    assert not close(tapped[LATE], wanted[LATE])
    found = [
        torch.autograd.grad(of[EARLY].square().mean(), picture)[0]
        for of, picture in zip((tapped, wanted), shown, strict=True)
    ]
    assert found[0].dtype == torch.float32
    assert torch.cosine_similarity(*(of.flatten() for of in found), dim=0) > 0.99
    with _Dtypes() as dtypes:  # what makes sure of something is exact
        assert close(half.run(full.noise(2), [LATE])[LATE], wanted[LATE])
    assert dtypes.found == {torch.float32}
