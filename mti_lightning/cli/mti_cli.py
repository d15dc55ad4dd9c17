"""Lightning's command line, for runs of this package's models."""

import inspect
import logging
import os
import pkgutil
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import PurePath
from types import NoneType
from typing import Any, get_args

from jsonargparse import Namespace
from lightning import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from mti_lightning import (
    AtlasLog,
    Attribution,
    ImageBankStrategy,
    ImageParameters,
    InputError,
    Objective,
    PictureData,
    PictureLog,
    Results,
    Sweep,
    Toy,
    Validity,
)
from mti_lightning.checkpoints import Unfinished
from mti_lightning.cli.errors import told_in_a_line, unexpected
from mti_lightning.cli.files import class_paths
from mti_lightning.cli.hooks import Hooks
from mti_lightning.cli.parser import Parser
from mti_lightning.files import MOST_BYTES, replacing
from mti_lightning.loggers import FolderOnly, run_folder
from mti_lightning.objectives.preflight import read_checkpoint
from mti_lightning.registry import check_skipped, current_path


class RunParser(Parser, LightningArgumentParser):
    """Lightning's parser, with this package's classes as what can stand at a key."""

    def classes(self) -> dict[str, list[str]]:
        bases: dict[str, tuple[type, ...]] = {
            "model": (Objective, Sweep, Validity, Toy),
            "data": (PictureData,),
            "attribution": (Attribution,),
            "image": (ImageParameters,),
        }
        return {
            key: sorted(n for base in given for n in _final(base) if not n.startswith("_"))
            for key, given in bases.items()
        }


def _final(base: type) -> list[str]:
    below: list[type] = base.__subclasses__()
    return [name for cls in below for name in _final(cls)] or [base.__name__]


def check_name(name: str) -> None:
    """Make sure that a run's folder lies under `tb_logs`.

    Raises:
        InputError: If it would not, or no file system takes its name.
    """
    path = PurePath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
        raise InputError(f"name {name!r}: give the name of a folder under tb_logs")
    if max(len(os.fsencode(part)) for part in path.parts) > MOST_BYTES:
        raise InputError(f"name {_short(name)}: too long; give {MOST_BYTES} bytes at most")


def check_nulls(given: Any, key: str) -> None:
    """Make sure that nothing is null that must not be: the parser takes null for any argument.

    Raises:
        InputError: If something is.
    """
    path, arguments = (given or {}).get("class_path"), (given or {}).get("init_args")
    if not path or not isinstance(arguments, Namespace):
        return
    taken: dict[str, inspect.Parameter] = {}
    for one in getattr(pkgutil.resolve_name(path), "__mro__", ())[:-1]:
        taken = {**inspect.signature(one.__init__).parameters, **taken}
    for name, value in vars(arguments).items():
        kind = taken[name].annotation if name in taken else Any
        if value is None and not (
            kind in (Any, inspect.Parameter.empty) or NoneType in get_args(kind)
        ):
            raise InputError(f"{key}.{name}: null will not do; leave it out for its default")
        if isinstance(value, Namespace):
            check_nulls(value, f"{key}.{name}")


def _short(text: str) -> str:
    return repr(text if len(text) < 40 else f"{text[:37]}...")


