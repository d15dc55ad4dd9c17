"""Which files in a folder are named like pictures."""

import os
from pathlib import Path

from mti_lightning.data.decode import suffixes
from mti_lightning.errors import InputError, nearest
from mti_lightning.files import at_home


def existing(path: str | Path) -> Path:
    """Return the path of a file or folder that is there.

    Raises:
        InputError: If it is not, or may not be read.
    """
    path = at_home(path)
    if not path.exists():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(f"{path} does not exist{nearest(path.name, siblings)}")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path} may not be read; check its permissions")
    return path


def existing_folder(path: str | Path) -> Path:
    """Return the path of a folder that is there.

    Raises:
        InputError: If it is not, or is a file.
    """
    path = existing(path)
    if not path.is_dir():
        raise InputError(f"{path} is a file, not a folder; PictureFile reads a single picture")
    return path


def picture_names(folder: Path, recursive: bool) -> list[str]:
    """List what is named like a picture and not hidden, sorted, relative to `folder`.

    Links to folders are followed, but each folder is read once, by its own path where it has one
    here: a link may lead to a folder above it. One to a folder that `folder` lies in is left: it
    leads to what is beside it, as those of /proc do to the whole disk.
    """
    around = {(one.st_dev, one.st_ino) for one in map(Path.stat, folder.resolve().parents)}
    endings = suffixes()
    found: list[tuple[str, ...]] = []
    seen: set[tuple[int, int]] = set()
    links = [""]  # to be followed when all that is there without them is read
    while links:
        for parent, folders, files in os.walk(folder / links.pop(0)):
            there = Path(parent).stat()
            if (there.st_dev, there.st_ino) in seen | around:
                folders.clear()
                continue
            seen.add((there.st_dev, there.st_ino))
            below = Path(parent).relative_to(folder).parts
            found += [  # as tuples and texts: a Path for each of a million files takes long
                (*below, name)
                for name in files
                if not name.startswith(".") and name[name.rfind(".") :].lower() in endings
            ]
            folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
            links += ["/".join((*below, n)) for n in folders if Path(parent, n).is_symlink()]
    return ["/".join(parts) for parts in sorted(found)]
