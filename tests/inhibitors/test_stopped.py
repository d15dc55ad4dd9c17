"""A run of `mti inhibitors` that was stopped goes on, and ends with the same bytes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mti_lightning import SweepStore
from mti_lightning.cli import main
from mti_lightning.inhibitors import pieces
from tests.inhibitors.test_study import store, tense  # noqa: F401

SHOWN = ["--feature", "fc:star", "--count", "1", "--examples", "1"]


def arguments(store: SweepStore, tense: str, out: Path, *more: str) -> list[str]:  # noqa: F811
    given = ["--pictures", tense, "--icons", "0", "--out", str(out), *more]
    return ["inhibitors", str(store.path), *SHOWN, *given]


def written(out: Path) -> list[bytes]:
    return [path.read_bytes() for path in (out, out.with_suffix(".html"))]


def test_it_goes_on_after_a_stop(
    store: SweepStore,  # noqa: F811
    tense: str,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write, found, left = pieces.replace_file, list[str](), [2, 10**9]

    def stopping(path: Path, how: object) -> None:
        if path.suffix == ".npz":
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            found.append(path.stem)
        write(path, how)  # type: ignore[arg-type]

    monkeypatch.setattr(pieces, "replace_file", stopping)
    out = tmp_path / "stopped.csv"
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        main(arguments(store, tense, out))
    left.pop(0)
    assert (len(found), out.exists()) == (2, False)
    main(arguments(store, tense, out))
    of_it = list(found)
    assert len({*of_it}) == len(of_it) > 2  # none is found twice
    main(arguments(store, tense, tmp_path / "whole.csv"))
    assert found[len(of_it) :] == sorted(of_it)
    assert written(out) == written(tmp_path / "whole.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{name}.{kind}" for name in ("stopped", "whole") for kind in ("csv", "html")
    )


def test_what_another_run_left_is_not_taken(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    for about, value, taken in (("a", 1, 1), ("a", 2, 1), ("b", 3, 3), ("a", 4, 4)):
        kept = pieces.Pieces(folder, about)
        assert kept.next(lambda value=value: {"it": value})["it"] == taken  # type: ignore[misc]


@pytest.mark.slow
def test_it_goes_on_after_kills(store: SweepStore, tense: str, tmp_path: Path) -> None:  # noqa: F811
    out, folder = tmp_path / "killed.csv", tmp_path / ".killed.unfinished"
    more = ("--icons", "2", "--depth", "2")
    command = [sys.executable, "-m", "mti_lightning", *arguments(store, tense, out, *more)]
    for kept in (1, 2, 4, 6, 8):
        run = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ)
        while len([*folder.glob("[0-9]*.npz")]) < kept and run.poll() is None:
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
    subprocess.run(command, check=True, capture_output=True)
    main(arguments(store, tense, tmp_path / "whole.csv", *more))
    assert written(out) == written(tmp_path / "whole.csv")
    assert not folder.exists()
