"""`mti plugins`, `mti plugins check NAME` and `mti layers MODEL` at the terminal."""

import tomllib
from pathlib import Path
from zlib import crc32

import pytest

from mti_lightning import registry
from mti_lightning.cli import main, plugin_report
from mti_lightning.registry import ATTRIBUTIONS, BACKBONES, OBJECTIVES
from mti_lightning.testing import Check
from tests.test_registry import GOOD, MODEL, ActivationLayout, site  # noqa: F401  the fixture

FIT = """
import torch
from mti_lightning import Attribution

class Fit(Attribution):
    def attribute(self, forward, create_graph):
        (gradient,) = torch.autograd.grad(forward.responses.sum(), forward.activations)
        return (forward.activations * gradient).detach()
"""
UNFIT = FIT.replace("class Fit", "class Unfit").replace(".detach()", ".detach() ** 2")
TORN = """
from mti_lightning import Attribution

class Torn(Attribution):
    def __init__(self, path: str = "") -> None:
        raise ValueError("no bound_feature")

    def attribute(self, forward, create_graph):
        return forward.activations
"""
PICKY = FIT.replace(
    "class Fit(Attribution):",
    "class Picky(Attribution):\n    def __init__(self, path):\n        pass\n",
)


@pytest.fixture
def alone(site: ActivationLayout, monkeypatch: pytest.MonkeyPatch) -> ActivationLayout:  # noqa: F811
    """Hide what is installed."""
    found = registry.entry_points

    def ours(group: str):
        return [point for point in found(group=group) if point.dist.version == "7.7"]

    monkeypatch.setattr(registry, "entry_points", ours)
    return site


def run(capsys, *arguments: str) -> tuple[int, list[str], str]:
    code = 0
    try:
        main(list(arguments))
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    said = capsys.readouterr()
    return code, said.out.splitlines(), said.err


def test_a_table_of_what_is_installed(alone: ActivationLayout, capsys, monkeypatch) -> None:
    alone.install("mti-fit", "7.7", ATTRIBUTIONS, {"Fit": "fit_one:Fit"}, fit_one=FIT)
    alone.install("mti-unfit", "7.7", ATTRIBUTIONS, {"Unfit": "unfit:Unfit"}, unfit=UNFIT)
    alone.install("mti-bad", "7.7", ATTRIBUTIONS, {"Bad": "bad_one:Bad"}, bad_one="1 / 0")
    alone.install("mti-left", "7.7", ATTRIBUTIONS, {"Left": "left_one:Left"}, left_one="1 / 0")
    model = MODEL.format(name="tests_report_resnet")
    alone.install("mti-net", "7.7", BACKBONES, {"net": "net_one"}, net_one=model)
    monkeypatch.setenv("MTI_LIGHTNING_SKIP", "Left")
    code, lines, _ = run(capsys, "plugins")
    assert code == 0
    head, net, bad, fit, left, unfit = lines
    assert head.split() == ["name", "kind", "distribution", "offers", "checks"]
    assert net.split()[:6] == ["net", "model", "mti-net", "7.7", "tests_report_resnet", "failed"]
    assert "is registered without default_cfgs" in net
    assert bad.split()[:5] == ["Bad", "method", "mti-bad", "7.7", "-"]
    assert bad.endswith("  failed loads: ZeroDivisionError: division by zero")
    assert fit.split() == ["Fit", "method", "mti-fit", "7.7", "Fit", "ok", "(12)"]
    assert left.split() == ["Left", "method", "mti-left", "7.7", "-", "skipped"]
    assert "  failed signs on a linear head: over a linear head" in unfit


def test_the_seven_plugins_of_this_repository_are_listed(capsys, monkeypatch) -> None:
    monkeypatch.setattr(plugin_report, "run_checks", lambda _: [Check("loads", True)])
    code, lines, _ = run(capsys, "plugins")
    assert code == 0
    listed = {tuple(line.split()[:4]) for line in lines[1:]}
    files = sorted((Path(__file__).parents[2] / "plugins").glob("*/pyproject.toml"))
    assert len(files) == 7
    for file in files:
        project = tomllib.loads(file.read_text())["project"]
        for group, names in project["entry-points"].items():
            kind = {BACKBONES: "model", OBJECTIVES: "objective"}.get(group, "method")
            rows = {(name, kind, project["name"], project["version"]) for name in names}
            assert rows <= listed


def test_nothing_is_installed(alone: ActivationLayout, capsys) -> None:
    assert run(capsys, "plugins") == (0, ["no plugins are installed"], "")
    code, _, said = run(capsys, "plugins", "check", "Fit")
    assert (code, said) == (2, "mti: error: there is no plugin 'Fit'\n")


@pytest.mark.parametrize("name", ["Fit", "mti-fit"])
def test_a_plugin_that_passes(name: str, alone: ActivationLayout, capsys, monkeypatch) -> None:
    alone.install("mti-fit", "7.7", ATTRIBUTIONS, {"Fit": "fit_one:Fit"}, fit_one=FIT)
    if name != "Fit":  # once is enough
        told = ["loads", "completeness: not claimed", *map(str, range(10))]
        monkeypatch.setattr(plugin_report, "run_checks", lambda _: [Check(t, True) for t in told])
    code, lines, _ = run(capsys, "plugins", "check", name)
    assert code == 0
    assert lines[0] == "Fit (fit_one:Fit, from mti-fit 7.7)"
    assert lines[1] == "ok      loads"
    assert "ok      completeness: not claimed" in lines
    assert len(lines) == 13
    assert all(line.startswith("ok  ") for line in lines[1:])


