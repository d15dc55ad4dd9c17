"""The validity report: its figures where they are known, and that it warns of what is wrong."""

import json
import math
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import save_file
from torch import Tensor

from mti_lightning import Attribution, Backbone, InputError, Layer, Tension, VetoedShapesPictures
from mti_lightning.attribution.methods import ActGrad, IntGrad, Pass
from mti_lightning.cli import main
from mti_lightning.cli.runs import _how_to_go_on
from mti_lightning.compose import to_image
from mti_lightning.features.bound import BoundFeature
from mti_lightning.features.feature import Feature
from mti_lightning.objectives.chunk import Entry
from mti_lightning.registry import ATTRIBUTIONS
from mti_lightning.signals import Stopped
from mti_lightning.validity import rivals
from mti_lightning.validity.checks import (
    check_pictures,
    complexity,
    modules_between,
    random_units,
    shuffled,
    silence,
)
from mti_lightning.validity.judging import (
    judge_interference,
    judge_names,
    judge_pictures,
    judge_renderings,
)
from mti_lightning.validity.limits import Finding, finding, unmeasured
from mti_lightning.validity.module import Validity
from mti_lightning.validity.report import Report
from mti_lightning.validity.truth import check_names
from mti_lightning.vetoed_shapes.shapes import KINDS
from mti_lightning.vetoed_shapes.world import VetoedShapes
from tests.test_registry import site  # noqa: F401  the fixture

CONFIGS = Path(__file__).parents[2] / "configs"
WORLD = "vetoed_shapes_resnet"
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}


