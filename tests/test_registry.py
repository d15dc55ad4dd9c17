"""Plugins: real distributions in a temporary folder; good ones load, all broken ones are named."""

import importlib
import logging
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest
import timm

from mti_lightning.attribution.methods import ActGrad, Attribution
from mti_lightning.cli import main
from mti_lightning.errors import InputError
from mti_lightning.registry import ATTRIBUTIONS, BACKBONES, find_plugins, load_plugins

GOOD = """
from mti_lightning.attribution.methods import Attribution

class Constant(Attribution):
    differentiable = True

    def attribute(self, forward, create_graph):
        return forward.activations
"""
MODEL = """
from timm.models import register_model
from timm.models.resnet import BasicBlock, ResNet

def {name}(pretrained=False, **kwargs):
    return ResNet(BasicBlock, (1, 1, 1, 1), num_classes=5)

register_model({name})
"""


class ActivationLayout:
    """A folder on `sys.path` into which distributions are installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(
        self, distribution: str, version: str, group: str, plugins: dict[str, str], **modules: str
    ) -> None:
        for name, source in modules.items():
            (self.folder / f"{name}.py").write_text(source)
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        )
        lines = [f"{name} = {value}\n" for name, value in plugins.items()]
        (info / "entry_points.txt").write_text(f"[{group}]\n" + "".join(lines))
        importlib.invalidate_caches()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ActivationLayout:
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield ActivationLayout(tmp_path)
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def message() -> str:
    with pytest.raises(InputError) as error:
        load_plugins(Attribution)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_good_plugins_are_imported(site: ActivationLayout) -> None:
    site.install(
        "kind-plugin", "1.2", ATTRIBUTIONS, {"Constant": "kind_one:Constant"}, kind_one=GOOD
    )
    model = MODEL.format(name="tests_kind_resnet")
    site.install("kind-model", "3", BACKBONES, {"kind": "kind_model"}, kind_model=model)
    loaded = load_plugins(Attribution)
    assert "Constant" in loaded[ATTRIBUTIONS]
    assert "kind" in loaded[BACKBONES]
    assert issubclass(sys.modules["kind_one"].Constant, Attribution)
    assert timm.create_model("tests_kind_resnet").num_classes == 5
    assert load_plugins(Attribution) == loaded  # again, in the same process


METHOD = """
from mti_lightning.attribution.methods import Attribution
class Curious(Attribution):
    def attribute(self, forward, create_graph):
        return forward.activations
