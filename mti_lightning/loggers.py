"""Pictures, figures, texts and numbers, to every logger of a run that can take them.

Any of Lightning's loggers takes numbers. What takes pictures is registered below: TensorBoard,
Weights & Biases and MLflow. A logger of another kind is taught by `put_picture.register`. All is on
the disk as well, so a run without a logger that takes pictures has them, too.
"""

import re
from collections.abc import Iterable, Mapping
from functools import singledispatch
from pathlib import Path
from typing import Any, final

import numpy as np
from lightning import Trainer
from lightning.pytorch.loggers import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch.utils.tensorboard import SummaryWriter


@final
class FolderOnly(Logger):
    """A run's folder and nothing else: what `--trainer.logger false` stands for.

    Args:
        save_dir: The folder of all runs.
        name: That of runs of one name.
        version: The run's number.
    """

    def __init__(self, save_dir: str, name: str, version: int = 0) -> None:
        super().__init__()
        self._folder, self._name, self._version = save_dir, name, version

    @property
    def save_dir(self) -> str:
        return self._folder

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> int:
        return self._version

    @property
    def log_dir(self) -> str:
        return str(Path(self._folder, self._name, f"version_{self._version}"))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        pass

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass


def loggers_of(trainer: Trainer) -> list[Logger]:
    """Return a run's loggers in its first process, and none in the others."""
    return list(trainer.loggers) if trainer.is_global_zero else []


def tensorboards(loggers: Iterable[Logger]) -> list[SummaryWriter]:
    """Return the writers of those loggers that are TensorBoard, for what it alone can show."""
    return [one.experiment for one in loggers if isinstance(one, TensorBoardLogger)]


def take_pictures(loggers: Iterable[Logger]) -> list[Logger]:
    """Return the loggers that take pictures."""
    default = put_picture.dispatch(object)
    return [one for one in loggers if put_picture.dispatch(type(one)) is not default]


@singledispatch
def put_picture(logger: Logger, name: str, picture: Image.Image, step: int) -> None:
    """Give one logger a picture; this one takes none."""


@put_picture.register
def _(logger: TensorBoardLogger, name: str, picture: Image.Image, step: int) -> None:
    logger.experiment.add_image(name, np.asarray(picture), step, dataformats="HWC")


@put_picture.register
def _(logger: WandbLogger, name: str, picture: Image.Image, step: int) -> None:
    logger.log_image(name, [picture], step)


@put_picture.register
def _(logger: MLFlowLogger, name: str, picture: Image.Image, step: int) -> None:
    logger.experiment.log_image(logger.run_id, picture, f"{_path(name)}/{step:03d}.png")


@singledispatch
def put_text(logger: Logger, name: str, markdown: str) -> None:
    """Give one logger a text; this one takes none."""


@put_text.register
def _(logger: TensorBoardLogger, name: str, markdown: str) -> None:
    logger.experiment.add_text(name, markdown)


@put_text.register
def _(logger: WandbLogger, name: str, markdown: str) -> None:
    logger.log_text(name, ["text"], [[markdown]])


@put_text.register
def _(logger: MLFlowLogger, name: str, markdown: str) -> None:
    logger.experiment.log_text(logger.run_id, markdown, f"{_path(name)}.md")


@singledispatch
def put_summary(
    logger: Logger, settings: Mapping[str, Any], numbers: Mapping[str, float], step: int
) -> None:
    """Give one logger what a run was made with, and what came of it."""
    logger.log_hyperparams(dict(settings))
    put_numbers(logger, numbers, step)


@put_summary.register
def _(
    logger: TensorBoardLogger, settings: Mapping[str, Any], numbers: Mapping[str, float], _step: int
) -> None:
    logger.experiment.add_hparams(dict(settings), dict(numbers), run_name=".")


@singledispatch
def put_numbers(logger: Logger, numbers: Mapping[str, float], step: int) -> None:
    """Give one logger numbers."""
    logger.log_metrics(dict(numbers), step)


@put_numbers.register
def _(logger: MLFlowLogger, numbers: Mapping[str, float], step: int) -> None:
    logger.log_metrics({_path(name): value for name, value in numbers.items()}, step)


@put_numbers.register
def _(logger: CSVLogger, numbers: Mapping[str, float], step: int) -> None:
    logger.log_metrics(dict(numbers), step)
    logger.save()


def log_picture(loggers: Iterable[Logger], name: str, picture: Image.Image, step: int) -> None:
    """Show a picture in every logger that takes pictures."""
    for logger in loggers:
        put_picture(logger, name, picture, step)


def log_figure(loggers: Iterable[Logger], name: str, figure: Figure, step: int) -> None:
    """Show a figure in every logger that takes pictures."""
    if takers := take_pictures(loggers):
        log_picture(takers, name, draw(figure), step)


def draw(figure: Figure) -> Image.Image:
    """Draw a figure as a picture."""
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def log_text(loggers: Iterable[Logger], name: str, markdown: str) -> None:
    """Show a text in every logger that takes texts."""
    for logger in loggers:
        put_text(logger, name, markdown)


def log_numbers(loggers: Iterable[Logger], numbers: Mapping[str, float], step: int) -> None:
    """Put numbers into every logger."""
    for logger in loggers:
        put_numbers(logger, numbers, step)


def run_folder(trainer: Trainer) -> Path | None:
    """Return where results go, None without a logger; all processes have to ask for it together.

    That is the folder of the first logger that has one of its own; of others it is where Lightning
    puts their checkpoints.
    """
    if not trainer.loggers or trainer.fast_dev_run:  # type: ignore[attr-defined]  # keeps nothing
        return None
    first = next((one for one in trainer.loggers if one.log_dir), trainer.loggers[0])
    folder = first.log_dir
    if folder is None and trainer.is_global_zero:
        if isinstance(first, WandbLogger):
            first.experiment  # noqa: B018  before, it has no version
        version = first.version if isinstance(first.version, str) else f"version_{first.version}"
        folder = str(Path(first.save_dir or trainer.default_root_dir, str(first.name), version))
    return Path(trainer.strategy.broadcast(folder) or "")


def _path(name: str) -> str:
    """Return a name of which each part is fit for a file's."""
    parts = (re.sub(r"[^\w. -]+", "-", part).strip(". ") for part in name.split("/"))
    return "/".join(part or "-" for part in parts)