@final
class Flipped(Attribution):
    """A wrong method: activation times gradient, its signs flipped at random."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def attribute(self, forward: Pass, create_graph: bool) -> Tensor:
        found = ActGrad().attribute(forward, create_graph)
        return found * (torch.randint(0, 2, found.shape, generator=self.generator) * 2 - 1)


@final
class Activation(Attribution):
    """A wrong method: it knows nothing of the weights behind the layer."""

    def attribute(self, forward: Pass, create_graph: bool) -> Tensor:
        return forward.activations - forward.activations.mean()


def tense_pictures(count: int) -> Tensor:
    """Return pictures of which number i holds shape i mod 8 and its veto."""
    world = VetoedShapes(count, seed=31, contents="tense")
    return torch.stack([world[index]["picture"] for index in range(count)])


def check(backbone: Backbone, pictures: Tensor, feature: str, layer: str) -> dict[str, Tensor]:
    bound_feature = BoundFeature(Feature.parse(feature), backbone)
    keys = list(range(len(pictures)))
    return check_pictures(
        backbone, pictures, bound_feature, Layer.parse(layer), ActGrad(), Tension(), keys
    )[0]


def report(
    backbone: Backbone,
    attribution: Attribution | None = None,
    layer: str = "layer4",
    features: Sequence[str] = ("fc:3",),
    batch_size: int = 24,
    **options: object,
) -> dict[str, Finding]:
    """Return the findings about the first of some features, and the verdict as one."""
    options = {"pictures": 48, "rendered": 2, "steps": 24, "composites": 0, **options}
    module = Validity(backbone, features, layer, attribution, **options)
    data = VetoedShapesPictures(48, seed=7, contents="random", batch_size=batch_size)
    Trainer(accelerator="cpu", **QUIET).validate(module, datamodule=data, verbose=False)
    assert module.report is not None
    found = {finding.check: finding for finding in module.report.findings[features[0]]}
    return found | {"verdict": Finding(module.report.verdicts[features[0]], {}, "", ())}


# --- silencing ---


@pytest.mark.parametrize(("backbone", "layer"), [(WORLD, "layer4"), ("test_resnet", "layer4")])
def test_on_a_linear_head_the_predicted_and_the_real_change_are_equal(backbone, layer):
    network = Backbone(backbone, "pretrained" if backbone == WORLD else "random")
    size = network.preprocessing.size
    pictures = torch.nn.functional.interpolate(tense_pictures(8), size)
    found = check(network, pictures, "fc:3", layer)
    scale = found["response"].abs().max()
    for which in ("inhibitory", "excitatory", "random inhibitory", "random excitatory"):
        predicted, real = found[f"{which} predicted"], found[f"{which} real"]
        assert predicted.abs().max() > 0.01 * scale
        assert torch.allclose(predicted, real, rtol=1e-5, atol=1e-5 * float(scale))
    assert (found["inhibitory predicted"] >= 0).all()
    assert (found["excitatory predicted"] <= 0).all()
    change = found["response"] - found["silent"]
    assert torch.allclose(found["total"], change, rtol=1e-5, atol=1e-5 * float(scale))


@pytest.mark.parametrize("layer", ["layer4", "layer3"])
def test_silencing_what_inhibits_turns_the_class_of_truly_tense_pictures_on(layer):
    backbone, pictures = Backbone(WORLD), tense_pictures(64)
    turned: dict[str, list[Tensor]] = {"inhibitory": [], "random inhibitory": []}
    for kind in range(len(KINDS)):
        found = check(backbone, pictures[kind :: len(KINDS)], f"fc:{kind}", layer)
        silent = found["response"] <= 0
        for which, shares in turned.items():
            shares.append((found["response"] + found[f"{which} real"] > 0)[silent].float())
    own, random = (torch.cat(shares) for shares in turned.values())
    assert len(own) >= 50
    assert own.mean() >= 0.9
    assert random.mean() <= 0.1


def test_silence_predicts_minus_the_attribution_of_the_units():
    activations, weights = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([2.0, -1.0, 0.5])
    units = torch.tensor([[False, True, True]])
    head = lambda a: a @ weights  # noqa: E731
    response = head(activations)
    predicted, real = silence(head, activations, activations * weights, response, units)
    assert predicted.tolist() == real.tolist() == [0.5]


def test_random_units_are_active_as_many_and_each_pictures_own():
    activations = torch.rand(5, 4, 6, 6).sub(0.5).relu()
    units = (torch.rand(5, 4, 6, 6) < 0.3) & (activations > 0)
    chosen = random_units(activations, units, [3, 4, 5, 6, 7])
    assert torch.equal(chosen.flatten(1).sum(1), units.flatten(1).sum(1))
    assert (activations[chosen] > 0).all()
    assert not torch.equal(chosen, units)
    alone = random_units(activations[2:3], units[2:3], [5])
    assert torch.equal(alone[0], chosen[2])


# --- randomised layers ---


def test_the_modules_behind_a_layer_are_found_in_the_order_they_run():
    backbone = Backbone("test_resnet", "random")
    target = Layer("fc")
    assert modules_between(backbone, Layer("layer4"), target) == ["fc"]
    names = modules_between(backbone, Layer("layer3"), target)
    assert names[-1] == "fc"
    assert all(name.startswith("layer4.") for name in names[:-1])
    own = {n for n, m in backbone.network.layer4.named_modules() if [*m.parameters(recurse=False)]}
    assert {name.removeprefix("layer4.") for name in names[:-1]} == own
    assert modules_between(backbone, Layer("fc", "input"), target) == ["fc"]
    assert modules_between(backbone, Layer("layer4"), Layer("fc", "input")) == []


def test_shuffling_keeps_each_tensors_values_and_leaves_the_network_alone():
    backbone = Backbone("test_resnet", "random")
    before = {name: value.clone() for name, value in backbone.network.state_dict().items()}
    other = shuffled(backbone, ["fc"]).network.state_dict()
    for name, value in backbone.network.state_dict().items():
        assert torch.equal(value, before[name])
        assert torch.equal(value, other[name]) == (name != "fc.weight" and name != "fc.bias") or (
            name == "fc.bias" and not value.any()
        )
    weight = before["fc.weight"]
    assert torch.equal(weight.flatten().sort().values, other["fc.weight"].flatten().sort().values)


# --- the report ---


def test_a_sound_backbone_and_method_are_believed():
    found = report(Backbone(WORLD), steps=64)
    assert "do not believe" not in found["verdict"].check
    for name in ("completeness", "silencing inhibitory units", "selectivity"):
        assert found[name].warnings == ()
    for name in ("pasting inhibitory patches", "pasting excitatory patches"):
        assert found[name].warnings == ()
        assert "beside another feature's" in found[name].values
    assert found["truth: ranking by tension"].values["average precision"] > 0.9
    assert found["completeness"].values["median error"] < 1e-5
    assert 0.3 < found["interference"].values["index"] < 0.7


def test_the_judge_names_what_is_in_the_pictures_of_the_embedded_world(tmp_path):
    state = {of: one.contiguous() for of, one in Backbone(WORLD).network.state_dict().items()}
    save_file(state | {"fc.bias": state["fc.bias"] + 1e-4}, tmp_path / "other.safetensors")
    judge = {"name": WORLD, "weights": str(tmp_path / "other.safetensors")}
    of_all = report(Backbone(WORLD), features=["fc:4"], steps=100, judges=[judge])
    alike = of_all["likeness to photographs"].values
    assert list(alike)[-1] == "fc"
    assert min(alike.values()) > 0
    asked = of_all["what other networks see"].values
    assert asked[f"{WORLD}: in +"] == 1
    assert asked[f"{WORLD}: logit's rise"] > 0
    found = of_all["truth: what a judge sees"]
    assert found.values["pictures"] == 8
    assert found.values["named"] >= 0.5  # chance is 0.125
    entries = [Entry("", 0, 3, "", 0, sign, source) for source in (0, 1) for sign in "+-"]
    picture = VetoedShapes(1, seed=31, contents="tense")[0]["picture"]  # class 0: disc and star

    class Finished:
        chunks = (lambda: picture.expand(4, 3, 96, 96),)

    Finished.entries = entries
    named = check_names(Finished(), 0, torch.tensor([True, False]))
    assert {name: len(right) for name, right in named.items()} == {"+ shape": 1, "- veto": 1}
    assert named["+ shape"] ^ named["- veto"]  # one of the two is the strongest
    assert judge_names(named).values["pictures"] == 2
    none = judge_names(check_names(Finished(), 0, torch.tensor([False, False])))
    assert none.meaning.startswith("Not measured, because none of the pictures")


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_figures_do_not_depend_on_the_batch(batch_size):
    options = {"features": ["fc:3", "fc:5"], "layer": "layer3", "rendered": 0, "pictures": 6}
    backbone = Backbone("test_resnet", "random")
    whole = report(backbone, **options)
    found = report(backbone, batch_size=batch_size, **options)
    assert whole.keys() == found.keys()
    for name, of_whole in whole.items():
        expected = pytest.approx(of_whole.values, rel=1e-3, abs=1e-4, nan_ok=True)
        assert found[name].values == expected, name
        assert found[name].warnings == of_whole.warnings


@pytest.mark.parametrize(
    ("features", "took_part"),
    [
        (["fc:4"], (8, 8)),
        (["layer3.0.act2/input:3@peak"], (64, 128)),
        (["layer3.0.act2/input:3@peak", "layer3.0.act2/input:9@peak"], (64, 128)),
        (["fc:[1,0,0,0,0,0,0,-1]", "fc:[0,1,1,0,0,0,0,-1]"], (2, 2)),
    ],
)
def test_other_channels_of_the_layer_are_rivals(features, took_part):
    options = {"features": features, "rendered": 0, "pictures": 4}
    found = report(Backbone(WORLD), layer="layer2", **options)["interference"]
    if found.values:
        assert (found.values["features"], found.values["of"]) == took_part
    else:
        assert "no picture is silent" in found.meaning


def test_few_features_are_not_alone(monkeypatch):
    """A feature of a wide layer was compared with those alone that were asked for with it."""
    options = {"features": [f"layer4.0.act2/input:{channel}@centre" for channel in (2, 5)]}
    options |= {"layer": "layer3", "rendered": 0, "pictures": 16}
    few = report(Backbone(WORLD), **options)["interference"].values
    monkeypatch.setattr(rivals, "MOST_RIVALS", 192)
    every = report(Backbone(WORLD), **options)["interference"].values
    assert (few["features"], every["features"], every["of"]) == (64, 192, 192)
    assert few["silent"] == pytest.approx(every["silent"], abs=0.1)


def test_a_direction_alone_has_no_rivals():
    found = report(Backbone(WORLD), features=["fc:[1,0,0,0,0,0,0,-1]"], rendered=0, pictures=4)
    assert found["interference"].meaning == (
        "Not measured, because it has no rivals: name other directions of the layer, too."
    )


def test_of_few_pictures_only_a_tenth_are_the_tensest():
    found = report(Backbone(WORLD), rendered=0, pictures=30)
    assert found["turning tense pictures on"].values["silent"] <= 3


def test_a_backbone_with_shuffled_weights_fails_loudly():
    backbone = Backbone(WORLD)
    wrong = shuffled(backbone, [name for name, _ in backbone.network.named_modules()])
    found = report(wrong)
    assert found["verdict"].check.startswith("do not believe it")
    assert len(found["selectivity"].warnings) == 2
    assert "nothing excites" in found["pictures"].warnings[0]
    assert found["truth: ranking by tension"].warnings
    assert found["interference"].meaning.endswith("no picture clearly expresses the feature.")


def test_a_method_that_flips_signs_at_random_fails_loudly():
    found = report(Backbone(WORLD), Flipped())
    assert found["verdict"].check.startswith("do not believe it")
    for name in (
        "completeness",
        "silencing inhibitory units",
        "silencing excitatory units",
        "turning tense pictures on",
        "stability over views",
        "re-attribution of + pictures",
        "pasting inhibitory patches",
        "pasting excitatory patches",
    ):
        assert found[name].warnings, name


def test_a_method_that_ignores_the_weights_is_flagged_by_randomised_layers():
    found = report(Backbone(WORLD), Activation(), rendered=0)
    assert found["randomised layers"].values["all"] == pytest.approx(1, abs=1e-4)
    assert found["randomised layers"].warnings == ("A shows the picture, not the weights",)
    right = report(Backbone(WORLD), rendered=0)
    assert right["randomised layers"].warnings == ()
    assert "complexity's rise" in right["randomised layers"].values
    assert found["randomised layers"].values["complexity's rise"] == pytest.approx(0, abs=1e-3)


def test_what_can_hardly_be_told_is_more_complex():
    values = complexity(torch.stack([torch.arange(100.0), torch.eye(100)[0], torch.zeros(100)]))
    expected = [math.log(100), -0.99 * math.log(0.99) - 0.01 * math.log(0.01), 0]
    assert values.tolist() == pytest.approx(expected)


def test_a_figure_that_could_not_be_measured_warns():
    assert finding("selectivity", {"spread": float("nan"), "alike": 0.0}).warnings
    assert not finding("selectivity", {"spread": 1.0, "alike": 0.0}).warnings


def test_the_figures_of_given_numbers():
    response = torch.tensor([-1.0, 2.0, -3.0, -2.0])
    columns = {
        "response": response,
        "silent": torch.zeros(4),
        "off": torch.zeros(4),
        "total": response * 2,
        "tension": torch.tensor([4.0, 3.0, 2.0, 1.0]),
        "inhibitory predicted": torch.tensor([1.0, 2.0, 3.0, 4.0]),
        "inhibitory real": torch.tensor([2.0, 4.0, 6.0, 8.0]),
        "random inhibitory real": torch.tensor([0.0, 5.0, 0.0, 3.0]),
        "excitatory predicted": torch.tensor([-1.0, -2.0, -3.0, -4.0]),
        "excitatory real": torch.tensor([1.0, 2.0, 3.0, 4.0]),
        "random excitatory real": torch.zeros(4),
        "view": torch.full((4,), 0.9),
        "other": torch.full((4,), 0.2),
    }
    found = {one.check: one for one in judge_pictures(columns, torch.tensor([0, 1, 2]))}
    size = response.square().mean().sqrt()
    assert found["completeness"].values["median error"] == pytest.approx(float(2 / size))
    assert found["completeness"].values["correlation"] == pytest.approx(1)
    inhibitory = found["silencing inhibitory units"]
    assert inhibitory.values == pytest.approx(
        {"ratio": 2, "slope": 2, "correlation": 1, "more than random": 0.75}
    )
    assert inhibitory.warnings == ()
    excitatory = found["silencing excitatory units"]
    assert excitatory.values["ratio"] == pytest.approx(-1)
    assert len(excitatory.warnings) == 2
    assert found["turning tense pictures on"].values == pytest.approx(
        {"silent": 2, "on": 1, "on by random units": 0, "margin": 1}
    )
    assert found["stability over views"].values["margin"] == pytest.approx(0.7)
    assert found["randomised layers"].meaning.startswith("Not measured, because no weights lie")
    (on,) = [of for of in judge_pictures(columns, torch.tensor([1])) if of.check.startswith("turn")]
    assert on.meaning == "Not measured, because none of the 1 tensest is silent (r ≤ 0)."
    assert on.values == {}


def test_the_index_is_judged_by_the_users_own_pictures():
    index = torch.tensor([0.1, 0.2, 0.3, 0.6, 0.7, 0.8])
    response = torch.tensor([3.0, 2.0, 2.0, -1.0, -1.0, -1.0])
    tensest, took_part = torch.tensor([3]), (64, 512)
    found = judge_interference(index, response, response > 1, tensest, took_part)
    assert found.values == pytest.approx(
        {
            "index": 0.6,
            "expressed": 0.2,
            "silent": 0.7,
            "contrast": 0.5,
            "place": 0.8,
            "features": 64,
            "of": 512,
        }
    )
    near = judge_interference(index, response, response > 1, torch.tensor([2]), took_part)
    assert near.values["place"] == pytest.approx(0.2)
    assert near.warnings == ()
    blind = judge_interference(index, response.flip(0), response > 1, tensest, took_part)
    assert "the index does not tell expressed from silent" in blind.warnings
    always = judge_interference(index, response + 2, response > 1, tensest, took_part)
    assert always.meaning == "Not measured, because no picture is silent (r ≤ 0)."


@pytest.mark.parametrize(
    ("check", "values"),
    [
        ("randomised layers", {"all": 0.99}),
        ("silencing inhibitory units", {"ratio": 1.0, "more than random": 0.5}),
        ("silencing excitatory units", {"ratio": 1.0, "more than random": 0.5}),
        ("stability over views", {"cosine": 0.1, "margin": 0.05}),
        ("stability over seeds", {"cosine": 0.1, "margin": 0.05}),
    ],
)
def test_one_decisive_check_is_enough(check, values):
    sound = [finding("selectivity", {"spread": 1.0, "alike": 0.0})] * 11
    assert Report({}, {"x": sound}).disbelieved == []
    page = Report({}, {"x": [*sound, finding(check, values)]})
    assert page.disbelieved == ["x"]
    assert page.verdicts["x"] == f"do not believe it: 1 of 12 checks warn, {check} decisively"
    figures = [finding("likeness to photographs", {"layer1": 0.1})] * 9  # of which none can warn
    assert Report({}, {"x": [*sound, *figures]}).verdicts["x"].endswith(": 0 of 11 checks warn")
    slight = Report({}, {"x": [*sound, finding("completeness", {"median error": 0.6})]})
    assert slight.verdicts["x"] == "believe it with care: 1 of 12 checks warn"
    # That no pasted patch was seen to do anything is no failed check, however many there are.
    unseen = [
        finding(f"pasting {which} patches", {"p": 0.3, "p of the opposite": 0.6})
        for which in ("inhibitory", "excitatory")
    ]
    page = Report({}, {"x": [*sound[:4], *unseen]})
    assert page.verdicts["x"] == "believe it with care: 2 of 6 checks warn"
    assert all(found.warnings and found.slight for found in unseen)
    contrary = finding("pasting inhibitory patches", {"p": 0.9, "p of the opposite": 0.01})
    assert contrary.decisive
    assert not contrary.slight


def test_what_was_not_measured_speaks_neither_for_nor_against():
    page = Report({}, {"x": [unmeasured("interference", "there is nothing")]})
    told = "no reason found not to believe it: 0 of 0 checks warn; 1 could not be measured"
    assert page.verdicts["x"] == told
    assert "| interference |  | Not measured, because there is nothing. |" in page.markdown()


def test_the_page_says_what_its_limits_were_set_on():
    page = Report({}, {"x": []})
    assert "What warns was set on the vetoed shapes" in page.markdown()
    assert json.loads(page.json())["limits"] in page.markdown()


# --- the command ---


QUIET_RUN = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


def run(*arguments: str) -> tuple[Path, dict[str, Any]]:
    """Validate; return the page and what its JSON says, which the exit code has to agree with."""
    try:
        main(["validate", *QUIET_RUN, *arguments])
        code: object = 0
    except SystemExit as stopped:
        code = stopped.code
    (page,) = Path("tb_logs").glob("*/version_0/validity.md")
    saved = json.loads(page.with_suffix(".json").read_text())
    loud = any(said.startswith("do not believe it") for said in saved["verdicts"].values())
    assert code == int(loud)
    return page, saved


SMALL = ["--model.pictures=12", "--model.rendered=1", "--model.steps=2", "--model.composites=16"]
WORLD_RUN = [
    *("--model=Validity", f"--model.backbone.name={WORLD}", "--model.features=['fc:3']"),
    *("--model.attribution_layer=layer4", "--model.rendered=0", "--model.pictures=48"),
    *("--data=VetoedShapesPictures", "--data.size=48", "--data.contents=random"),
]


def test_the_command_writes_the_page_and_prints_its_warnings(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page, saved = run(f"--config={CONFIGS / 'demo_validate.yaml'}", *SMALL, "--data.size=12")
    told, told_of = capsys.readouterr()
    text = page.read_text()
    assert set(saved["features"]) == {"fc:0", "fc:2", "fc:3", "fc:6"}
    assert saved["warnings"]
    for warning in saved["warnings"]:
        assert warning.startswith(("do not believe: ", "with care: "))
        assert warning in told_of.splitlines()
        assert warning in text
    for feature, verdict in saved["verdicts"].items():
        shown = f"{feature} ({saved['classes'][feature]})"
        assert f"{shown}: {verdict}" in told
        assert f"**{shown}: {verdict}**" in text
    assert str(page) in told
    assert list(page.parent.glob("events.out.tfevents.*"))


def test_the_configuration_for_own_pictures_runs_on_tokens(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    world = VetoedShapes(12, contents="random")
    Path("pictures").mkdir()
    for index in range(12):
        to_image(world[index]["picture"]).save(f"pictures/{index}.png")
    vit = ["--model.backbone.name=test_vit", "--model.backbone.weights=random"]
    layers = ["--model.features=['blocks.4.mlp.act/input:3@mean']"]
    layers += ["--model.attribution_layer=blocks.1"]
    _, saved = run(f"--config={CONFIGS / 'validate.yaml'}", *SMALL, *vit, *layers)
    checks = [found["check"] for found in saved["features"]["blocks.4.mlp.act/input:3@mean"]]
    assert "randomised layers" in checks
    assert "interference" in checks
    # Of the truth only what can be tried with any pictures.
    assert {check for check in checks if check.startswith("truth")} == {"truth by intervention"}


def test_what_is_sound_ends_well(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, saved = run(*WORLD_RUN)
    assert not saved["verdicts"]["fc:3"].startswith("do not believe it")


FLIPS = """
import torch
from mti_lightning.attribution.methods import ActGrad, Attribution

