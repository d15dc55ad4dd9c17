"""docs/own-objective.md, done as it stands: its files are those of the plugin, its commands run."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from mti_lightning.cli import main
from mti_lightning.registry import OBJECTIVES
from mti_lightning.tables import read_table
from tests.test_registry import ActivationLayout

ROOT = Path(__file__).parents[1]
PLUGIN = ROOT / "plugins/mti-surround"
BLOCKS = re.findall(
    r"(?:^`mti-surround/([^`]+)`(?:(?!```).)*?)?^```(\w*)\n(.*?)^```$",
    (ROOT / "docs/own-objective.md").read_text(),
    re.MULTILINE | re.DOTALL,
)
FILES = {path: text for path, _, text in BLOCKS if path}
COMMANDS = [
    line
    for _, language, text in BLOCKS
    if language == "sh"
    for line in text.replace("\\\n", " ").splitlines()
]


def test_its_files_are_those_of_the_plugin() -> None:
    assert [*FILES] == ["pyproject.toml", "mti_surround/__init__.py", "tests/test_surround.py"]
    code = FILES["mti_surround/__init__.py"]
    assert code == (PLUGIN / "mti_surround/__init__.py").read_text()
    assert len(code.splitlines()) <= 60
    theirs, own = (
        tomllib.loads(text)
        for text in ((PLUGIN / "pyproject.toml").read_text(), FILES["pyproject.toml"])
    )
    assert theirs["project"]["entry-points"] == own["project"]["entry-points"]
    exec(FILES["tests/test_surround.py"], {})


def test_its_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    described = tomllib.loads(FILES["pyproject.toml"])["project"]
    (plugins,) = described["entry-points"].values()
    (tmp_path / "site").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "site")
    site = ActivationLayout(tmp_path / "site")
    site.install(described["name"], described["version"], OBJECTIVES, plugins)
    monkeypatch.chdir(tmp_path)
    own = [line.removeprefix("mti ") for line in COMMANDS if line.startswith("mti ")]
    for line in own:
        main(shlex.split(line))
    told = capsys.readouterr().out.splitlines()
    assert told[0] == (
        "SuppressiveSurround (mti_surround:SuppressiveSurround, from mti-surround 0.1.0)"
    )
    assert [line.split()[0] for line in told[1:7]] == ["ok"] * 6
    run = tmp_path / "tb_logs/surround/version_0"
    assert "mti_surround.SuppressiveSurround" in (run / "config.yaml").read_text()
    made, sources = (read_table(run / name) for name in ("results.csv", "sources.csv"))
    assert len(made) == len(sources) == 2
    assert all(
        float(after["response"]) < float(before["response"])
        for after, before in zip(made, sources, strict=True)
    )
