"""What a run has found so far, on disk: one that was stopped goes on from there."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

import numpy as np

from mti_lightning.files import replace_file
from mti_lightning.log import log_info
from mti_lightning.sweep.measures import Array


@final
class Pieces:
    """The pieces of a run, in the order in which it finds them, which is always the same.

    Args:
        folder: Where they are kept; with none they are not.
        about: What the run depends on, as JSON; the pieces of another are deleted.
    """

    def __init__(self, folder: Path | None = None, about: Any = None) -> None:
        self._folder, self._asked = folder, 0
        if folder is None:
            return
        told, note = folder / "about.json", json.dumps(about, indent=1)
        if told.exists() and told.read_text(encoding="utf-8") == note:
            log_info(f"going on with {len([*folder.glob('[0-9]*.npz')])} pieces in {folder}")
            return
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        replace_file(told, lambda file: file.write(note.encode()))

    def next(self, find: Callable[[], Mapping[str, Array]]) -> dict[str, Array]:
        """Return the next piece: what is kept of it, or what `find` returns."""
        self._asked += 1
        if self._folder is None:
            return dict(find())
        path = self._folder / f"{self._asked:06d}.npz"
        if not path.exists():
            found: dict[str, Any] = {**find()}
            replace_file(path, lambda file: np.savez(file, **found))
        with np.load(path) as kept:
            return dict(kept)
