"""One process at a time writes a place."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mti_lightning.errors import InputError
from mti_lightning.locks import InUseError, hold

HOLDER = """
import os, sys, time
from pathlib import Path
from mti_lightning.locks import hold
held = hold(Path(sys.argv[1]))
if len(sys.argv) > 2 and not os.fork():
    time.sleep(60)  # as a process that loads pictures outlives a killed one
print("held", flush=True)
sys.stdin.read()
"""


def holder(path: Path, *more: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


@pytest.mark.parametrize("more", [(), ("fork",)])
def test_who_comes_second_is_told_who_is_there_until_it_dies(tmp_path, more):
    path = tmp_path / "s.zarr"
    process = holder(path, *more)
    told = rf"s\.zarr is being written by process {process.pid} on .*; wait until it has ended, or"
    for _ in range(2):
        with pytest.raises(InUseError, match=told):
            hold(path)
    end(process)
    hold(path).release()
    assert not [*tmp_path.iterdir()]
    if more:
        os.killpg(process.pid, signal.SIGKILL)


def test_within_a_process_a_hold_is_shared_and_ends_when_forgotten(tmp_path):
    path = tmp_path / "s.zarr"
    first = hold(path)
    (tmp_path / "link").symlink_to(path)
    assert hold(tmp_path / "link") is first
    first.release()
    second = hold(path)
    assert second is not first
    del first, second
    assert [entry.name for entry in tmp_path.iterdir()] == ["link"]


def test_where_there_are_no_locks_the_note_counts(tmp_path, monkeypatch):
    path = tmp_path / "s.zarr"
    process = holder(path)

    def lockf(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with pytest.raises(InUseError, match=r"has no locks: if that process is no more, delete .*"):
        hold(path)
    end(process)
    hold(path).release()
    (tmp_path / ".s.lock.zarr").write_text("1 elsewhere\n")
    with pytest.raises(InUseError, match="process 1 on elsewhere"):
        hold(path)


def test_a_folder_that_is_not_there_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match=r"no/s\.zarr cannot be written: No such file"):
        hold(tmp_path / "no" / "s.zarr")


RACER = """
import sys, time
from pathlib import Path
from mti_lightning.locks import InUseError, hold
path, end = Path(sys.argv[1]), time.monotonic() + 1
while time.monotonic() < end:
    try:
        with hold(path):
            (path.parent / "inside").touch(exist_ok=False)
            time.sleep(0.001)
            (path.parent / "inside").unlink()
    except InUseError:
        pass
"""


def test_there_are_never_two(tmp_path):
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, str(tmp_path / "s.zarr")]) for _ in range(3)
    ]
    assert [racer.wait() for racer in racers] == [0, 0, 0]
