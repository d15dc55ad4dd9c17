"""One process at a time for what is written: a sweep's store, a run's folder, a table."""

import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import final
from weakref import WeakValueDictionary

from mti_lightning.errors import InputError
from mti_lightning.files import beside, check_output, unwritable

_TAKEN = (errno.EACCES, errno.EAGAIN)
_HERE = socket.gethostname()
_held: "WeakValueDictionary[Path, Hold]" = WeakValueDictionary()


class InUseError(InputError):
    """Another process writes the same place."""


@final
class Hold:
    """A place that this process alone writes, until it ends, lets go, or forgets the hold.

    The lock is on a hidden file beside the place, in which the process is noted. It is the
    operating system's, also on network folders, and dies with the process. Where a file system has
    no locks, what the file notes counts: a process of this machine that has ended holds nothing,
    one of another machine does until the file is deleted.
    """

    def __init__(self, path: Path, lock: Path, descriptor: int) -> None:
        self.path, self._lock, self._descriptor = path, lock, descriptor
        self._process = os.getpid()

    @property
    def is_own(self) -> bool:
        """Whether it is held still, and by this process: those that it forks have no part in it."""
        return self._descriptor >= 0 and self._process == os.getpid()

    def release(self) -> None:
        """Let others have the place."""
        if self.is_own:
            with suppress(OSError):
                self._lock.unlink()
            os.close(self._descriptor)
            self._descriptor = -1

    __del__ = release

    def __enter__(self) -> "Hold":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def hold(path: Path) -> Hold:
    """Take a place to write for this process; within it whoever asks again shares the hold.

    Args:
        path: A file or folder, which need not be there; the folder around it has to be.

    Raises:
        InUseError: If another process has it.
        InputError: If its folder cannot be written.
    """
    path = Path(os.path.realpath(path))
    known = _held.get(path)
    if known is not None and known.is_own:
        return known
    lock = beside(path, "lock")
    try:
        descriptor = _lock(path, lock)
    except OSError as error:
        raise InputError(unwritable(path, error)) from error
    _held[path] = held = Hold(path, lock, descriptor)
    return held


def hold_in_turn(path: Path) -> Hold:
    """Take a place to write as `hold` does; where another process has it, wait for it."""
    told = ""
    while True:
        try:
            return hold(path)
        except InUseError as error:
            if str(error) != told:
                logging.getLogger(__name__).info("waiting: %s", told := str(error))
            time.sleep(0.5)


@contextmanager
def taking(*paths: Path, overwrite: bool) -> Iterator[None]:
    """Take the files that a command is to write, and make their folders.

    Raises:
        InputError: If one is there already, cannot be written, or another process has it.
    """
    with ExitStack() as held:
        for path in paths:
            held.callback(_remove_empty, [f for f in path.absolute().parents if not f.exists()])
            check_output(path, overwrite)
            if path.is_file() or not path.exists():  # no pipe, for example
                held.enter_context(hold(path))
                check_output(path, overwrite)  # another process may just have made it
        yield


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove what was made for files that were not written, the innermost first."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def release_all() -> None:
    """Let go of all that this process holds."""
    for held in [*_held.values()]:
        held.release()


def _lock(path: Path, lock: Path) -> int:
    """Open and lock a file; it may be removed under our hands by who lets go."""
    while True:
        try:
            descriptor, fresh = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
        except FileExistsError:
            try:
                descriptor, fresh = os.open(lock, os.O_RDWR), False
            except FileNotFoundError:
                continue
        try:
            # Not flock, which the processes that load pictures would inherit and keep.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 300, 0).decode(errors="replace").split()
            if error.errno in _TAKEN or not (fresh or _has_ended(holder)):
                os.close(descriptor)
                raise InUseError(_in_use(path, lock, holder, error)) from None
        with suppress(OSError):
            if os.path.samestat(lock.stat(), os.fstat(descriptor)):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()} {_HERE}\n".encode(), 0)
                return descriptor
        os.close(descriptor)


def _has_ended(holder: list[str]) -> bool:
    """Return whether it is a process of this machine that is no more."""
    if len(holder) != 2 or holder[1] != _HERE:
        return False
    try:
        os.kill(int(holder[0]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _in_use(path: Path, lock: Path, holder: list[str], error: OSError) -> str:
    who = f"process {holder[0]} on {holder[1]}" if len(holder) == 2 else "another process"
    told = f"{path} is being written by {who}; wait until it has ended, or give another place"
    if error.errno not in _TAKEN:
        told += f"; this file system has no locks: if that process is no more, delete {lock}"
    return told
