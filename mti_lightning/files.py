"""Files that are there whole or not at all, and names that every file system takes."""

import ctypes
import errno
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISREG
from typing import IO, Any, BinaryIO

from mti_lightning.errors import InputError, RunError

MOST_BYTES = 200  # bytes of a name: file systems take 255, and endings are added
MOST_TEXT = 2**27  # bytes of a text that is read as a whole
FULL = (errno.ENOSPC, errno.EDQUOT)


def file_name(text: str, most: int = MOST_BYTES) -> str:
    """Return `text` with what file systems do not take everywhere replaced, cut to `most` bytes.

    What is cut keeps its end, and a few letters that tell it from others with the same end.
    """
    name = re.sub(r"[^\w.-]+", "-", text)
    if len(name.encode()) <= most:
        return name
    end = name.encode()[9 - most :].decode(errors="ignore")
    return f"{hashlib.sha256(name.encode()).hexdigest()[:8]}-{end}"


def versions(folder: Path) -> list[Path]:
    """Return the folders `version_N` of the runs in a folder, the latest last."""
    found = [path for path in folder.glob("version_*") if re.fullmatch(r"version_\d+", path.name)]
    return sorted(found, key=version_of)


def version_of(folder: Path) -> int:
    """Return the number of a folder `version_N`."""
    return int(folder.name.removeprefix("version_"))


def at_home(path: str | Path) -> Path:
    """Return a path in which a leading ~ is the user's home, as of a shell.

    Raises:
        InputError: If it is empty, as of a variable that is not set: it would be the folder one is
            in.
    """
    if path == "":
        raise InputError("'' is no path; give the name of a file or folder")
    try:
        return Path(path).expanduser()
    except RuntimeError:  # there is no such user
        return Path(path)


def open_file(path: str | Path, most: int | None = None) -> IO[bytes]:
    """Open a file that someone named, to read it.

    A pipe would have it wait for who writes, and a device may never end.

    Args:
        path: The file.
        most: Bytes that it may have.

    Raises:
        OSError: If it is no regular file, is larger, or cannot be opened.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    found, told = os.fstat(file.fileno()), None
    if not S_ISREG(found.st_mode):
        told = errno.ENODEV, "it is no regular file"
    elif most is not None and found.st_size > most:
        held, may = (f"{size / 2**20:,.0f}" for size in (found.st_size, most))
        told = errno.EFBIG, f"it has {held} MiB, and {may} are read at most"
    if told is not None:
        file.close()
        raise OSError(*told, str(path))
    return file


def read_text(path: str | Path, most: int = MOST_TEXT) -> str:
    """Return what a file holds as text in UTF-8; what it raises is as of `open_file`, too."""
    with io.TextIOWrapper(open_file(path, most), "utf-8-sig") as file:
        return file.read()


@contextmanager
def replacing(path: Path, *, lasting: bool = False) -> Iterator[Path]:
    """Give the place where a file is written, beside its name; at the end it gets the name.

    A file of that name stays as it was until then, and for good after an error or a kill.

    Args:
        path: The file. A link stays one; what is no file, such as a pipe, is written itself.
        lasting: Make sure that it survives a power cut.

    Raises:
        RunError: If it cannot be written.
    """
    target = Path(os.path.realpath(path))
    part = beside(target)
    try:
        if target.exists() and not target.is_file():
            yield target
            return
        yield part
        if lasting:
            sync(part)
        part.replace(target)
        if lasting:
            sync(target.parent)
    except OSError as error:
        raise RunError(unwritable(path, error)) from error
    finally:
        with suppress(OSError):
            part.unlink()


def replace_file(
    path: Path, write: Callable[[BinaryIO], Any], kind: str = "part", *, lasting: bool = True
) -> None:
    """Write a file whole or not at all; other than `replacing` it leaves errors as they are.

    Args:
        path: The file.
        write: Writes what it holds.
        kind: What its name holds until it is whole, as of `beside`.
        lasting: Make sure that it survives a power cut.
    """
    part = beside(path, kind)
    try:
        with part.open("wb") as file:
            write(file)
        if lasting:
            sync(part)
        part.replace(path)
    except OSError:  # such as of a full disk, which half a file makes no less full
        with suppress(OSError):
            part.unlink()
        raise
    if lasting:
        sync(path.parent)


def check_output(path: Path, overwrite: bool) -> None:
    """Make sure that a file can be written, and make its folder.

    Raises:
        InputError: If it is there already, or cannot be.
    """
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder; give the name of a file in it")
        if path.exists() and not overwrite:
            raise InputError(f"{path} exists; give another name, or --overwrite")
        if path.exists() and not path.is_file():  # such as /dev/stdout
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise InputError(unwritable(path, error)) from error


def beside(path: Path, kind: str = "part") -> Path:
    """Return where a file or folder is until it is whole: hidden, with the same ending."""
    part = path.with_name(f".{path.stem}.{kind}{path.suffix}")
    if len(os.fsencode(part.name)) > MOST_BYTES:
        digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
        part = path.with_name(f".{digest}.{kind}{path.suffix if len(path.suffix) < 9 else ''}")
    return part


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some folders cannot be
            raise
    finally:
        os.close(descriptor)


def sync_disk(path: Path) -> None:
    """Have all that was written to the disk of a path survive a power cut."""
    try:
        syncfs = ctypes.CDLL(None).syncfs
    except (AttributeError, OSError):  # Linux has it
        os.sync()
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        syncfs(descriptor)
    finally:
        os.close(descriptor)


def unwritable(path: Path, error: OSError) -> str:
    """Say in a line why a file cannot be written."""
    reason = "the disk is full; make room" if error.errno in FULL else error.strerror or error
    return f"{path} cannot be written: {reason}"
