"""Callbacks: pictures and numbers to loggers, results to disk."""

import math
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from mti_lightning.attribution.signs import Sign
from mti_lightning.compose import composite, grid, opacity, to_image, within
from mti_lightning.errors import InputError
from mti_lightning.images.views import whole
from mti_lightning.loggers import (
    log_numbers,
    log_picture,
    loggers_of,
    put_summary,
    run_folder,
    tensorboards,
)
from mti_lightning.objectives.base import Objective
from mti_lightning.objectives.chunk import file_name
from mti_lightning.objectives.metrics import warn_of_failures
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

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Now: all processes have to ask for it together, and not all meet with an exception.
        self.folder = run_folder(trainer)
        if stage == "fit" and not trainer.ckpt_path:
            self.check(trainer)

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
        if trainer.global_step and not isinstance(exception, InputError):  # before, all is noise
            self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, objective: LightningModule) -> None:
        folder = self.folder
        if folder is None or not isinstance(objective, Objective) or not len(objective.bank):
            return
        if not trainer.is_global_zero:
            return
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        with torch.no_grad():
            for chunk in objective.chunks:
                for entry, picture, alpha in zip(
                    chunk.entries, chunk(), opacity(chunk.saliency()), strict=True
                ):
                    # Twice as quick as the default, for 6% more bytes.
                    to_image(picture, alpha).save(
                        folder / "pictures" / f"{entry.id}.png", compress_level=1
                    )
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
            row["file"] = f"pictures/{row['id']}.png"
        write_table(folder / "results.csv", rows)
        if objective.sources is not None:
            self._write_sources(folder, objective)
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

    def _write_sources(self, folder: Path, objective: Objective) -> None:
        assert objective.sources is not None
        (folder / "sources").mkdir(exist_ok=True)
        keys, files = objective.source_keys, []
        for index, (key, picture) in enumerate(zip(keys, objective.sources, strict=True)):
            files.append(f"sources/{index:04d}_{file_name(key)[-80:]}.png")
            to_image(picture).save(folder / files[-1])
        pairs, measures = objective.measure_sources()
        measures.pop("cosine")
        rows = [
            {
                "source": keys[source],
                "feature": str(objective.features[feature]),
                "class": objective.class_names[feature],
                **row,
                "file": files[source],
            }
            for (source, feature), row in zip(pairs, _rows(measures), strict=True)
        ]
        write_table(folder / "sources.csv", rows)


def _rows(columns: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Turn columns into rows; what does not exist stays empty."""
    lists = [
        [("" if math.isnan(value) else f"{value:.6g}") for value in column.tolist()]
        for column in columns.values()
    ]
    return [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]