@pytest.mark.parametrize(
    ("name", "source", "failed"),
    [
        ("Unfit", UNFIT, ["signs on a linear head"]),
        ("Bad", "1 / 0", ["loads: ZeroDivisionError: division by zero"]),
        ("Picky", PICKY, ["default arguments: Picky.__init__() missing 1 required"]),
        ("Torn", TORN, ["default arguments: no bound_feature; give each a default"]),
    ],
)
def test_a_plugin_that_fails(
    name: str, source: str, failed: list[str], alone: ActivationLayout, capsys
) -> None:
    module = f"{name.lower()}_one"
    plugin = {name: f"{module}:{name}"}
    alone.install("mti-other", "7.7", ATTRIBUTIONS, plugin, **{module: source})
    code, lines, _ = run(capsys, "plugins", "check", name)
    assert code == 1
    of_failed = [line.removeprefix("failed").strip() for line in lines if line.startswith("failed")]
    assert len(of_failed) == len(failed)
    assert all(line.startswith(cause) for line, cause in zip(of_failed, failed, strict=True))


def test_an_unknown_plugin(alone: ActivationLayout, capsys) -> None:
    alone.install("mti-good", "7.7", ATTRIBUTIONS, {"Constant": "good_one:Constant"}, good_one=GOOD)
    for given, would_do in (
        ("Constand", "; did you mean 'Constant'?"),
        ("mti-god", "; did you mean 'mti-good'?"),
        ("xyz", "; there are Constant"),
    ):
        code, lines, said = run(capsys, "plugins", "check", given)
        assert (code, lines) == (2, [])
        assert said == f"mti: error: there is no plugin {given!r}{would_do}\n"
    code, _, said = run(capsys, "plugins", "check")
    assert (code, said) == (
        2,
        "mti: error: mti plugins check: name a plugin; mti plugins lists them\n",
    )


def test_layers_of_a_model(capsys) -> None:
    code, lines, _ = run(capsys, "layers", "test_resnet")
    assert code == 0
    assert lines[0].split() == ["attribution_layer", "shape", "activation", "features"]
    assert lines[-1].split() == ["-", "1000", "channels", "fc:CHANNEL"]
    assert any(line.endswith("before      layer3.0.act2/input:CHANNEL@centre") for line in lines)
    code, _, said = run(capsys, "layers", "test_resnett")
    assert code == 2
    assert said.startswith(
        "mti: error: timm has no model 'test_resnett'; did you mean 'test_resnet'"
    )
    code, _, said = run(capsys, "layers", "test_resnet", "--weights", "lost.pth")
    assert (code, "weights 'lost.pth' for test_resnet is no file" in said) == (2, True)


def test_a_model_names_its_layers_of_interest(alone: ActivationLayout, capsys) -> None:
    for name, layer in (("tests_right", "layer2.0.act2/input"), ("tests_wrong", "layer2.0.relu")):
        source = MODEL.format(name=name) + f'LAYERS = {{"{name}": ("{layer}", "layer3")}}\n'
        source += f'default_cfgs = {{"{name}": {{"input_size": (3, 64, 64)}}}}\n'
        # timm looks for default_cfgs at registration.
        source = source.replace(f"register_model({name})\n", "") + f"register_model({name})\n"
        alone.install(
            f"mti-{name}", "7.7", BACKBONES, {name: f"{name}_one"}, **{f"{name}_one": source}
        )
    code, lines, _ = run(capsys, "layers", "tests_right")
    assert (code, lines[-1]) == (0, "of interest: layer2.0.act2/input, layer3")
    assert any(line.split()[0] == "layer2.0.act2/input" for line in lines)
    code, lines, _ = run(capsys, "plugins", "check", "tests_right")
    assert (code, lines[-2]) == (0, "ok      tests_right: layers")
    code, lines, _ = run(capsys, "plugins", "check", "tests_wrong")
    assert (code, lines[-1]) == (
        1,
        "failed  tests_wrong: layers: LAYERS names 'layer2.0.relu', which mti layers does not list",
    )


@pytest.mark.parametrize(
    ("layers", "cause"),
    [
        ("('layer2', 'layer3')", "is a tuple; give a dict such as {{'{0}': ['LAYER', ...]}}"),
        (
            "{{'{0}t': ['layer2']}}",
            "names '{0}t', which is no model registered there; did you mean '{0}'?",
        ),
        ("{{3: ['layer2']}}", "names 3, which is no model registered there; there are {0}"),
        (
            "{{'{0}': 'layer2'}}",
            "gives 'layer2' for {0}; give a list of names: {{'{0}': ['LAYER', ...]}}",
        ),
        ("{{'{0}': 2}}", "gives 2 for {0}; give a list of names: {{'{0}': ['LAYER', ...]}}"),
    ],
)
def test_layers_of_interest_that_are_none(
    layers: str, cause: str, alone: ActivationLayout, capsys
) -> None:
    model = f"tests_odd_layers_{crc32(layers.encode())}"
    source = f'default_cfgs = {{"{model}": {{"input_size": (3, 64, 64)}}}}\n'
    source += MODEL.format(name=model) + f"LAYERS = {layers.format(model)}\n"
    alone.install("mti-odd", "7.7", BACKBONES, {"odd": model}, **{model: source})
    cause = f"LAYERS of {model} (mti-odd 7.7) {cause.format(model)}"
    code, lines, said = run(capsys, "layers", model)
    assert (code, said) == (2, f"mti: error: {cause}\n")
    assert lines[0].startswith("attribution_layer")  # what can be told is told
    code, lines, _ = run(capsys, "plugins", "check", "odd")
    assert (code, lines[-1]) == (1, f"failed  {model}: layers: {cause}")
