"""How the command line starts and ends: at once where it can, and quietly where nobody reads."""

import errno
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

import mti_lightning
from mti_lightning.cli import main
from mti_lightning.cli.entry import COMMANDS
from mti_lightning.cli.errors import told_in_a_line, unexpected

MTI = [sys.executable, "-m", "mti_lightning"]
NO_TORCH = """
import sys

class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "timm", "lightning", "numpy", "matplotlib", "zarr"):
            raise SystemExit(f"imports {name}")

sys.meta_path.insert(0, Forbid())
from mti_lightning.cli import main
main(sys.argv[1:])
"""


def run(*command: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("wrong.yaml").write_text("name: [wrong\n")
    Path("utf16.yaml").write_text("name: wrong\n", encoding="utf-16")
    Path("list.yaml").write_text("- name\n")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--help"], 0, "mti layers MODEL"),
        (["--version"], 0, f"mti-lightning {mti_lightning.__version__}"),
        (["configs"], 0, "demo_mti"),
        (["configs", "demo_mti"], 0, "name: demo_mti"),
        (["layers", "--help"], 0, "usage: mti layers"),
        (["sheet", "--help"], 0, "usage: mti sheet"),
        (["plugins", "--help"], 0, "usage: mti plugins"),
        ([], 2, "give a command: mti fit --config FILE, "),
        (["ft"], 2, "there is no command 'ft'; did you mean 'fit'?"),
        (["layers"], 2, "model is missing"),
        (["layers", "resnet18", "--wieghts", "a"], 2, "did you mean 'weights'?"),
        (["fit", "--config", "nowhere.yaml"], 2, "config 'nowhere.yaml' does not exist"),
        (["fit", "--config", "demo_mit"], 2, "'demo_mit' does not exist; did you mean 'demo_mti'"),
        (["predict", "--config=wrong.yaml"], 2, "wrong.yaml, line 2: "),
        (
            ["validate", "-c", "utf16.yaml"],
            2,
            "config 'utf16.yaml' is no text in UTF-8",
        ),
        (["fit", "--config=list.yaml"], 2, "config 'list.yaml' holds no keys"),
        (["fit", "--config=."], 2, "config '.' is a folder; give a file"),
        (["fit", f"--config={'x' * 300}"], 2, "cannot be read: File name too long"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_what_needs_no_pytorch_answers_without(desk, arguments, code, told):
    done = run(sys.executable, "-c", NO_TORCH, *arguments)
    assert done.returncode == code, done.stderr
    assert told in (done.stderr if code else done.stdout)
    assert len(done.stderr.splitlines()) == (1 if code else 0)


def test_help_has_a_line_for_each_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    for name, command in COMMANDS.items():
        (line,) = [line for line in lines if line.startswith(f"  mti {name} ")]
        assert line.endswith(f"  {command.does}")
        assert len(line) < 90


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_a_help_of_its_own(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: mti ")
    others = {"fit", "predict", "validate"} - {name}
    assert not any(f"mti [options] {other}" in shown for other in others)


@pytest.mark.parametrize(
    ("command", "buffering"),
    [("--help", ""), ("--help", "1"), ("configs", ""), ("configs", "1"), ("sheet --help", "")],
)
def test_who_stops_reading_ends_it_quietly(desk, command, buffering):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write) as nobody:
        done = subprocess.run(
            [*MTI, *command.split()],
            env={**os.environ, "PYTHONUNBUFFERED": buffering},
            stdout=nobody,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (141, b"")


KEPT = """
import resource, sys
from mti_lightning.cli.memory import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
for _ in range(12):
    b"x" * (1 << 26)  # 64 MiB
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_memory_that_is_given_back_is_kept():
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    faults = {
        (way, variables): int(
            run(sys.executable, "-c", KEPT, way, env={**plain, **dict(variables)}).stdout
        )
        for way, variables in [
            ("keep", ()),
            ("leave", ()),
            ("keep", (("MALLOC_MMAP_MAX_", "9"),)),  # who sets one has decided
        ]
    }
    kept, left, decided = faults.values()
    assert kept * 5 < left
    assert kept * 5 < decided


def test_errors_that_are_causes_of_each_other_are_told() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "events")
    later = RuntimeError("it cannot be closed")
    # As where a thread's error is raised once more when what came of it is told.
    full.__context__, later.__context__ = later, full
    assert told_in_a_line(later) == "events cannot be written: the disk is full; make room"
    other = ValueError("it is odd")
    other.__context__, later.__context__ = later, other
    for error in (other, later):
        with suppress(ValueError, RuntimeError):
            raise error  # from somewhere
    assert told_in_a_line(later) is None
    assert unexpected(later).startswith("it is odd (ValueError in ")
