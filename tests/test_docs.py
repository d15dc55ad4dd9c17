"""What the README and the pages tell to do works: typed, shortened, on a few small pictures."""

import inspect
import logging
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

import mti_lightning
from mti_lightning import Backbone, explain, testing
from mti_lightning.cli import main
from mti_lightning.log import LOG
from tests.test_cli import save_noise

ROOT = Path(__file__).parents[1]
ROOMS = ROOT / "mti_lightning"
PAGES = {path.name: path.read_text() for path in (ROOT / "docs").glob("*.md")}
PAGES["README.md"] = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
DOWNLOADED = "resnet50.a1_in1k"  # whose weights the pages take for granted
# The same network, narrow and on small pictures, with the same layers and channels.
ARGUMENTS = {"zero_init_last": False, "base_width": 4}
SMALL = {"weights": "random", "input_size": [64, 64], "arguments": ARGUMENTS}
QUICK = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
FIT = [*QUICK, "--trainer.max_epochs=1", "--model.steps_per_epoch=1"]
# Few pictures make few points of a map, and nothing is coherent in an untrained network.
SHORT = {
    "--model SignedInversion": [*FIT, "--model.coherent=false"],
    "--config my_run.yaml": [*FIT, "--model.coherent=false"],
    "--config sweep": [*QUICK, "--data.num_workers=0"],
    "--config demo_sweep": [*QUICK, "--data.size=12"],
    "--config mine.yaml": [*FIT, "--model.coherent=false"],
    "--config positive": [*FIT, "--model.coherent=false"],
    "--data SweepPictures": ["--data.count=2"],
    "--trainer.callbacks+=AtlasLog": ["--trainer.callbacks.chart.minimum=1"],
    "--config atlas": [*FIT, "--model.coherent=false", "--model.chart={minimum: 1}"],
    "--config validate": [
        *(*QUICK, "--model.pictures=3", "--model.rendered=0", "--model.composites=16")
    ],
    "--name composites": ["--data.size=3"],
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    title: str  # the file that it is
    text: str
    is_run: bool  # or parsed alone: it takes long, or what it needs is not there

    @property
    def commands(self) -> list[list[str]]:
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(page: str) -> Iterator[Block]:
    fence = r'^(<!-- parsed -->\n)?^```(\w*)(?: title="([^"\n]*)")?\n(.*?)^```$'
    for parsed, language, title, text in re.findall(fence, PAGES[page], re.MULTILINE | re.DOTALL):
        yield Block(language, title, text, not parsed)


def test_every_block_says_what_it_is() -> None:
    known = {"sh", "text", "python", "yaml", "toml", "bibtex"}
    for page, text in PAGES.items():
        fences = text.count("\n```")
        assert fences == 2 * len([*blocks(page)]), page
        assert {block.language for block in blocks(page)} <= known, page


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with what the pages take for granted."""
    (tmp_path / "pictures").mkdir()
    for seed in range(3):
        save_noise(tmp_path / f"pictures/{seed}.png", seed)
    for name in ("cat.jpg", "dog.jpg"):
        (tmp_path / name).write_bytes((tmp_path / "pictures/0.png").read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(LOG, "handlers", [logging.NullHandler()])


@pytest.mark.usefixtures("desk")
# Those have tests of their own: test_guide.py, test_own_objective.py.
@pytest.mark.parametrize("page", sorted({*PAGES} - {"plugins.md", "own-objective.md"}))
def test_a_page_runs(
    page: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for block in blocks(page):
        if block.language == "yaml":
            assert isinstance(yaml.safe_load(block.text), dict)
            if block.title:
                Path(block.title).write_text(block.text)
        elif block.language == "text":  # what the commands above it say
            said = capsys.readouterr().out
            assert all(line in said for line in block.text.splitlines() if line != "..."), block
        elif block.language == "python":
            run_python(block.text, monkeypatch)
        elif block.language == "sh":
            for command in block.commands:
                run_command(command, block.is_run, capsys)


def run_command(command: list[str], is_run: bool, capsys: pytest.CaptureFixture[str]) -> None:
    if command[0] != "mti":
        check_other(command)
    elif ">" in command:
        capsys.readouterr()
        main(command[1:-2])
        Path(command[-1]).write_text(capsys.readouterr().out)
    elif is_run:
        run_mti(command[1:])
    else:
        check_options(command[1:], capsys)


def run_mti(given: list[str]) -> None:
    """Run a command with a network, pictures and steps that a test has time for."""
    if given[0] in ("fit", "predict", "validate"):
        words = [*map(" ".join, pairwise(given)), *given]
        short = [option for word in words for option in SHORT.get(word, [])]
        assert short, given
        given = given + short
        if not any("demo" in word for word in given):
            given += [f"--model.backbone.{key}={value}" for key, value in SMALL.items()]
    if given[0] == "inhibitors":
        given += ["--icons=1", "--examples=1"]
    if given[0] == "explain":
        network = {DOWNLOADED: "test_resnet"}
        given = [network.get(word, word) for word in given]
        given += ["--weights=random", "--steps=1", "--classes=1", "--accelerator=cpu"]
    if given[0] != "validate":
        main(given)
        return
    with pytest.raises(SystemExit) as stopped:  # an untrained network is not to be believed
        main(given)
    assert stopped.value.code == 1


def check_options(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Have a command parsed and no more."""
    is_run = given[0] in ("fit", "predict", "validate")
    with pytest.raises(SystemExit) as stopped:
        main([*given, "--print_config"] if is_run else [given[0], "--help"])
    told, error = capsys.readouterr()
    assert not stopped.value.code, error
    assert is_run or all(word in told for word in given if word.startswith("--")), given


def check_other(words: list[str]) -> None:
    """Make sure that what a command of another program names is there."""
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:.*##", MAKEFILE, re.MULTILINE), words
    elif words[:2] == ["python", "-m"]:
        source = (ROOT / words[2].replace(".", "/")).with_suffix(".py").read_text()
        for option in words[3:]:
            assert not option.startswith("-") or f'"{option}"' in source, words
    elif words[0] == ".venv/bin/pytest":
        assert (ROOT / words[1]).is_file()
    else:
        assert words[0] in (".", "tensorboard"), words


def run_python(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def backbone(name: str) -> mti_lightning.Backbone:
        return Backbone(name, **SMALL if name == DOWNLOADED else {})

    with monkeypatch.context() as patch:
        patch.setattr(mti_lightning, "Backbone", backbone)
        for objective, arguments in (
            ("SignedInversion", {"coherent": False}),
            ("MaximallyTense", {}),
        ):
            quick = partial(getattr(mti_lightning, objective), steps_per_epoch=1, **arguments)
            patch.setattr(mti_lightning, objective, quick)
        network = {"weights": "random", "steps": 1, "classes": 1, "progress": False}
        patch.setattr(
            mti_lightning,
            "explain",
            lambda picture, model: explain(picture, "test_resnet", accelerator="cpu", **network),
        )
        quiet = partial(mti_lightning.render, accelerator="cpu", enable_progress_bar=False)
        patch.setattr(mti_lightning, "render", quiet)
        patch.setattr("PIL.Image.Image.show", lambda image: image.save("shown.png"))
        exec(text, {"__name__": "__main__"})
    assert "show()" not in text or Path("shown.png").is_file()


def test_links_of_the_readmes_lead_somewhere() -> None:
    """Those of the pages are checked where the site is built."""
    for readme in (ROOT / "README.md", *(ROOT / "plugins").glob("**/README.md")):
        for link in re.findall(r"\]\(([^)]+)\)", readme.read_text()):
            path, _, anchor = link.partition("#")
            assert not anchor or link.startswith("http"), link
            assert link.startswith("http") or (readme.parent / path).exists(), (readme, link)


def test_the_readme_is_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 150


def test_every_public_name_is_documented() -> None:
    listed = re.findall(r"^::: (\S+)$", PAGES["api.md"], re.MULTILINE)
    public = {
        f"{module.__name__}.{name}": getattr(module, name)
        for module in (mti_lightning, testing)
        for name in module.__all__
    }
    assert sorted(listed) == sorted(public)
    for name, what in public.items():
        assert inspect.getdoc(what), name


def test_the_contributing_page_knows_every_room() -> None:
    page = PAGES["contributing.md"]
    for path in ROOMS.iterdir():
        if not path.name.startswith("_") and (path.is_dir() or path.suffix == ".py"):
            assert f"`{path.stem}`" in page, path.name
    for folder in re.findall(r"`mti_lightning/(\w+)/`", page):
        assert (ROOMS / folder).is_dir(), folder


def test_the_configurations_are_told_of() -> None:
    page = PAGES["your-model.md"]
    table = re.search(r"^\| name \| what it makes \|\n.*?\n\n", page, re.MULTILINE | re.DOTALL)
    assert table
    told = {*re.findall(r"`(\w+)`", table[0])}
    there = {path.stem for path in (ROOT / "configs").glob("*.yaml")}
    trains = {name for name in there if name.endswith("_vetoed_shapes")}
    assert told == {name for name in there - trains if not name.startswith("demo_")}


def test_the_site_asks_no_other_server_for_anything(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    build = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    pages = [*tmp_path.rglob("*.html")]
    assert len(pages) > len(PAGES) - 1  # and that of what is not found
    for page in pages:
        fetched = r'<(?:script|img|link|iframe)\b[^>]*\b(?:src|href)="(?:https?:)?//[^"]*"'
        assert not re.findall(fetched, page.read_text()), page.name
    for style in tmp_path.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", style.read_text()), style.name
