"""The progress bar of a sweep."""

from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm


class SweepProgress(TQDMProgressBar):
    """A bar of the pictures that a sweep still has to do, in pictures per second, and time left."""

    def init_predict_tqdm(self) -> Tqdm:
        bar = super().init_predict_tqdm()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        bar.unit, bar.unit_scale = " pictures", data.batch_size
        return bar
