"""What the README tells to do works, shortened, on a few pictures and with random weights."""

import re
import shlex
from functools import partial
from pathlib import Path

import pytest
import yaml

import mti_lightning
from mti_lightning import Backbone, SignedInversion
from mti_lightning.cli import main
from tests.test_cli import save_noise

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
RANDOM = {"weights": "random", "input_size": [64, 64], "arguments": {"zero_init_last": False}}
QUICK = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
FIT = [*QUICK, "--trainer.max_epochs=1", "--model.steps_per_epoch=1"]
# Few pictures make few points of a map, and nothing is coherent in an untrained network.
SHORT = {
    "my_run.yaml": FIT,
    "configs/sweep.yaml": [*QUICK, "--data.num_workers=0"],
    "configs/positive.yaml": [*FIT, "--data.count=2", "--model.coherent=false"],
    "configs/atlas.yaml": [*FIT, "--model.coherent=false", "--model.chart={minimum: 1}"],
}


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [block for name, block in found if name == language]


def commands(block: str) -> list[list[str]]:
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith(".venv/bin/mti ")]


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    for seed in range(3):
        save_noise(Path(f"pictures/{seed}.png"), seed)
    Path("FOLDER").symlink_to("pictures")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    return tmp_path


def test_the_commands_run_one_after_the_other(desk):
    (own,) = blocks("yaml")
    config = yaml.safe_load(own)
    arguments = config["model"]["init_args"]
    arguments["backbone"] |= RANDOM
    Path("my_run.yaml").write_text(yaml.safe_dump(config | {"trainer": {"max_epochs": 1}}))
    ran = []
    for command in (command for block in blocks("") for command in commands(block)):
        given = command[1:]
        if "--config" in given:
            file = given[given.index("--config") + 1]
            given += SHORT[file]
            given += [f"--model.backbone.{key}={value}" for key, value in RANDOM.items()]
        main(given)
        ran.append(given[0])
    assert ran == ["fit", "sheet", "predict", "rank", "fit", "predict", "fit"]
    assert Path("sheet.png").is_file()
    assert Path("rank.png").is_file()
    assert len([*Path("tb_logs").glob("*/version_*/results.csv")]) == 3


def test_the_python_example_runs(desk, monkeypatch):
    (example,) = blocks("python")
    monkeypatch.setattr(mti_lightning, "Backbone", partial(Backbone, **RANDOM))
    quick = partial(SignedInversion, steps_per_epoch=1, coherent=False)
    monkeypatch.setattr(mti_lightning, "SignedInversion", quick)
    quiet = partial(mti_lightning.render, accelerator="cpu", enable_progress_bar=False)
    monkeypatch.setattr(mti_lightning, "render", quiet)
    monkeypatch.setattr("PIL.Image.Image.show", lambda image: image.save("shown.png"))
    Path("cat.jpg").write_bytes(Path("pictures/0.png").read_bytes())
    exec(example, {})
    assert Path("shown.png").is_file()
