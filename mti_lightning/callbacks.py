"""Callbacks: pictures and numbers to loggers, results to disk."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import torch
from lightning import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor

from mti_lightning.attribution.signs import Sign
from mti_lightning.compose import composite, grid, opacity, to_image, within
from mti_lightning.errors import InputError, RunError
from mti_lightning.files import file_name, replacing
from mti_lightning.images.views import whole
from mti_lightning.locks import Hold, hold
from mti_lightning.log import log_warning
from mti_lightning.loggers import (
    log_numbers,
    log_picture,
    loggers_of,
    put_summary,
    run_folder,
    tensorboards,
)
from mti_lightning.objectives.base import Objective
from mti_lightning.objectives.metrics import warn_of_failures
from mti_lightning.signals import Stopped
from mti_lightning.tables import write_table

_MOST_SHOWN = 64
_WIDEST = 2048  # pixels of a row of pictures; full size they are on disk
_MOST_CURVES = 16


def _shown(objective: Objective, columns: int) -> tuple[Tensor, Tensor]:
    """Return the first pictures of the bank and their opacity, as large as a row has room for."""
    size = within(objective.canvas, _WIDEST / min(columns, len(objective.entries)))
    pictures, alphas, count = [], [], 0
    for chunk in objective.chunks:
        pictures.append(chunk(size).cpu())
        alphas.append(opacity(chunk.saliency(size)).cpu())
        count += len(chunk.entries)
        if count >= _MOST_SHOWN:
            break
    return torch.cat(pictures)[:_MOST_SHOWN], torch.cat(alphas)[:_MOST_SHOWN]


def _beside_sources(objective: Objective, rows: Tensor, columns: int) -> tuple[Tensor, int]:
    """Put the first pictures beside their sources, if they have some; return how many to a row."""
    if objective.sources is None:
        return rows, columns
    faces = len(objective.signs)  # images made of each source, if it has both signs
    made: dict[tuple[int | None, int, int], dict[Sign | None, Tensor]] = {}
    for entry, row in zip(objective.entries, rows, strict=False):
        made.setdefault((entry.source, entry.feature, entry.seed), {})[entry.sign] = row
    height, width = rows.shape[2:]
    sources = whole(objective.sources[[key[0] for key in made]], (height, width))
    blank = torch.ones_like(rows[0])
    rows = torch.stack(
        [
            row
            for source, found in zip(sources, made.values(), strict=True)
            for row in (source, *(found.get(sign, blank) for sign in objective.signs))
        ]
    )
    return rows, (faces + 1) * (9 // (faces + 1))


class PictureLog(Callback):
    """Shows the pictures and their measures in the run's loggers at the end of each epoch.

    Under `pictures` they are plain; under `pictures_where_it_looked` transparent where the
    objective did not look, beside their source and, for `SignedInversion`, + and − side by side.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loggers = loggers_of(trainer)
        if not loggers or not isinstance(pl_module, Objective):
            return
        columns = 8
        with torch.no_grad():
            pictures, alphas = _shown(pl_module, columns)
        epoch, entries = trainer.current_epoch, pl_module.entries
        log_picture(loggers, "pictures", to_image(grid(pictures, columns)), epoch)
        rows, columns = _beside_sources(pl_module, composite(pictures, alphas), columns)
        log_picture(loggers, "pictures_where_it_looked", to_image(grid(rows, columns)), epoch)
        numbers, writers = {}, tensorboards(loggers)
        for name, values in pl_module.measure().items():
            for kind in dict.fromkeys(entry.objective for entry in entries):
                chosen = values[[entry.objective == kind for entry in entries]]
                if not chosen.isnan().all():
                    numbers[f"{name}/{kind}"] = float(chosen.nanmean())
                    for writer in writers:
                        writer.add_histogram(f"{name}/{kind}", chosen[~chosen.isnan()], epoch)
            for entry, value in list(zip(entries, values.tolist(), strict=True))[:_MOST_CURVES]:
                if not math.isnan(value):
                    of_class = file_name(pl_module.class_names[entry.feature])
                    tag = "_".join(filter(None, (entry.id, of_class)))
                    numbers[f"{name}_by_picture/{tag}"] = value
        log_numbers(loggers, numbers, epoch)
        for writer in writers:
            writer.flush()


