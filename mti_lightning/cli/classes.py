"""Which classes may be named by their paths: to import a module is to run it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Final

from jsonargparse import set_parsing_settings
from jsonargparse._common import parsing_settings  # nothing public gives them back
from lightning import Callback, LightningDataModule, LightningModule
from lightning.pytorch.loggers import Logger
from torch.optim import Optimizer

from mti_lightning.attribution.methods import Attribution
from mti_lightning.cli.files import typed_packages
from mti_lightning.images.parameters import ImageParameters
from mti_lightning.registry import ATTRIBUTIONS, BACKBONES

_OFFERED: Final = {"mti_lightning", "lightning", "torch.optim", "timm.optim", "datetime.timedelta"}
_BASES: Final = (
    *(LightningModule, LightningDataModule, Callback, Logger, Optimizer),
    *(Attribution, ImageParameters),
)


@contextmanager
def naming_classes(arguments: Sequence[str]) -> Iterator[None]:
    """Have configurations name no class whose module would be imported for them.

    They may name those of this package, its plugins and Lightning, optimizers, and what is imported
    already of the kinds that are asked for. What someone types is theirs.

    Args:
        arguments: Those of the command line.
    """
    points = (point for group in (BACKBONES, ATTRIBUTIONS) for point in entry_points(group=group))
    plugins = {point.module.partition(".")[0] for point in points}
    known = {cls.__module__ for cls in _below(*_BASES)}
    allowed = _OFFERED | plugins | known | typed_packages(arguments)
    before = dict(parsing_settings)
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=sorted(allowed))
    try:
        yield
    finally:
        parsing_settings.update(before)


def _below(*bases: type) -> Iterator[type]:
    for base in bases:
        subclasses: list[type] = base.__subclasses__()
        yield from subclasses
        yield from _below(*subclasses)
