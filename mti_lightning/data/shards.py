"""Which pictures tar files hold, and where in them each lies.

webdataset says what shard patterns and members' names mean (`expand_urls`, `base_plus_ext`). It is
not used for reading, which it does as a stream that ends at the first damage: a sweep names all
pictures at the start, shares them out, goes on in the middle, and goes past a broken one.
"""

import tarfile
from collections import Counter
from contextlib import suppress
from pathlib import Path, PurePosixPath

from webdataset.shardlists import expand_urls
from webdataset.tariterators import base_plus_ext

from mti_lightning.data.decode import suffixes
from mti_lightning.data.folders import existing
from mti_lightning.errors import InputError
from mti_lightning.files import at_home, open_file
from mti_lightning.log import log_info


def find_tar_files(path: str | Path) -> list[Path]:
    """List the tar files that a path or brace pattern names, each once.

    Raises:
        InputError: If one is missing, a folder holds none, or the braces say nothing.
    """
    text = str(path)
    pattern = "{" in text and not at_home(text).exists()  # a folder may be called {x}
    try:
        names = expand_urls(text) if pattern else [text]
    except (ValueError, AssertionError) as error:  # unbalanced; ${NAME} of the environment
        raise InputError(f"{path} is no brace pattern: {error}") from error
    if pattern and names == [text]:
        raise InputError(
            f"the braces in {path} name nothing; give a range, {{000..012}}, or a list, {{a,b}}"
        )
    found: list[Path] = []
    for place in map(existing, names):
        if place.is_dir():
            inside = sorted(file for file in place.glob("*.tar") if file.name[0] != ".")
            if not inside:
                raise InputError(
                    f"folder {place} holds no .tar file; PictureFolder reads a folder of pictures"
                )
            found += inside
        else:
            found.append(place)
    return list(dict.fromkeys(found))


def list_members(tar_file: Path) -> tuple[list[str], list[tuple[int, int]]]:
    """List the pictures in a tar file: their names, and where each begins and its bytes.

    Raises:
        InputError: If it is no plain tar file, is cut off, or holds no picture, or one twice.
    """
    found = _Members()
    try:
        # "r:" is without compression: what is compressed can only be read from its beginning.
        with (
            open_file(tar_file) as file,
            tarfile.open(fileobj=file, mode="r:", errors="backslashreplace") as tar,
        ):
            with suppress(tarfile.ReadError):  # the end is looked at below
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # it keeps every header
                    found.add(member)
            # A header that is damaged or missing looks like the end to tarfile.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise InputError(
                    f"{tar_file} is cut off or damaged at byte {tar.offset}, after "
                    f"{len(found.names)} pictures; fetch or make it anew"
                )
    except tarfile.ReadError as error:
        raise InputError(
            f"{tar_file} is not a tar file, or a compressed one; give a plain one"
        ) from error
    except OSError as error:
        raise InputError(f"{tar_file} cannot be read: {error.strerror}") from error
    if found.left_out:
        log_info(
            f"{tar_file}: left out {len(found.left_out)} such as {found.left_out[0]}: pictures are "
            "files that are not hidden, with no further dot in their names"
        )
    if not found.names:
        raise InputError(
            f"{tar_file} holds no picture; give one with 0001.jpg, 0001.png or other pictures, "
            "with no further dot in their names"
        )
    twice, count = Counter(found.names).most_common(1)[0]
    if count > 1:
        raise InputError(f"{tar_file} holds {twice} twice; each picture needs a name of its own")
    return found.names, [*found.places.values()]


class _Members:
    """The pictures among the members of a tar file, and what is named like one but left out."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.places: dict[str, tuple[int, int]] = {}  # by their names in the file
        self.left_out: list[str] = []
        self._endings = suffixes()

    def add(self, member: tarfile.TarInfo) -> None:
        place = self.places.get(member.linkname) if member.islnk() else None
        if member.isreg():
            place = (member.offset_data, member.size)
        _, end = base_plus_ext(member.name)  # what is behind the first dot
        if place and end is not None and f".{end.lower()}" in self._endings:
            self.names.append(str(PurePosixPath(member.name)))
            self.places[member.name] = place
        elif not member.isdir() and PurePosixPath(member.name).suffix.lower() in self._endings:
            self.left_out.append(member.name)
