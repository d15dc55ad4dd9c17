"""The wheel, as someone has it who installed it and has no clone."""

import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
CONFIGS = {path.name: path.read_bytes() for path in (ROOT / "configs").glob("*.yaml")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir"]
    subprocess.run([*pip, *build, str(folder), str(ROOT)], check=True)
    (made,) = folder.glob("*.whl")
    install = ["install", "--no-deps", "--no-index", "--target", str(folder / "site"), str(made)]
    subprocess.run([*pip, *install], check=True)
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
