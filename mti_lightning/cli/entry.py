"""The command line: `mti fit`, `predict`, `validate`, `rank`, `sheet`, `layers` and `plugins`."""

import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Never

from jsonargparse import Namespace
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from mti_lightning.atlas.callback import AtlasLog
from mti_lightning.atlas.inversion import AtlasInversion
from mti_lightning.attribution.methods import Attribution
from mti_lightning.backbone import Backbone
from mti_lightning.backbone.layers import layer_lines, usable_layers
from mti_lightning.callbacks import PictureLog, Results
from mti_lightning.cli import plugin_report
from mti_lightning.cli.errors import add_place, in_one_line, name_neighbours
from mti_lightning.compose import contact_sheet
from mti_lightning.data.base import PictureData
from mti_lightning.errors import InputError, MtiError, nearest
from mti_lightning.images.parameters import ImageParameters
from mti_lightning.log import run_folder, show
from mti_lightning.objectives.base import Objective
from mti_lightning.objectives.preflight import read_checkpoint
from mti_lightning.objectives.turns import ImageBankStrategy
from mti_lightning.registry import (
    check_skipped,
    find_plugins,
    layers_of_interest,
    load_plugins,
    note_skipped,
)
from mti_lightning.superposition.toys import Toy
from mti_lightning.sweep.measures import MEASURES
from mti_lightning.sweep.module import Sweep
from mti_lightning.sweep.progress import SweepProgress
from mti_lightning.sweep.ranking import log, make_ranking
from mti_lightning.sweep.store import SweepStore
from mti_lightning.validity.module import Validity

_COMMANDS = ("fit", "predict", "validate", "rank", "sheet", "layers", "plugins")


def _final(base: type) -> list[str]:
    below: list[type] = base.__subclasses__()
    return [name for cls in below for name in _final(cls)] or [base.__name__]


def _classes() -> dict[str, list[str]]:
    """Return what can stand at the keys that take a class."""
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


class Parser(LightningArgumentParser):
    """Lightning's parser: nothing is abbreviated, and an error takes a line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def error(self, message: str, ex: Exception | None = None) -> Never:
        parser = getattr(ex, "subcommand_parser", self)
        message = name_neighbours(message, [action.dest for action in parser._actions])  # noqa: SLF001
        if not self.exit_on_error:  # a class inside: the outer parser reports what it says
            super().error(message, ex)
        raise _own_error(ex) or InputError(in_one_line(message, _classes()))


class SaveConfig(SaveConfigCallback):
    """Saves config.yaml to the run's folder, where there is one."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.loggers:
            super().setup(trainer, pl_module, stage)


