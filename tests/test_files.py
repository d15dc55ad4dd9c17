"""Files are there whole or not at all."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mti_lightning.errors import RunError
from mti_lightning.files import beside, file_name, replacing


def test_a_file_gets_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path, lasting=True) as part:
        part.write_text("new")
        assert path.read_text() == "old"
        assert part.suffix == ".txt"  # Pillow goes by it
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_after_an_error_the_old_file_stays(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def stop() -> None:
        with replacing(path) as part:
            part.write_text("half")
            raise error

    with pytest.raises(error):
        stop()
    assert path.read_text() == "old"
    assert len([*tmp_path.iterdir()]) == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from mti_lightning.files import replacing
with replacing(Path(sys.argv[1])) as part:
    part.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_after_a_kill_the_old_file_stays_and_the_next_one_leaves_nothing(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    with replacing(path) as part:
        part.write_text("new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_what_cannot_be_written_is_told_in_a_line(tmp_path):
    told = pytest.raises(RunError, match=r"no/a\.txt cannot be written: No such file")
    with told, replacing(tmp_path / "no" / "a.txt") as part:
        part.write_text("new")
    with pytest.raises(RunError, match="full; make room"), replacing(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_link_stays_one_and_a_pipe_is_written(tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.txt"
    link.symlink_to("real/a.txt")
    with replacing(link) as part:
        assert part.parent.name == "real"  # on the same disk
        part.write_text("new")
    assert link.is_symlink()
    assert (tmp_path / "real/a.txt").read_text() == "new"
    with replacing(Path(os.devnull)) as part:
        part.write_text("new")
    assert not Path(os.devnull).is_file()


@pytest.mark.parametrize("name", ["a" * 255, "a." + "b" * 253, "画" * 85])
def test_the_longest_names_can_be_written(tmp_path, name):
    with replacing(tmp_path / name) as part:
        part.write_text("new")
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_names_are_cut_by_bytes_and_stay_apart():
    assert file_name("a b/c.png") == "a-b-c.png"
    long = ["画" * 120 + end for end in ("一.png", "二.png")] + ["一" + "画" * 120 + "二.png"]
    names = [file_name(text) for text in long]
    assert len({*names}) == 3
    for text, name in zip(long, names, strict=True):
        assert len(name.encode()) <= 200
        assert name.endswith(text[-20:])
    assert len(beside(Path("画" * 85)).name.encode()) <= 255
