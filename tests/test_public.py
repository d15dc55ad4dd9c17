"""What is public: imported when asked for, and recorded by its public path."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

import mti_lightning
import mti_lightning.rendering
from mti_lightning import Attribution, ImageParameters, PictureData
from mti_lightning.registry import current_path, public_path
from mti_lightning.testing import Check

CONFIGS = Path(__file__).parents[1] / "configs"
PLUGINS = Path(__file__).parents[1] / "plugins"
CLASSES = [name for name in mti_lightning.__all__ if isinstance(getattr(mti_lightning, name), type)]


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_public_names_are_sorted_and_there():
    assert mti_lightning.__all__ == sorted(mti_lightning.__all__)
    assert {*mti_lightning.__all__, "__version__"} <= {*dir(mti_lightning)}
    with pytest.raises(AttributeError, match="no attribute 'Sweeep'"):
        mti_lightning.Sweeep  # noqa: B018


def test_no_module_hides_a_public_name():
    assert callable(mti_lightning.render)
    assert not isinstance(mti_lightning.render, type(mti_lightning))


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_is_recorded_by_its_public_path(name):
    cls = getattr(mti_lightning, name)
    assert public_path(cls) == f"mti_lightning.{name}"
    assert current_path(f"{cls.__module__}.{name}") == f"mti_lightning.{name}"
    assert current_path(f"mti_lightning.somewhere.{name}") == f"mti_lightning.{name}"


@pytest.mark.parametrize(
    ("base", "name"),
    [
        (Attribution, "ActGrad"),
        (ImageParameters, "FourierPhase"),
        (ImageParameters, "Pixels"),
        (ImageParameters, "Pyramid"),
        (PictureData, "VetoedShapesPictures"),
    ],
)
def test_a_configuration_records_the_same_path(base, name):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, "thing")
    given = parser.parse_args([f"--thing={name}", *(["--thing.size=1"] if "Pic" in name else [])])
    assert given.thing.class_path == f"mti_lightning.{name}"
    assert isinstance(parser.instantiate(given).thing, getattr(mti_lightning, name))


def test_a_class_that_is_not_public_is_recorded_by_where_it_is():
    class Local:
        pass

    assert public_path(yaml.SafeLoader) == "yaml.SafeLoader"
    assert public_path(Check) == "mti_lightning.testing.Check"
    assert public_path(Local).startswith("tests.test_public.test_a_class_that_is_not")
    for path in ("torch.optim.Adam", "mti_lightning.nowhere.Unknown", "mti_captum.ActGrad"):
        assert current_path(path) == path


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_what_a_shipped_configuration_names_is_public(path):
    named = re.findall(r"class_path: (\S+)", path.read_text())
    ours = [name for name in named if not name.startswith(("torch.", "lightning."))]
    assert {*ours} <= {*mti_lightning.__all__}


def test_pytorch_is_imported_when_it_is_needed_and_our_own_backbone_is_there():
    told = python(
        "import sys, mti_lightning.cli\n"
        "heavy = ('torch', 'timm', 'lightning', 'matplotlib', 'zarr', 'numpy')\n"
        "assert not {*heavy} & {*sys.modules}, {*heavy} & {*sys.modules}\n"
        "from mti_lightning.backbone.network import Backbone\n"
        "assert 'mti_lightning.public' not in sys.modules\n"
        "print(Backbone('vetoed_shapes_resnet').name)"
    )
    assert told == "vetoed_shapes_resnet"


def test_plugins_need_nothing_but_public_names():
    inner = re.compile(r"^\s*(?:from|import) (mti_lightning\.\S+)", re.MULTILINE)
    for file in sorted(PLUGINS.glob("*/mti_*/*.py")):
        assert {*inner.findall(file.read_text())} <= {"mti_lightning.testing"}, file
