"""docs/plugins.md, done as it stands in an empty folder: its files, its commands, its tests."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.test_registry import ActivationLayout

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs/plugins.md").read_text()
FILES = {
    "mti-smoothgrad": ("pyproject.toml", "mti_smoothgrad/__init__.py", "tests/test_smoothgrad.py"),
    "mti-plainnet": ("pyproject.toml", "mti_plainnet/__init__.py", "tests/test_plainnet.py"),
}
# In a process of its own: the plugin that the guide builds may be there already.
RUN = """
import shlex, sys
from mti_lightning.cli import main
for line in sys.argv[1:]:
    print("$", line)
    main(shlex.split(line))
import mti_plainnet, mti_smoothgrad
print(mti_plainnet.__file__, mti_smoothgrad.__file__, sep="\\n")
"""


def python(folder: Path, *arguments: str) -> list[str]:
    paths = [folder / "site", *(folder / name for name in FILES), ROOT]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run(  # noqa: PLW1510  what it said is told below
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder in which everything was done but what `mti` and `pytest` do; their commands."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "site").mkdir()
    written, commands = [], []
    for path, language, block in re.findall(
        r"(?:^`(mti-[^`]+)`(?:(?!```).)*?)?^```(\w*)\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL
    ):
        if language == "yaml":  # a part of a configuration, which tests/test_docs.py reads
            continue
        if language != "sh":  # in the folder that a command has made
            (folder / path).write_text(block)
            written.append(path)
            continue
        for line in block.replace("\\\n", " ").splitlines():
            command, *given = shlex.split(line)
            if command == "mkdir":
                subprocess.run([command, *given], cwd=folder, check=True)
            elif command == "pip":
                assert given[:-1] == ["install", "--editable"]
                install(folder, given[-1])
            else:
                commands.append(line)
    assert written == [f"{name}/{path}" for name, paths in FILES.items() for path in paths]
    return folder, commands


def install(folder: Path, name: str) -> None:
    """Do what pip would, without the network that a build needs."""
    described = tomllib.loads((folder / name / "pyproject.toml").read_text())
    project = described["project"]
    assert project["name"] == name
    for package in described["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        assert (folder / name / package / "__init__.py").is_file()
    ((group, plugins),) = project["entry-points"].items()
    ActivationLayout(folder / "site").install(name, project["version"], group, plugins)


def test_its_commands_run(desk: tuple[Path, list[str]]) -> None:
    folder, commands = desk
    own = [line.removeprefix("mti ") for line in commands if line.startswith("mti ")]
    assert [line.split()[0] for line in own] == ["plugins", "fit", "plugins", "layers", "fit"]
    said = python(folder, "-c", RUN, *own)
    assert said[-2:] == [
        str(folder / "mti-plainnet/mti_plainnet/__init__.py"),
        str(folder / "mti-smoothgrad/mti_smoothgrad/__init__.py"),
    ]
    parts = [part.splitlines() for part in "\n".join(said).split("$ ")[1:]]
    for part, plugin, checks in (
        (parts[0], "SmoothGrad (mti_smoothgrad:SmoothGrad, from mti-smoothgrad 0.1.0)", 12),
        (parts[2], "plainnet (mti_plainnet, from mti-plainnet 0.1.0)", 10),
    ):
        assert part[1] == plugin
        assert [line.split()[0] for line in part[2:]] == ["ok"] * checks
    assert parts[3][-1] == "of interest: blocks.1.1/input, blocks.2.1/input"
    for name, named in (("smooth", "mti_smoothgrad.SmoothGrad"), ("plain", "plainnet")):
        run = folder / "tb_logs" / name / "version_0"
        assert named in (run / "config.yaml").read_text()
        assert len((run / "results.csv").read_text().splitlines()) > 1


def test_its_tests_pass(desk: tuple[Path, list[str]]) -> None:
    folder, commands = desk
    (tests,) = [shlex.split(line) for line in commands if line.startswith("pytest ")]
    assert python(folder, "-m", *tests, "-q")[-1].startswith("2 passed")
