"""The command line: `mti fit --config FILE` and `mti sheet RUN ...`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Never

from jsonargparse import ArgumentParser
from lightning import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from mti_lightning import data, objectives, vetoed_shapes  # noqa: F401  their classes go by short names
from mti_lightning.attribution import Attribution
from mti_lightning.callbacks import PictureLog, Results
from mti_lightning.compose import contact_sheet
from mti_lightning.errors import InputError, MtiError
from mti_lightning.registry import load_plugins

_MESSAGE_LINES = 6


class Parser(LightningArgumentParser):
    """Lightning's parser: nothing is abbreviated, and an error takes a few lines."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def error(self, message: str, ex: Exception | None = None) -> Never:
        cause = _own_error(ex)
        lines = [line for line in (str(cause) if cause else message).splitlines() if line.strip()]
        _fail("\n".join(lines[:_MESSAGE_LINES]))


class MtiCLI(LightningCLI):
    """LightningCLI with runs under `tb_logs/<name>/version_n`."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"fit": LightningCLI.subcommands()["fit"]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", default="run", help="the run's folder under tb_logs")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        if self._get(self.config_init, "trainer.logger") in (None, True):
            name = self._get(self.config, "name")
            kwargs["logger"] = TensorBoardLogger("tb_logs", name=name, default_hp_metric=False)
        return super().instantiate_trainer(**kwargs)


def make_sheet(args: Sequence[str]) -> None:
    """Run `mti sheet`."""
    parser = ArgumentParser(prog="mti sheet", description="Lay the pictures of several runs side by side.")
    parser.add_argument("runs", nargs="+", help="folders of finished runs; of a folder of versions the latest is taken")
    parser.add_argument("--out", default="sheet.png", help="the picture to write")
    parser.add_argument("--rows", type=int, default=16, help="rows at most")
    parser.add_argument("--overwrite", action="store_true", help="replace the picture if it exists")
    given = parser.parse_args(list(args))
    out = Path(given.out)
    if out.exists() and not given.overwrite:
        raise InputError(f"{out} exists; give --out another name, or --overwrite")
    picture = contact_sheet([Path(run) for run in given.runs], given.rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(out)
    print(out)  # noqa: T201  what a script wants to know


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line with `args`, by default those of the process."""
    given = list(sys.argv[1:] if args is None else args)
    try:
        load_plugins(Attribution)
        if given[:1] == ["sheet"]:
            make_sheet(given[1:])
            return
        MtiCLI(
            LightningModule,
            args=args if args is None else list(args),
            parser_class=Parser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "mti", "description": "mti fit: make pictures; mti sheet: lay runs side by side"},
            trainer_defaults={
                "max_epochs": 4,
                "log_every_n_steps": 8,
                "enable_model_summary": False,
                "callbacks": [PictureLog(), Results()],
            },
        )
    except Exception as error:
        cause = _own_error(error)
        if cause is None:
            raise
        _fail(str(cause))


def _own_error(error: BaseException | None) -> MtiError | None:
    """Find this package's error among the causes: jsonargparse and Lightning wrap what a constructor raises."""
    while error is not None and not isinstance(error, MtiError):
        error = error.__cause__ or error.__context__
    return error


def _fail(message: str) -> Never:
    print(f"mti: error: {message}", file=sys.stderr)  # noqa: T201
    raise SystemExit(2)