class Results(Callback):
    """Writes the pictures and their numbers to the run's folder when it ends, also early.

    `pictures/<id>.png` (RGBA), `sources/<id>.png`, `results.csv` and `sources.csv`; both tables are
    measured on clean pictures, without views.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self._hold: Hold | None = None
        self._is_written = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Now: all processes have to ask for it together, and not all meet with an exception.
        self.folder = run_folder(trainer)
        self._is_written = False
        if stage == "fit" and not trainer.ckpt_path:
            self.check(trainer)
        if stage == "fit" and self.folder and trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._hold = hold(self.folder)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._hold = None

    @staticmethod
    def check(trainer: Trainer) -> None:
        """Make sure that no other run's results are overwritten.

        Raises:
            InputError: If they would be.
        """
        folder = run_folder(trainer)
        if folder and (folder / "results.csv").exists():
            raise InputError(
                f"{folder} holds the results of another run, which would be overwritten; give "
                "--trainer.logger.version "
                "another number or leave it out, or continue that run with --ckpt_path"
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, pl_module)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if not trainer.global_step or isinstance(exception, InputError):  # before, all is noise
            return
        if trainer.world_size > 1 and not isinstance(exception, Stopped):
            log_warning("no pictures are written: those of other processes are not at hand")
            return
        try:
            self._write(trainer, pl_module)
        except (RunError, OSError) as error:  # of what stopped the run, more is to be told
            log_warning(str(error))

    def _write(self, trainer: Trainer, objective: LightningModule) -> None:
        folder = self.folder
        if folder is None or not isinstance(objective, Objective) or not len(objective.bank):
            return
        if not trainer.is_global_zero or self._is_written:
            return
        self._is_written, written = True, Written(folder)
        with torch.no_grad():
            for chunk in objective.chunks:
                for entry, picture, alpha in zip(
                    chunk.entries, chunk(), opacity(chunk.saliency()), strict=True
                ):
                    written.picture(f"pictures/{entry.id}.png", to_image(picture, alpha))
        names = [
            {
                "id": entry.id,
                "source": "" if entry.source is None else objective.source_keys[entry.source],
                "feature": str(objective.features[entry.feature]),
                "class": objective.class_names[entry.feature],
                "objective": entry.objective,
                "seed": entry.seed,
            }
            for entry in objective.entries
        ]
        measures = objective.measure()
        warn_of_failures(objective.entries, measures["cosine"])
        rows = [{**name, **row} for name, row in zip(names, _rows(measures), strict=True)]
        for row in rows:
            row["file"] = written.name(f"pictures/{row['id']}.png")
        if objective.sources is not None:
            self._write_sources(written, objective)
        written.table("results.csv", rows)
        settings = {
            "objective": type(objective).__name__,
            "backbone": objective.backbone.name,
            "attribution_layer": str(objective.layer),
            "features": ", ".join(objective.shown)[:200],
            "steps": objective.steps_per_epoch * trainer.current_epoch,
            "canvas": "x".join(map(str, objective.canvas)),
            "image": type(objective.image).__name__,
            "seed": objective.seed,
        }
        means = {
            f"final/{name}": float(values.nanmean())
            for name, values in measures.items()
            if not values.isnan().all()
        }
        loggers = loggers_of(trainer)
        for logger in loggers:
            put_summary(logger, settings, means, trainer.current_epoch)
        for writer in tensorboards(loggers):
            writer.flush()
        written.check()

    def _write_sources(self, written: "Written", objective: Objective) -> None:
        assert objective.sources is not None
        keys, files = objective.source_keys, []
        for index, (key, picture) in enumerate(zip(keys, objective.sources, strict=True)):
            files.append(f"sources/{index:04d}_{file_name(key, 80)}.png")
            written.picture(files[-1], to_image(picture))
        pairs, measures = objective.measure_sources()
        measures.pop("cosine")
        rows = [
            {
                "source": keys[source],
                "feature": str(objective.features[feature]),
                "class": objective.class_names[feature],
                **row,
                "file": written.name(files[source]),
            }
            for (source, feature), row in zip(pairs, _rows(measures), strict=True)
        ]
        written.table("sources.csv", rows)


@final
class Written:
    """The files of a run's folder: one that cannot be written costs none of the others."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count, self._missing = 0, dict[str, str]()

    def picture(self, name: str, picture: Image.Image) -> None:
        """Write a PNG."""
        with self._counted(name) as path, replacing(path) as part:
            path.parent.mkdir(exist_ok=True)
            picture.save(part, compress_level=1)  # half the time, for 6% more bytes

    def table(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Write a table."""
        with self._counted(name) as path:
            write_table(path, rows)

    def name(self, name: str) -> str:
        """Return the name of a file that was to be written, or nothing if it was not."""
        return "" if name in self._missing else name

    def check(self) -> None:
        """Make sure that all were written.

        Raises:
            RunError: If one was not.
        """
        if self._missing:
            reason = next(iter(self._missing.values()))
            raise RunError(f"{reason} ({len(self._missing)} of {self._count} files are missing)")

    @contextmanager
    def _counted(self, name: str) -> Iterator[Path]:
        self._count += 1
        try:
            yield self.folder / name
        except RunError as error:
            self._missing[name] = str(error)


def _rows(columns: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Turn columns into rows; what does not exist stays empty."""
    lists = [
        [("" if math.isnan(value) else f"{value:.6g}") for value in column.tolist()]
        for column in columns.values()
    ]
    return [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]