class FixedFlips(Attribution):
    def attribute(self, forward, create_graph):
        found = ActGrad().attribute(forward, create_graph)
        generator = torch.Generator().manual_seed(sum(found.shape[1:]))
        return found * (torch.randint(0, 2, found.shape[1:], generator=generator) * 2 - 1)
"""


def test_a_plugin_that_flips_signs_by_a_fixed_pattern_fails_loudly(site, monkeypatch):  # noqa: F811
    """No view, no seed and no picture gives it away: it always flips the same ones."""
    monkeypatch.chdir(site.folder)
    site.install("flips", "1", ATTRIBUTIONS, {"FixedFlips": "flips:FixedFlips"}, flips=FLIPS)
    _, saved = run(*WORLD_RUN, "--model.attribution=FixedFlips")
    assert saved["verdicts"]["fc:3"].startswith("do not believe it")
    assert saved["attribution"] == "FixedFlips"


def test_a_file_of_shuffled_weights_fails_loudly(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    state = {
        name: value.flatten()[torch.randperm(value.numel(), generator=generator)].view_as(value)
        for name, value in Backbone(WORLD).network.state_dict().items()
    }
    save_file(state, "shuffled.safetensors")
    _, saved = run(*WORLD_RUN, "--model.backbone.weights=shuffled.safetensors")
    assert saved["verdicts"]["fc:3"].startswith("do not believe it")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--model.pictures=1"], "pictures 1: give 2 or more"),
        (["--data.size=1"], "the data holds 1 picture; a report needs 2"),
        (["--model.attribution_layer=layr4"], "did you mean 'layer4'"),
        (["--trainer.devices=2"], "made on one: --trainer.devices 1"),
    ],
)
def test_what_cannot_work_is_said_before_any_work(tmp_path, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["validate", "--config", str(CONFIGS / "demo_validate.yaml"), *arguments])
    assert told in capsys.readouterr().err
    assert not Path("tb_logs").exists()


@pytest.mark.parametrize(
    ("command", "config", "told"),
    [
        ("validate", "demo_sweep.yaml", "Sweep is run by mti predict; mti validate runs Validity"),
        ("fit", "demo_validate.yaml", "Validity is run by mti validate; mti fit makes pictures"),
        ("predict", "demo_validate.yaml", "Validity is run by mti validate; mti predict runs"),
    ],
)
def test_each_command_names_the_one_that_would_do(
    tmp_path, monkeypatch, capsys, command, config, told
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main([command, "--config", str(CONFIGS / config)])
    assert told in capsys.readouterr().err


def test_the_backbone_is_left_as_it_was():
    backbone = Backbone(WORLD)
    before = {name: value.clone() for name, value in backbone.network.state_dict().items()}
    report(backbone, rendered=1, steps=2)
    for name, value in backbone.network.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in backbone.network.modules()
    )


def test_no_features_are_refused():
    with pytest.raises(InputError, match="name at least one"):
        Validity(Backbone("test_resnet", "random"), [], "layer2")


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["flipped", "shuffled"])
def test_what_is_wrong_fails_loudly_one_stage_earlier_too(wrong):
    backbone, method = Backbone(WORLD), Flipped() if wrong == "flipped" else None
    if wrong == "shuffled":
        backbone = shuffled(backbone, [name for name, _ in backbone.network.named_modules()])
    sound = report(Backbone(WORLD), layer="layer3", steps=96)
    assert "do not believe" not in sound["verdict"].check
    found = report(backbone, method, layer="layer3", steps=96)
    assert found["verdict"].check.startswith("do not believe it")


def test_what_is_not_there_is_not_held_against_a_feature():
    """No - picture, no picture that expresses the feature, no weights behind the layer."""
    none, some = torch.tensor([]), torch.tensor([0.9, 0.8])
    measured = {"cosine +": some, "purity +": some, "cosine -": none, "purity -": none}
    found = {one.check: one for one in judge_renderings(measured | {"same target": some})}
    assert found["re-attribution of - pictures"].meaning.endswith("no - picture could be made.")
    assert not any(one.warnings for one in found.values())
    silent, never = torch.tensor([-1.0, -2.0]), torch.zeros(2, dtype=torch.bool)
    found = judge_interference(some, silent, never, torch.tensor([0]), (2, 2))
    assert found.meaning.endswith("no picture clearly expresses the feature.")


def test_a_report_holds_each_feature_as_soon_as_it_is_done(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rendered = Validity._render
    seen = []

    def render(module, place, *given):
        seen.extend(json.loads(path.read_text()) for path in tmp_path.rglob("validity.json"))
        return rendered(module, place, *given)

    monkeypatch.setattr(Validity, "_render", render)
    module = Validity(
        Backbone(WORLD),
        ["fc:3", "fc:4"],
        "layer4",
        IntGrad(2),
        pictures=4,
        rendered=0,
        composites=0,
    )
    data = VetoedShapesPictures(4, contents="random", batch_size=4)
    logger = CSVLogger(tmp_path)
    trainer = Trainer(accelerator="cpu", **(QUIET | {"logger": logger}))
    trainer.validate(module, datamodule=data, verbose=False)
    (partial,) = seen
    assert list(partial["features"]) == ["fc:3"]
    assert partial["unfinished"] == "1 of 2 features so far"
    assert partial["attribution"] == "IntGrad (steps 2)"
    (page,) = tmp_path.rglob("validity.json")
    whole = json.loads(page.read_text())
    assert list(whole["features"]) == ["fc:3", "fc:4"]
    assert "unfinished" not in whole


def test_a_report_that_is_stopped_says_what_it_holds(monkeypatch):
    def render(module, place, *given):
        if place:
            raise Stopped(signal.SIGTERM)
        return []

    monkeypatch.setattr(Validity, "_render", render)
    with pytest.raises(Stopped) as stopped:
        report(Backbone(WORLD), ActGrad(), features=["fc:3", "fc:4"], pictures=4)
    assert stopped.value.__notes__ == ["the report of 1 of 2 features is kept"]
    told = _how_to_go_on("validate", ["--config", "a.yaml"], stopped.value)
    assert told == "the same command begins anew: mti validate --config a.yaml"
