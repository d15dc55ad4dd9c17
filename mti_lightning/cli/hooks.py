"""What is done before and after a run, by what kind of model it is."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import Logger

from mti_lightning import (
    AtlasInversion,
    AtlasLog,
    InputError,
    Objective,
    Results,
    Sweep,
    SweepStore,
    Validity,
)
from mti_lightning.files import unwritable, version_of, versions
from mti_lightning.locks import hold
from mti_lightning.loggers import loggers_of, run_folder
from mti_lightning.sweep.progress import SweepProgress
from mti_lightning.sweep.ranking import log

_REFRESHED: Final = 20  # steps between two losses that are shown, where one waits for them


class Hooks(LightningCLI):
    """LightningCLI that finds what cannot work before a run's folder exists."""

    checkpoint: dict[str, Any] | None
    # Where no logger was given the run's folder is the first version that is free.
    make_logger: Callable[[int], Logger] | None
    begun: bool  # whether the run's folder is there: then an error is no mistake of a user's

    def take_folder(self) -> None:
        """Make the run's folder, and hold it: no other run can have it.

        Raises:
            InputError: If it cannot be made, or another process has it.
        """
        trainer: Any = self.trainer
        self.begun = True
        if not trainer.is_global_zero:
            return
        try:
            if self.make_logger is not None and not trainer.fast_dev_run:
                trainer.logger = _next_version(self.make_logger)
            if folder := run_folder(trainer):
                folder.mkdir(parents=True, exist_ok=True)
                self.held = hold(folder)
        except OSError as error:
            raise InputError(unwritable(Path(error.filename or "tb_logs"), error)) from error

    def check_limit(self, name: str) -> None:
        """Make sure that some of the pictures are to be looked at.

        Raises:
            InputError: If none is.
        """
        if not getattr(self.trainer, name):
            raise InputError(f"trainer.{name}: 0 will not do: nothing would be done")

    def before_fit(self) -> None:
        """Find what cannot work before the run's folder exists."""
        if isinstance(self.model, Sweep):
            raise InputError("Sweep is run by mti predict; mti fit makes pictures")
        if isinstance(self.model, Validity):
            raise InputError("Validity is run by mti validate; mti fit makes pictures")
        if not isinstance(self.model, Objective):
            self.take_folder()
            return
        if isinstance(self.model, AtlasInversion) and self.model.chart.sweep is None:
            sweep = Path("tb_logs", self._get(self.config, "name"), "sweep.zarr")
            self.model.chart = replace(self.model.chart, sweep=str(sweep))
        trainer: Any = self.trainer
        for callback in trainer.callbacks:
            goes_on = self.make_logger is not None or self._get(self.config, "ckpt_path")
            if isinstance(callback, Results) and not goes_on:
                callback.check(trainer)
            if isinstance(callback, AtlasLog):
                callback.open_maps(self.model)
        self.model.set_up(trainer, self.datamodule)
        # Of a short epoch at least the last step is logged; else Lightning warns.
        trainer.log_every_n_steps = min(trainer.log_every_n_steps, self.model.steps_per_epoch)
        if trainer.strategy.root_device.type != "cpu":
            trainer.callbacks = [
                _RareLoss(_REFRESHED) if isinstance(callback, ProgressBar) else callback
                for callback in trainer.callbacks
            ]
        if self.checkpoint is not None:
            self.model.on_load_checkpoint(self.checkpoint)
        self.take_folder()

    def after_fit(self) -> None:
        folder = run_folder(self.trainer)
        if folder and self.trainer.is_global_zero:
            print(folder)  # where the results are

    def before_predict(self) -> None:
        """Find what cannot work, and open the store, before the run's folder exists."""
        if not isinstance(self.model, Sweep):
            name = type(self.model).__name__
            other = "validate" if isinstance(self.model, Validity) else "fit"
            raise InputError(f"{name} is run by mti {other}; mti predict runs Sweep")
        if self.model.store_path is None:
            self.model.store_path = Path("tb_logs", self._get(self.config, "name"), "sweep.zarr")
        self.check_limit("limit_predict_batches")
        trainer: Any = self.trainer
        trainer.callbacks = [
            SweepProgress() if isinstance(callback, ProgressBar) else callback
            for callback in trainer.callbacks
        ]
        self.model.config = self._parser("predict").dump(self.config["predict"], skip_none=False)
        self.model.set_up(trainer, self.datamodule)
        self.take_folder()

    def after_predict(self) -> None:
        if not self.trainer.is_global_zero or self.model.store_path is None:
            return
        store = SweepStore(self.model.store_path)
        if loggers := loggers_of(self.trainer):
            log(store, loggers)
        for path in self.model.store_paths:
            print(path)

    def before_validate(self) -> None:
        """Find what cannot work before the run's folder exists."""
        if not isinstance(self.model, Validity):
            name = type(self.model).__name__
            other = "predict" if isinstance(self.model, Sweep) else "fit"
            raise InputError(f"{name} is run by mti {other}; mti validate runs Validity")
        self.check_limit("limit_val_batches")
        self.model.set_up(self.trainer, self.datamodule)
        self.take_folder()

    def after_validate(self) -> None:
        report = self.model.report
        for warning in report.warnings:
            print(warning, file=sys.stderr)
        for feature, verdict in report.verdicts.items():
            print(f"{report.shown(feature)}: {verdict}")
        if folder := run_folder(self.trainer):
            print(folder / "validity.md")
        if report.disbelieved:  # loudly: a script goes no further
            raise SystemExit(1)


class _RareLoss(TQDMProgressBar):
    """A bar that waits for a loss only when it shows it."""

    def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
        told = {name: float(value) for name, value in trainer.callback_metrics.items()}
        return super().get_metrics(trainer, pl_module) | told


def _next_version(make_logger: Callable[[int], Logger]) -> Logger:
    """Make the first folder that is not there: looking for it, two runs may find the same."""
    folder = Path(str(make_logger(0).log_dir)).parent
    version = max(map(version_of, versions(folder)), default=-1)
    while True:
        version += 1
        try:
            (folder / f"version_{version}").mkdir(parents=True)
        except FileExistsError:
            continue
        return make_logger(version)