class SaveConfig(SaveConfigCallback):
    """Saves config.yaml to the run's folder, where there is one."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = run_folder(trainer)
        if folder and trainer.is_global_zero and not self.already_saved:
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(folder / self.config_filename) as part:
                part.write_text(self.parser.dump(self.config, skip_unset=False), encoding="utf-8")
        self.already_saved = True


class MtiCLI(Hooks):
    """LightningCLI with runs under `tb_logs/<name>/version_n`.

    Args:
        command: `fit`, `predict` or `validate`; only its parser is built.
        args: What stands behind it.
    """

    def __init__(self, command: str, args: Sequence[str]) -> None:
        self.command = command
        for name in ("lightning.pytorch", "lightning.fabric"):  # tips, news about accelerators
            logging.getLogger(name).setLevel(logging.WARNING)
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)  # Lightning's own
        self.begun = False
        try:
            self._run(args)
        except MisconfigurationException as error:  # also where a run has begun
            raise InputError(f"trainer: {' '.join(str(error).split())}") from error
        except Exception as error:
            if self.begun or told_in_a_line(error) is not None:
                raise
            raise InputError(unexpected(error)) from error

    def _run(self, args: Sequence[str]) -> None:
        super().__init__(
            LightningModule,
            args=[self.command, *args],
            parser_class=RunParser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_callback=SaveConfig,
            parser_kwargs={"prog": "mti"},
            trainer_defaults={
                "max_epochs": 5,
                "devices": 1,
                "log_every_n_steps": 8,
                "enable_model_summary": False,
                "callbacks": [PictureLog(), AtlasLog(), Results(), Unfinished()],
            },
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning asks self
        """Return the command with the options that it does not take."""
        of_fit = {"ckpt_path", "weights_only"}  # a sweep goes on by itself
        others = LightningCLI.subcommands()[self.command]
        return {self.command: others if self.command == "fit" else others | of_fit}

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        for path in sorted(class_paths(args, "mti_lightning")):
            if (public := current_path(path)) != path:
                raise InputError(f"class_path {path!r} will not do: it is {public} now")
        self.config = parser.parse_args(args)  # without a warning that the process has others

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        told = "The run's folder under tb_logs."
        parser.add_argument("--name", type=str, default="run", help=told)

    def _parse_ckpt_path(self) -> None:
        """Read the checkpoint before Lightning does, which does not say what is wrong with one.

        Of what it says of the model's arguments nothing is taken: it may name any class.
        """
        path = self.config[self.config.subcommand].get("ckpt_path")
        if path == "":
            raise InputError("ckpt_path '' is no file; leave it out to begin anew")
        known = path and path not in ("last", "hpc")  # others Lightning finds in the run's folder
        self.checkpoint = read_checkpoint(path) if known else None

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise InputError(f"seed_everything: {error}") from error

    def before_instantiate_classes(self) -> None:
        if not isinstance(given := self._get(self.config, "trainer"), Namespace):
            raise InputError(f"trainer: give its keys, such as max_epochs; not {given!r}")
        for key in ("model", "data"):
            check_nulls(self._get(self.config, key), key)
        check_name(self._get(self.config, "name"))
        check_skipped(self._get(self.config, "model.init_args.attribution.class_path", "") or "")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        wanted, name = self._get(self.config_init, "trainer.logger"), self._get(self.config, "name")
        barebones = self._get(self.config_init, "trainer.barebones")
        self.make_logger = None
        if wanted in (None, True) and not barebones:

            def make(version: int | None = None) -> Logger:
                return TensorBoardLogger("tb_logs", name, version, default_hp_metric=False)

            self.make_logger, kwargs["logger"] = make, make()
        elif wanted in (False, []) or barebones:
            self.make_logger = partial(FolderOnly, "tb_logs", name)
            kwargs["logger"] = self.make_logger(0)
        if barebones:  # the run's folder is made, and nothing logged
            kwargs |= {"logger": False, "log_every_n_steps": 0}
        try:
            if self._shares_bank():
                kwargs["strategy"] = ImageBankStrategy()
            return super().instantiate_trainer(**kwargs)
        except MemoryError as error:
            raise InputError("trainer: there is not enough memory for so many devices") from error
        except (ValueError, TypeError, ImportError, MisconfigurationException) as error:
            raise InputError(f"trainer: {' '.join(str(error).split())}") from error

    def _shares_bank(self) -> bool:
        """Return whether several devices are to optimise an image bank, no matter how."""
        given = {
            name: self._get(self.config_init, f"trainer.{name}")
            for name in ("accelerator", "devices", "num_nodes", "strategy")
        }
        if not isinstance(self.model, Objective) or given["strategy"] != "auto":
            return False
        return Trainer(**given, logger=False, enable_checkpointing=False).world_size > 1
