"""How fast a sweep goes, and what limits it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm


@final
class Pace:
    """Where the time of a sweep goes, from when this is made.

    What is spent on neither the network nor writing is spent on waiting for pictures.
    """

    def __init__(self) -> None:
        self.pictures, self._start = 0, time.perf_counter()
        self._spent = {"network": 0.0, "writing": 0.0}

    @contextmanager
    def spending(self, on: str) -> Iterator[None]:
        """Count the time of this context for one of them."""
        start = time.perf_counter()
        yield
        self._spent[on] += time.perf_counter() - start

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds for each of reading, network and writing."""
        whole = time.perf_counter() - self._start
        return {"reading": whole - sum(self._spent.values()), **self._spent}

    @property
    def limit(self) -> str:
        """What takes most of the time, and its share."""
        seconds = self.seconds
        most = max(seconds, key=lambda on: seconds[on])
        return f"{seconds[most] / sum(seconds.values()):.0%} {most}"

    def __str__(self) -> str:
        seconds = self.seconds
        whole = sum(seconds.values())
        shares = ", ".join(f"{on} {spent / whole:.0%}" for on, spent in seconds.items())
        return (
            f"{self.pictures:,} pictures in {whole:.1f} s, {self.pictures / whole:.1f} a second: "
            f"{shares}"
        )


class SweepProgress(TQDMProgressBar):
    """A bar of the pictures that a sweep still has to do, in pictures per second, and time left."""

    def init_predict_tqdm(self) -> Tqdm:
        bar = super().init_predict_tqdm()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        bar.unit, bar.unit_scale = " pictures", data.batch_size
        return bar

    def on_predict_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        self.predict_progress_bar.set_postfix_str(pl_module.pace.limit, refresh=False)
        super().on_predict_batch_end(trainer, pl_module, *rest)
