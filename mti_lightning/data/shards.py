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


def find_tar_files(path: str | Path) -> list[Path]:
    """List the tar files that a path or brace pattern names, each once.

    Raises:
        InputError: If one is missing, a folder holds none, or the braces say nothing.
    """
    text = str(path)
    pattern = "{" in text and not Path(text).expanduser().exists()  # a folder may be called {x}
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
    endings = suffixes()
    names: list[str] = []
    places: list[tuple[int, int]] = []
    try:
        # "r:" is without compression: what is compressed can only be read from its beginning.
        with (
            tar_file.open("rb") as file,
            tarfile.open(fileobj=file, mode="r:", errors="backslashreplace") as tar,
        ):
            with suppress(tarfile.ReadError):  # the end is looked at below
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # it keeps every header
                    _, end = base_plus_ext(member.name)
                    if member.isreg() and end is not None and f".{end.lower()}" in endings:
                        names.append(str(PurePosixPath(member.name)))
                        places.append((member.offset_data, member.size))
            # A header that is damaged or missing looks like the end to tarfile.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise InputError(
                    f"{tar_file} is cut off or damaged at byte {tar.offset}, after {len(names)} "
                    "pictures; fetch or make it anew"
                )
    except tarfile.ReadError as error:
        raise InputError(
            f"{tar_file} is not a tar file, or a compressed one; give a plain one"
        ) from error
    except OSError as error:
        raise InputError(f"{tar_file} cannot be read: {error.strerror}") from error
    if not names:
        raise InputError(
            f"{tar_file} holds no picture; give one with 0001.jpg, 0001.png or other pictures, "
            "with no further dot in their names"
        )
    twice, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise InputError(f"{tar_file} holds {twice} twice; each picture needs a name of its own")
    return names, places
