"""Plugins: real distributions in a temporary folder; good ones load, all broken ones are named."""

import importlib
import sys
from pathlib import Path

import pytest
import timm

from mti_lightning.attribution import ActGrad, Attribution
from mti_lightning.errors import InputError
from mti_lightning.registry import ATTRIBUTIONS, BACKBONES, load_plugins

GOOD = """
from mti_lightning.attribution import Attribution

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


class Site:
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
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield Site(tmp_path)
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def message() -> str:
    with pytest.raises(InputError) as error:
        load_plugins(Attribution)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_good_plugins_are_imported(site: Site) -> None:
    site.install(
        "kind-plugin", "1.2", ATTRIBUTIONS, {"constant": "kind_one:Constant"}, kind_one=GOOD
    )
    model = MODEL.format(name="tests_kind_resnet")
    site.install("kind-model", "3", BACKBONES, {"kind": "kind_model"}, kind_model=model)
    loaded = load_plugins(Attribution)
    assert "constant" in loaded[ATTRIBUTIONS]
    assert "kind" in loaded[BACKBONES]
    assert issubclass(sys.modules["kind_one"].Constant, Attribution)
    assert timm.create_model("tests_kind_resnet").num_classes == 5
    assert load_plugins(Attribution) == loaded  # again, in the same process


BROKEN = {  # module, what the entry point names in it, what is said of it
    "import error": (
        "import not_there_at_all",
        "x",
        "ModuleNotFoundError: No module named 'not_there_at_all'",
    ),
    "missing name": ("y = 1", "x", "AttributeError: module 'broken' has no attribute 'x'"),
    "error of its own": ("raise OSError('no\\n  licence')", "x", "OSError: no licence"),
    "no class": ("x = 5", "x", "5 is no subclass of Attribution"),
    "wrong base": (
        "class x: pass",
        "x",
        "<class 'broken.x'> is no subclass of Attribution",
    ),
    "abstract": (
        "from mti_lightning.attribution import Attribution\nclass x(Attribution): pass",
        "x",
        "x does not define attribute",
    ),
}


@pytest.mark.parametrize(("source", "name", "cause"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_is_named(site: Site, source: str, name: str, cause: str) -> None:
    plugins = {"curious": f"broken:{name}"}
    site.install("bad-plugin", "0.4.2", ATTRIBUTIONS, plugins, broken=source)
    assert message() == (
        "broken plugins, to be repaired or uninstalled: "
        f"curious (broken:{name}, from bad-plugin 0.4.2): {cause}"
    )


def test_all_broken_plugins_are_named_at_once(site: Site) -> None:
    site.install("good", "1", ATTRIBUTIONS, {"good": "good_one:Constant"}, good_one=GOOD)
    site.install("bad-b", "2", ATTRIBUTIONS, {"b": "bad_b:x"}, bad_b="x = 1")
    site.install("bad-a", "1", ATTRIBUTIONS, {"a": "bad_a:x"}, bad_a="1 / 0")
    site.install("bad-m", "3", BACKBONES, {"m": "bad_m"}, bad_m="import nowhere_to_be_found")
    said = message()
    assert "a (bad_a:x, from bad-a 1): ZeroDivisionError: division by zero" in said
    assert "b (bad_b:x, from bad-b 2): 1 is no subclass of Attribution" in said
    assert "m (bad_m, from bad-m 3): ModuleNotFoundError: No module named 'nowhere_to_be" in said
    assert said.count("from ") == 3
    assert "good" not in said


def test_one_name_from_two_distributions(site: Site) -> None:
    site.install("first", "1", ATTRIBUTIONS, {"same": "first_one:Constant"}, first_one=GOOD)
    site.install("second", "2", ATTRIBUTIONS, {"same": "second_one:Constant"}, second_one=GOOD)
    said = message()
    distributions = {"first": "first 1", "second": "second 2"}
    assert all(origin in said for origin in distributions.values())
    assert said.count("same (") == 1
    assert "has a plugin of this name" in said


def test_the_name_of_a_model_that_exists(site: Site) -> None:
    existing = timm.create_model("test_resnet")
    source = MODEL.format(name="test_resnet")
    site.install("thief", "1", BACKBONES, {"mine": "thief_model"}, thief_model=source)
    assert "mine (thief_model, from thief 1): UserWarning: Overwriting test_resnet in" in message()
    assert type(timm.create_model("test_resnet")) is type(existing)


def test_the_package_itself_is_whole() -> None:
    assert all(isinstance(names, list) for names in load_plugins(Attribution).values())
    assert issubclass(ActGrad, Attribution)