class MtiCLI(LightningCLI):
    """LightningCLI with runs under `tb_logs/<name>/version_n`."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return each subcommand with the options that it does not take."""
        others = LightningCLI.subcommands()
        of_fit = {"ckpt_path", "weights_only"}  # a sweep goes on by itself
        return {"fit": others["fit"]} | {n: others[n] | of_fit for n in ("predict", "validate")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        told = "The run's folder under tb_logs."
        parser.add_argument("--name", type=str, default="run", help=told)

    def _parse_ckpt_path(self) -> None:
        """Read the checkpoint before Lightning does, which does not say what is wrong with one."""
        path = self.config[self.config.subcommand].get("ckpt_path")
        known = path and path not in ("last", "hpc")  # others Lightning finds in the run's folder
        self.checkpoint = read_checkpoint(path) if known else None
        super()._parse_ckpt_path()

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise InputError(f"seed_everything: {error}") from error

    def before_instantiate_classes(self) -> None:
        if not isinstance(given := self._get(self.config, "trainer"), Namespace):
            raise InputError(f"trainer: give its keys, such as max_epochs; not {given!r}")
        check_skipped(self._get(self.config, "model.init_args.attribution.class_path", "") or "")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        if self._get(self.config_init, "trainer.logger") in (None, True):
            name = self._get(self.config, "name")
            kwargs["logger"] = TensorBoardLogger("tb_logs", name=name, default_hp_metric=False)
        try:
            if self._shares_bank():
                kwargs["strategy"] = ImageBankStrategy()
            return super().instantiate_trainer(**kwargs)
        except (ValueError, MisconfigurationException) as error:
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

    def before_fit(self) -> None:
        """Find what cannot work before the run's folder exists."""
        if isinstance(self.model, Sweep):
            raise InputError("Sweep is run by mti predict; mti fit makes pictures")
        if isinstance(self.model, Validity):
            raise InputError("Validity is run by mti validate; mti fit makes pictures")
        if not isinstance(self.model, Objective):
            return
        if isinstance(self.model, AtlasInversion) and self.model.chart.sweep is None:
            sweep = Path("tb_logs", self._get(self.config, "name"), "sweep.zarr")
            self.model.chart = replace(self.model.chart, sweep=str(sweep))
        trainer: Any = self.trainer
        for callback in trainer.callbacks:
            if isinstance(callback, Results) and not self._get(self.config, "ckpt_path"):
                callback.check(trainer)
            if isinstance(callback, AtlasLog):
                callback.open_maps(self.model)
        self.model.set_up(trainer, self.datamodule)
        if self.checkpoint is not None:
            self.model.on_load_checkpoint(self.checkpoint)

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
        trainer: Any = self.trainer
        trainer.callbacks = [
            SweepProgress() if isinstance(callback, ProgressBar) else callback
            for callback in trainer.callbacks
        ]
        self.model.config = self._parser("predict").dump(self.config["predict"], skip_none=False)
        self.model.set_up(trainer, self.datamodule)

    def after_predict(self) -> None:
        if not self.trainer.is_global_zero or self.model.store_path is None:
            return
        store = SweepStore(self.model.store_path)
        if isinstance(self.trainer.logger, TensorBoardLogger):
            log(store, self.trainer.logger.experiment)
        print(store.path)

    def before_validate(self) -> None:
        """Find what cannot work before the run's folder exists."""
        if not isinstance(self.model, Validity):
            name = type(self.model).__name__
            other = "predict" if isinstance(self.model, Sweep) else "fit"
            raise InputError(f"{name} is run by mti {other}; mti validate runs Validity")
        self.model.set_up(self.trainer, self.datamodule)

    def after_validate(self) -> None:
        report = self.model.report
        for warning in report.warnings:
            print(f"do not believe: {warning}", file=sys.stderr)
        for feature, verdict in report.verdicts.items():
            print(f"{feature}: {verdict}")
        if self.trainer.loggers and self.trainer.log_dir:
            print(Path(self.trainer.log_dir, "validity.md"))
        if report.disbelieved:  # loudly: a script goes no further
            raise SystemExit(1)


def make_rank(args: Sequence[str]) -> None:
    """Run `mti rank`."""
    parser = Parser(prog="mti rank", description="The top pictures of a sweep, by any measure.")
    parser.add_argument("sweep", help="The sweep's folder, such as tb_logs/NAME/sweep.zarr.")
    parser.add_argument(
        "--feature",
        help="One of its features; without it, all are ranked, by a high percentile of the measure "
        "over the pictures.",
    )
    parser.add_argument(
        "--by", default="tension", help=f"{', '.join(MEASURES)}; with - before it the low end."
    )
    parser.add_argument(
        "--count", type=int, help="Rows at most; by default 20 pictures, or all features."
    )
    parser.add_argument("--out", default="rank.csv", help="The table to write.")
    parser.add_argument("--sheet", help="A contact sheet to write, such as rank.png.")
    parser.add_argument("--overwrite", action="store_true", help="Replace what is there.")
    given = parser.parse_args(list(args))
    out, sheet = Path(given.out), Path(given.sheet) if given.sheet else None
    make_ranking(given.sweep, given.feature, given.by, given.count, out, sheet, given.overwrite)
    for path in filter(None, (out, sheet)):
        print(path)


def make_sheet(args: Sequence[str]) -> None:
    """Run `mti sheet`."""
    parser = Parser(prog="mti sheet", description="Lay the pictures of several runs side by side.")
    parser.add_argument(
        "runs", nargs="+", help="Folders of finished runs; of a folder of versions the latest."
    )
    parser.add_argument("--out", default="sheet.png", help="The picture to write.")
    parser.add_argument("--rows", type=int, default=16, help="Rows at most.")
    parser.add_argument("--overwrite", action="store_true", help="Replace the picture.")
    given = parser.parse_args(list(args))
    out = Path(given.out)
    if out.exists() and not given.overwrite:
        raise InputError(f"{out} exists; give --out another name, or --overwrite")
    picture = contact_sheet([Path(run) for run in given.runs], given.rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        picture.save(out)
    except (ValueError, OSError) as error:
        raise InputError(f"{out} cannot be written: {error}") from error
    print(out)


def show_layers(args: Sequence[str]) -> None:
    """Run `mti layers`."""
    parser = Parser(
        prog="mti layers",
        description="The layers of a model, in the order in which pictures come to their end. What "
        "stands under attribution_layer and features is as a configuration takes it, with a "
        "channel's index for CHANNEL. After an activation function absent looks like vetoed.",
    )
    parser.add_argument("model", help="A timm model, or one of a plugin.")
    parser.add_argument("--weights", default="random", help="pretrained, random, or a file.")
    given = parser.parse_args(list(args))
    print("\n".join(layer_lines(usable_layers(Backbone(given.model, given.weights)))))
    if named := layers_of_interest(given.model):
        print(f"of interest: {', '.join(named)}")


def show_plugins(args: Sequence[str]) -> None:
    """Run `mti plugins` and `mti plugins check NAME`."""
    parser = Parser(
        prog="mti plugins",
        description="Without arguments: the plugins that are installed, and whether they pass the "
        "conformance kit. mti plugins check NAME: each check of one, by its name, its "
        "distribution's or its model's.",
    )
    parser.add_argument("action", nargs="?", choices=["check"], help="check, or nothing.")
    parser.add_argument("plugin", nargs="?", help="What to check.")
    given = parser.parse_args(list(args))
    plugins = find_plugins(Attribution)
    if given.action is None:
        for line in plugin_report.overview(plugins):
            print(line, flush=True)
        return
    if given.plugin is None:
        raise InputError("mti plugins check: name a plugin; mti plugins lists them")
    failed = False
    for plugin in plugin_report.find(given.plugin, plugins):
        print(plugin, flush=True)
        for check in plugin_report.run_checks(plugin):
            failed |= not check.ok
            print(plugin_report.check_line(check), flush=True)
    if failed:
        raise SystemExit(1)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line with `args`, by default those of the process."""
    given = list(sys.argv[1:] if args is None else args)
    try:
        show()
        if given[:1] == ["plugins"]:  # it says itself what is broken
            show_plugins(given[1:])
            return
        load_plugins(Attribution)
        _check_command(given)
        others = {"rank": make_rank, "sheet": make_sheet, "layers": show_layers}
        if given[0] in others:
            others[given[0]](given[1:])
            return
        for name in ("lightning.pytorch", "lightning.fabric"):  # tips, news about accelerators
            logging.getLogger(name).setLevel(logging.WARNING)
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)  # Lightning's own
        MtiCLI(
            LightningModule,
            args=args if args is None else given,
            parser_class=Parser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={
                "prog": "mti",
                "description": "mti fit --config FILE makes pictures; mti predict --config FILE "
                "sweeps a data set; mti validate --config FILE says how far to believe pictures; "
                "mti rank SWEEP lists its top pictures; mti sheet RUN ... lays finished runs side "
                "by side; mti layers MODEL lists a model's layers; mti plugins what is installed.",
            },
            trainer_defaults={
                "max_epochs": 5,
                "devices": 1,
                "log_every_n_steps": 8,
                "enable_model_summary": False,
                "callbacks": [PictureLog(), AtlasLog(), Results()],
            },
        )
    except Exception as error:
        cause = _own_error(error)
        if cause is None:
            raise
        message = str(cause) + note_skipped(str(cause))
        if isinstance(cause, InputError):
            message = add_place(message, given)
        print(f"mti: error: {message}", file=sys.stderr)
        raise SystemExit(2) from error


def _check_command(given: Sequence[str]) -> None:
    offer = (
        "mti fit --config FILE, mti predict --config FILE, mti validate --config FILE, "
        "mti rank SWEEP, mti sheet RUN ..., mti layers MODEL, or mti plugins; mti --help explains"
    )
    if not given or given[0].startswith("-"):
        if given[:1] not in (["-h"], ["--help"]):
            raise InputError(f"give a command: {offer}")
    elif given[0] not in _COMMANDS:
        near = nearest(given[0], _COMMANDS)
        raise InputError(f"there is no command {given[0]!r}{near or f'; give {offer}'}")


def _own_error(error: BaseException | None) -> MtiError | None:
    """Find this package's error among the causes: jsonargparse wraps what a constructor raises."""
    while error is not None and not isinstance(error, MtiError):
        error = error.__cause__ or error.__context__
    return error
