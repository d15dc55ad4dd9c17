"""What of a sweep is written and not yet part of the store's arrays: a file for each block.

A file is there whole or not at all. Those of a stretch of blocks become one shard of each array.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, final

import numpy as np

from mti_lightning.files import replace_file
from mti_lightning.sweep.measures import Array


@final
class Journal:
    """The blocks that are not yet part of the arrays.

    Args:
        folder: Where their files are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def starts(self) -> list[int]:
        """The first picture of each block."""
        return sorted(int(path.stem) for path in self._folder.glob("[0-9]*.npz"))

    def write(self, start: int, columns: Mapping[str, Array], status: Array) -> None:
        """Write a block, which survives a power cut from here on."""
        arrays: dict[str, Any] = {**columns, "status": status}
        if "reason" in columns:  # this format has no texts of any length
            arrays["reason"] = np.array(columns["reason"].tolist(), "U")
        replace_file(self._path(start), lambda file: np.savez(file, **arrays))

    def read(self, name: str, wanted: slice) -> Iterator[tuple[int, Array]]:
        """Yield the first picture, and an array's part, of each block that has pictures `wanted`.

        A block that becomes part of the arrays meanwhile is left out: read those afterwards.
        """
        for start in self.starts:
            if start < wanted.stop:
                with (
                    suppress(FileNotFoundError),
                    self._path(start).open("rb") as file,
                    np.load(file) as block,
                ):
                    if name in block and start + len(block["status"]) > wanted.start:
                        yield start, block[name]

    def remove(self, start: int) -> None:
        """Remove a block that is part of the arrays."""
        self._path(start).unlink()

    def _path(self, start: int) -> Path:
        return self._folder / f"{start:010d}.npz"