"""
BROKEN = {  # group, what the entry point is and names, the module's source, what is said of it
    "import error": (
        ATTRIBUTIONS,
        "Curious = broken:Curious",
        "import not_there_at_all",
        "ModuleNotFoundError: No module named 'not_there_at_all'",
    ),
    "missing class": (
        ATTRIBUTIONS,
        "Curious = broken:Curious",
        "y = 1",
        "AttributeError: module 'broken' has no attribute 'Curious'",
    ),
    "an error of its own": (
        ATTRIBUTIONS,
        "Curious = broken:Curious",
        "raise OSError('no\\n  licence')",
        "OSError: no licence",
    ),
    "an exit": (
        ATTRIBUTIONS,
        "Curious = broken:Curious",
        "import sys\nsys.exit('no GPU')",
        "SystemExit: no GPU",
    ),
    "a private module": (
        ATTRIBUTIONS,
        "Curious = _broken:Curious",
        METHOD,
        "configurations cannot name _broken.Curious; put it in a public module",
    ),
    "a syntax error": (
        ATTRIBUTIONS,
        "Curious = broken:Curious",
        "class Curious",
        "SyntaxError: expected ':' (broken.py, line 1)",
    ),
    "no class": (
        ATTRIBUTIONS,
        "Curious = broken:Curious",
        "Curious = 5",
        "5 is no subclass of Attribution",
    ),
    "wrong base class": (
        ATTRIBUTIONS,
        "Curious = broken:Curious",
        "class Curious: pass",
        "<class 'broken.Curious'> is no subclass of Attribution",
    ),
    "abstract class": (
        ATTRIBUTIONS,
        "Curious = broken:Curious",
        "from mti_lightning import Attribution\nclass Curious(Attribution): pass",
        "Curious does not define attribute",
    ),
    "mismatched name": (
        ATTRIBUTIONS,
        "curious = broken:Curious",
        METHOD,
        "its class is called Curious; entry point and class need the same name",
    ),
    "a name of this package": (
        ATTRIBUTIONS,
        "ActGrad = broken:ActGrad",
        METHOD.replace("Curious", "ActGrad"),
        "mti_lightning itself has a class ActGrad; call it something else",
    ),
    "a class in a function": (
        ATTRIBUTIONS,
        "Curious = broken:Curious",
        "def make():\n" + METHOD.replace("\n", "\n    ") + "return Curious\nCurious = make()",
        "configurations cannot name broken.make.<locals>.Curious; put it in a public module",
    ),
    "a model's name that timm has": (
        BACKBONES,
        "curious = broken",
        MODEL.format(name="test_resnet"),
        "timm has a model 'test_resnet' already; register yours by another name",
    ),
    "no model": (
        BACKBONES,
        "curious = broken",
        "from timm.models import register_model",
        "importing broken registers no model with timm",
    ),
    "an import error of a model": (
        BACKBONES,
        "curious = broken",
        "import nowhere_to_be_found",
        "ModuleNotFoundError: No module named 'nowhere_to_be_found'",
    ),
}
HEAD = "broken plugins, to be repaired, uninstalled or left out by MTI_LIGHTNING_SKIP=NAME,...: "


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_named(site: ActivationLayout, case: str) -> None:
    group, entry_point, source, cause = BROKEN[case]
    name, value = entry_point.split(" = ")
    module = value.partition(":")[0]
    site.install("bad-plugin", "0.4.2", group, {name: value}, **{module: source})
    assert message() == f"{HEAD}{name} ({value}, from bad-plugin 0.4.2): {cause}"


def test_all_broken_plugins_are_named_at_once(site: ActivationLayout) -> None:
    site.install("good", "1", ATTRIBUTIONS, {"Constant": "good_one:Constant"}, good_one=GOOD)
    site.install("bad-b", "2", ATTRIBUTIONS, {"b": "bad_b:x"}, bad_b="x = 1")
    site.install("bad-a", "1", ATTRIBUTIONS, {"a": "bad_a:x"}, bad_a="1 / 0")
    site.install("bad-m", "3", BACKBONES, {"m": "bad_m"}, bad_m="import nowhere_to_be_found")
    said = message()
    assert "a (bad_a:x, from bad-a 1): ZeroDivisionError: division by zero" in said
    assert "b (bad_b:x, from bad-b 2): 1 is no subclass of Attribution" in said
    assert "m (bad_m, from bad-m 3): ModuleNotFoundError: No module named 'nowhere_to_be" in said
    assert said.count("from ") == 3
    assert "good" not in said


def test_one_name_from_two_distributions(site: ActivationLayout) -> None:
    for place in ("first", "second"):
        plugin = {"Constant": f"{place}_one:Constant"}
        site.install(place, "1", ATTRIBUTIONS, plugin, **{f"{place}_one": GOOD})
    assert message() in {
        f"{HEAD}Constant ({one}_one:Constant, from {one} 1): {other} 1 has a plugin of this name"
        for one, other in (("first", "second"), ("second", "first"))
    }


def test_a_taken_model_stays_what_it_was(site: ActivationLayout) -> None:
    existing = timm.create_model("test_resnet")
    source = MODEL.format(name="test_resnet")
    site.install("thief", "1", BACKBONES, {"mine": "thief_model"}, thief_model=source)
    assert "timm has a model 'test_resnet' already" in message()
    assert type(timm.create_model("test_resnet")) is type(existing)
    assert timm.create_model("test_resnet").num_classes == 1000


def test_skipped_plugins_are_not_loaded_and_the_log_says_so(
    site: ActivationLayout, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    site.install("bad-a", "1", ATTRIBUTIONS, {"a": "bad_a:x"}, bad_a="1 / 0")
    site.install("bad-b", "2", BACKBONES, {"b": "bad_b"}, bad_b="1 / 0")
    site.install("good", "1", ATTRIBUTIONS, {"Constant": "good_one:Constant"}, good_one=GOOD)
    monkeypatch.setenv("MTI_LIGHTNING_SKIP", "a")
    assert message() == f"{HEAD}b (bad_b, from bad-b 2): ZeroDivisionError: division by zero"
    monkeypatch.setenv("MTI_LIGHTNING_SKIP", "b, a")
    with caplog.at_level(logging.INFO, "mti_lightning"):
        loaded = load_plugins(Attribution)
    assert "Constant" in loaded[ATTRIBUTIONS]
    assert "a" not in loaded[ATTRIBUTIONS]
    assert caplog.messages == [
        "plugin b (bad_b, from bad-b 2) is left out by MTI_LIGHTNING_SKIP",
        "plugin a (bad_a:x, from bad-a 1) is left out by MTI_LIGHTNING_SKIP",
    ]
    monkeypatch.setenv("MTI_LIGHTNING_SKIP", "a,b,Constnt")  # unlike what may be installed
    assert message() == (
        "MTI_LIGHTNING_SKIP: there is no plugin 'Constnt'; did you mean 'Constant'?"
    )


def test_a_wrapper_of_another_package_s_model(site: ActivationLayout) -> None:
    model = MODEL.format(name="tests_wrapped_resnet")
    site.install("wrap", "1", BACKBONES, {"wrapped": "wrap_one"}, wrap_one="import wrapped_one")
    (site.folder / "wrapped_one.py").write_text(model)
    for _ in range(2):  # the second time in a process nothing is imported
        (found,) = [one for one in find_plugins(Attribution) if one.name == "wrapped"]
        assert (found.cause, found.offers) == ("", ("tests_wrapped_resnet",))


def test_a_wrapper_that_was_imported_before_is_not_called_broken(site: ActivationLayout) -> None:
    model = MODEL.format(name="tests_early_resnet")
    site.install("early", "1", BACKBONES, {"early": "early_one"}, early_one="import early_net")
    (site.folder / "early_net.py").write_text(model)
    importlib.import_module("early_one")
    assert "early" in load_plugins(Attribution)[BACKBONES]


def test_a_wrapper_of_a_model_whose_name_is_taken(site: ActivationLayout) -> None:
    (site.folder / "taken_net.py").write_text(MODEL.format(name="test_resnet"))
    site.install("taken", "1", BACKBONES, {"taken": "taken_one"}, taken_one="import taken_net")
    assert message() == (
        f"{HEAD}taken (taken_one, from taken 1): timm has a model 'test_resnet' already; register "
        "yours by another name"
    )


def test_a_skipped_model_does_not_come_in_by_another_name(
    site: ActivationLayout, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = MODEL.format(name="tests_twofold_resnet")
    two = {"first": "twofold_one", "second": "twofold_one"}
    site.install("twofold", "1", BACKBONES, two, twofold_one=model + GOOD)
    site.install("its-method", "2", ATTRIBUTIONS, {"Constant": "twofold_one:Constant"})
    monkeypatch.setenv("MTI_LIGHTNING_SKIP", "first")
    with caplog.at_level(logging.INFO, "mti_lightning"):
        loaded = load_plugins(Attribution)
    assert not {"first", "second", "Constant"} & {
        name for found in loaded.values() for name in found
    }
    assert not timm.is_model("tests_twofold_resnet")
    also = "is left out by MTI_LIGHTNING_SKIP=first, which is of the same module"
    assert caplog.messages == [
        "plugin first (twofold_one, from twofold 1) is left out by MTI_LIGHTNING_SKIP",
        f"plugin second (twofold_one, from twofold 1) {also}",
        f"plugin Constant (twofold_one:Constant, from its-method 2) {also}",
    ]


def test_a_skipped_model_that_something_else_imports_is_told_of(
    site: ActivationLayout, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = MODEL.format(name="tests_backdoor_resnet")
    site.install("front", "1", BACKBONES, {"front": "front_one"}, front_one=model)
    site.install("back", "1", BACKBONES, {"back": "back_one"}, back_one="import front_one")
    monkeypatch.setenv("MTI_LIGHTNING_SKIP", "front")
    with caplog.at_level(logging.INFO, "mti_lightning"):
        load_plugins(Attribution)
    (said,) = caplog.messages
    assert said == (
        "plugin front (front_one, from front 1) is left out by MTI_LIGHTNING_SKIP, but something "
        "else imported its module: its models are there"
    )


RUN = [
    *("fit", "--model=MaximallyTense", "--model.backbone.name=test_resnet"),
    *("--model.backbone.weights=random", "--model.features=['fc:3']"),
    *("--model.attribution_layer=layer2", "--model.steps_per_epoch=1", "--trainer.max_epochs=1"),
    *("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"),
]


@pytest.mark.parametrize(
    ("extra", "cause"),
    [
        (["--model.attribution=Lost"], "there is no class 'Lost'"),
        (["--model.attribution=lost_one.Lost"], "model.attribution: division by zero"),
        (["--model.attribution=found_one.Constant"], "found_one.Constant is a plugin that"),
        (["--model.backbone.name=lost_resnet"], "timm has no model 'lost_resnet'"),
    ],
)
def test_a_configuration_that_names_a_skipped_one_is_refused(
    extra: list[str],
    cause: str,
    site: ActivationLayout,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(site.folder)
    site.install("lost", "1", ATTRIBUTIONS, {"Lost": "lost_one:Lost"}, lost_one="1 / 0")
    site.install("found", "1", ATTRIBUTIONS, {"Constant": "found_one:Constant"}, found_one=GOOD)
    monkeypatch.setenv("MTI_LIGHTNING_SKIP", "Lost,Constant")
    with pytest.raises(SystemExit) as stopped:
        main([*RUN, *extra])
    assert stopped.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert cause in said
    assert "MTI_LIGHTNING_SKIP leaves out" in said


def test_a_run_goes_on_without_a_broken_plugin(
    site: ActivationLayout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(site.folder)
    site.install("lost", "1", ATTRIBUTIONS, {"Lost": "lost_one:Lost"}, lost_one="1 / 0")
    with pytest.raises(SystemExit):
        main(RUN)
    assert "Lost (lost_one:Lost, from lost 1): ZeroDivisionError" in capsys.readouterr().err
    monkeypatch.setenv("MTI_LIGHTNING_SKIP", "Lost")
    main(RUN)
    assert (site.folder / "tb_logs/run/version_0/results.csv").is_file()


SUMMED = GOOD.replace("forward.activations", "forward.activations.sum()")
SUMMED = SUMMED.replace("Constant", "Summed")  # other tests' classes live on


@pytest.mark.parametrize("command", ["fit", "predict", "validate"])
def test_a_method_that_gives_a_wrong_shape_is_named_before_any_work(
    command: str,
    site: ActivationLayout,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(site.folder)
    site.install("odd-shapes", "0.4", ATTRIBUTIONS, {"Summed": "summed:Summed"}, summed=SUMMED)
    model = {"fit": "MaximallyTense", "predict": "Sweep", "validate": "Validity"}[command]
    with pytest.raises(SystemExit) as stopped:
        main(
            [
                *(command, f"--model={model}", "--model.backbone.name=vetoed_shapes_resnet"),
                *("--model.features=['fc:3']", "--model.attribution_layer=layer4"),
                *("--model.attribution=Summed", "--data=VetoedShapesPictures", "--data.size=1"),
                "--trainer.accelerator=cpu",
            ]
        )
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "mti: error: attribution method Summed of odd-shapes 0.4 gave () for activations of "
        "shape (1, 192, 6, 6)"
    )
    assert not Path("tb_logs").exists()


def installed() -> list[EntryPoint]:
    return [*entry_points(group=BACKBONES), *entry_points(group=ATTRIBUTIONS)]


NETWORKS = ("efficientnet_lite", "inceptionv1", "with_dictionary")
PLUGINS = {  # a run with each that is installed
    "efficientnet_lite": [
        "--model.backbone.name=efficientnet_lite0_in1k",
        "--model.backbone.input_size=[64,64]",
        "--model.features=['classifier:3']",
        "--model.attribution_layer=blocks.6",
    ],
    "inceptionv1": [
        "--model.backbone.name=inceptionv1_tf",
        "--model.backbone.input_size=[64,64]",
        "--model.features=['mixed3b_pre_relu:3@mean']",
        "--model.attribution_layer=mixed3a",
    ],
    "with_dictionary": [
        "--model.backbone.name=with_dictionary",
        "--model.features=['fc:3']",
        "--model.attribution_layer=layer3",
    ],
    "AtomGradient": ["--model.attribution=AtomGradient"],
    "Conductance": ["--model.attribution=Conductance", "--model.attribution.steps=4"],
    "DeepLift": ["--model.attribution=DeepLift"],
    "GradientShap": ["--model.attribution=GradientShap", "--model.attribution.samples=2"],
    "GradientXActivation": ["--model.attribution=GradientXActivation"],
    "IntegratedGradients": [
        "--model.attribution=IntegratedGradients",
        *("--model.attribution.steps=4", "--model.attribution.most=0"),
    ],
    "InternalInfluence": ["--model.attribution=InternalInfluence", "--model.attribution.steps=4"],
    "ModifiedGradient": ["--model.attribution=ModifiedGradient"],
    "Relevance": ["--model.attribution=Relevance"],
    "SmoothGrad": ["--model.attribution=SmoothGrad", "--model.attribution.samples=2"],
}


@pytest.mark.filterwarnings("ignore:.* the attribution is off the response")  # of few steps
@pytest.mark.parametrize("name", PLUGINS)
def test_short_names_work_and_the_saved_configuration_replays(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name not in {point.name for point in installed()}:
        pytest.skip(f"{name} is not installed")
    monkeypatch.chdir(tmp_path)
    shapes = [
        *("--model=SignedInversion", "--model.backbone.name=vetoed_shapes_resnet"),
        *("--model.backbone.weights=pretrained", "--model.features=['fc:3']"),
        *("--model.attribution_layer=layer3", "--data=VetoedShapesPictures", "--data.size=1"),
    ]
    main([*RUN, *([] if name in NETWORKS else shapes), *PLUGINS[name]])
    first = Path("tb_logs/run/version_0")
    main(["fit", "--config", str(first / "config.yaml"), "--name=again"])
    again = Path("tb_logs/again/version_0")
    assert (first / "results.csv").read_text() == (again / "results.csv").read_text()
    assert len((first / "results.csv").read_text().splitlines()) > 1
    if name not in NETWORKS:
        assert f".{name}\n" in (first / "config.yaml").read_text()  # the full path


def test_every_installed_plugin_is_tried() -> None:
    ours = [point for point in installed() if str(point.module).startswith("mti_")]
    assert {point.name for point in ours} <= PLUGINS.keys()


def test_the_package_itself_is_whole() -> None:
    assert all(isinstance(names, list) for names in load_plugins(Attribution).values())
    assert issubclass(ActGrad, Attribution)
