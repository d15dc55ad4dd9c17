"""Runs the command line and kills it, signals it, or fills its disk at a chosen moment.

A moment is a change below the working directory: a file that is opened to be written, one that gets
its name, a folder that is made, something that is removed. What happens comes just before it, so
also between a file's writing and its moving.
"""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

from mti_lightning.cli import main

Deed = Literal["nothing", "kill", "stop", "full"]
_LONGEST = 300  # seconds
_CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir")


class Ended(NamedTuple):
    """How a command ended.

    Attributes:
        code: As of `subprocess`.
        lines: Those on standard error that are the command's last word.
        moments: How many there were.
        said: All of standard error.
    """

    code: int
    lines: list[str]
    moments: int
    said: str


class Moments:
    """A process that has imported everything, and forks for each command."""

    def __enter__(self) -> Self:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.tools.moments"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()

    def run(
        self, folder: Path, arguments: Sequence[str], deed: Deed = "nothing", moment: int = 0
    ) -> Ended:
        """Run a command in a folder; before its change number `moment` something is done to it."""
        return self.end(self.start(folder, arguments, deed, moment))

    def start(
        self, folder: Path, arguments: Sequence[str], deed: Deed = "nothing", moment: int = 0
    ) -> str:
        """Begin a command, and go on while it runs; see `run`."""
        assert self._server.stdin is not None
        asked = {"folder": str(folder), "arguments": [*arguments], "deed": deed, "moment": moment}
        self._server.stdin.write(json.dumps(asked) + "\n")
        self._server.stdin.flush()
        return self._answer()

    def end(self, process: str) -> Ended:
        """Wait until a command that was begun has ended."""
        assert self._server.stdin is not None
        self._server.stdin.write(process + "\n")
        self._server.stdin.flush()
        return Ended(**json.loads(self._answer()))

    def _answer(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline().strip()


def _paths(event: str, given: tuple[Any, ...]) -> Iterator[Any]:
    if event == "open":
        path, _, flags = given
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            yield path
    elif event in _CHANGES:
        yield given[0]


class _Watch:
    """Counts the changes, and does what is asked for before one of them."""

    def __init__(self, deed: Deed, moment: int) -> None:
        self.deed, self.moment, self.count = deed, moment, 0
        self.folder = str(Path.cwd())
        self.note = os.open(f".moments.{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def __call__(self, event: str, given: tuple[Any, ...]) -> None:
        for path in _paths(event, given):
            if isinstance(path, int) or not self._is_ours(os.fsdecode(path)):
                continue
            self.count += 1
            os.pwrite(self.note, str(self.count).encode(), 0)
            if self.deed == "full" and self.count >= self.moment and event in ("open", "os.mkdir"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            if self.count == self.moment and self.deed in ("kill", "stop"):
                os.kill(os.getpid(), signal.SIGKILL if self.deed == "kill" else signal.SIGTERM)

    def _is_ours(self, path: str) -> bool:
        # Nothing here is a link; resolving one would be a look at the disk for each change.
        return os.path.normpath(Path(self.folder, path)).startswith(self.folder + os.sep)


def _begin(folder: str, arguments: Sequence[str], deed: Deed, moment: int) -> int:
    process = os.fork()
    if process:
        return process
    code = 1
    signal.alarm(_LONGEST)  # one that hangs is ended, too
    try:
        os.chdir(folder)
        for descriptor, name in ((1, ".said"), (2, ".errors")):
            own = f"{name}.{os.getpid()}"  # two may run in a folder
            os.dup2(os.open(own, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        sys.argv[1:] = arguments
        sys.addaudithook(_Watch(deed, moment))
        main()
        code = 0
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 1
    except BaseException:  # noqa: BLE001  as an interpreter ends
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve() -> None:
    running: dict[int, str] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        if isinstance(asked, dict):
            process = _begin(**asked)
            running[process] = asked["folder"]
            print(process, flush=True)
            continue
        _, status = os.waitpid(asked, 0)
        folder = Path(running.pop(asked))
        said = (folder / f".errors.{asked}").read_text()
        ended = Ended(
            os.waitstatus_to_exitcode(status),
            [text for text in said.splitlines() if text.startswith("mti: ")],
            int((folder / f".moments.{asked}").read_text() or 0),
            said,
        )
        for name in (f".moments.{asked}", f".errors.{asked}", f".said.{asked}"):
            (folder / name).unlink(missing_ok=True)
        print(json.dumps(ended._asdict()), flush=True)


if __name__ == "__main__":
    import mti_lightning.cli.mti_cli  # noqa: F401  once for all

    _serve()
