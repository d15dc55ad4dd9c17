"""The wheel, as someone has it who installed it and has no clone."""

import os
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
CONFIGS = {path.name: path.read_bytes() for path in (ROOT / "configs").glob("*.yaml")}
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
INSTALL = ["install", "--no-deps", "--no-index"]


def build(folder: Path, project: Path) -> Path:
    """Build a project's wheel into an empty folder."""
    how = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir"]
    subprocess.run([*PIP, *how, str(folder), str(project)], check=True)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    made = build(tmp_path_factory.mktemp("wheel"), ROOT)
    subprocess.run([*PIP, *INSTALL, "--target", str(made.parent / "site"), str(made)], check=True)
    return made


@pytest.fixture
def mti(wheel: Path, tmp_path: Path):
    """Run `mti` of the wheel in an empty folder."""
    site = wheel.parent / "site"
    places = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": places}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, str(site / "bin/mti"), *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.slow
def test_the_wheel_holds_the_configurations_and_nothing_beside_the_package(wheel):
    with ZipFile(wheel) as archive:
        names = archive.namelist()
        shipped = {
            Path(name).name: archive.read(name)
            for name in names
            if name.startswith("mti_lightning/configs/")
        }
    assert shipped == CONFIGS
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"mti_lightning"}


@pytest.mark.slow
def test_configurations_are_listed_and_printed(mti):
    listed = {line.split()[0] for line in mti("configs").splitlines()}
    assert {f"{name}.yaml" for name in listed} == CONFIGS.keys()
    assert mti("configs", "sweep").encode() == CONFIGS["sweep.yaml"]


@pytest.mark.slow
def test_a_shipped_configuration_runs_by_its_name_in_an_empty_folder(mti, tmp_path):
    quick = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--model.steps_per_epoch=1"]
    quiet = "--trainer.enable_progress_bar=false"
    assert mti("fit", "--config", "demo_mti", *quick, quiet) == "tb_logs/demo_mti/version_0\n"
    results = tmp_path / "tb_logs/demo_mti/version_0"
    assert len((results / "results.csv").read_text().splitlines()) == 1 + 8
    assert "class_path: mti_lightning.MaximallyTense\n" in (results / "config.yaml").read_text()
    (tmp_path / "demo_mti").write_text("name: mine\n")  # a file of that name wins
    again = ["--config", str(results / "config.yaml"), "--config", "demo_mti"]
    assert mti("fit", *again) == "tb_logs/mine/version_0\n"


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory) -> Path:
    """The programs of an environment with two wheels and what they need, and nothing of a clone."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/*/site-packages")
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if not package.name.startswith(("mti", "_editable", "__")) and package.suffix != ".pth":
            (site / package.name).symlink_to(package)
    plugin = ROOT / "plugins/mti-efficientnet-lite"
    wheels = [str(wheel), str(build(tmp_path_factory.mktemp("plugin"), plugin))]
    into = ["--python", str(folder / "bin/python")]
    subprocess.run([*PIP, *into, *INSTALL, *wheels], check=True)
    return folder / "bin"


@pytest.mark.slow
def test_a_picture_is_explained_in_an_empty_environment_and_folder(environment, tmp_path):
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=plain, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run(str(environment / "python"), "-c", "import mti_lightning as m; print(m.__file__)")
    assert Path(where).is_relative_to(environment.parent)
    spec = find_spec("skimage")
    assert spec
    assert spec.origin
    cat = str(Path(spec.origin).with_name("data") / "chelsea.png")
    options = ["--model=efficientnet_lite0_in1k", "--classes=1", "--steps=2", "--accelerator=cpu"]
    told = run(str(environment / "mti"), "explain", cat, *options)
    assert "(tiger cat)" in told
    assert {path.name for path in tmp_path.iterdir()} == {"explain.png", "explain.yaml"}
