"""`mti atlas`: the atlas of a feature over a folder of pictures, in one command."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mti_lightning.cli.parser import Parser
from mti_lightning.errors import InputError, check_range
from mti_lightning.files import at_home, check_output, file_name, read_text, replacing, versions
from mti_lightning.locks import hold, hold_in_turn

if TYPE_CHECKING:  # they import PyTorch
    from mti_lightning.backbone import Backbone
    from mti_lightning.features.feature import Feature

_LONGEST: Final = 80  # bytes of a model's or a layer's name in a folder's


def run(args: Sequence[str]) -> None:
    """Run `mti atlas`."""
    from mti_lightning.cli.discovery import with_plugins  # imports PyTorch

    parser = Parser(
        prog="mti atlas",
        description="A map of what in a folder's pictures excites a feature, and one of what "
        "inhibits it, with an icon and photographs for each cell. Says first what it takes, and "
        "writes the YAML by which mti fit --config makes the same. Stopped, the same command goes "
        "on. Of two layers, or two networks, the cells are linked by the pictures they share.",
    )
    parser.add_argument("folder", help="The pictures, those in folders below it, too.")
    parser.add_network(several="Two are shown side by side.")
    parser.add_argument(
        "--feature",
        required=True,
        action="append",
        help="Such as 'fc:Egyptian cat' or layer3.0.act2/input:12@mean; several share a map.",
    )
    parser.add_argument(
        "--layer",
        action="append",
        help="The attribution layer; by default the last on a fine grid that feeds them. Two are "
        "shown side by side.",
    )
    parser.add_argument("--steps", type=int, default=100, help="Steps for each icon.")
    parser.add_argument("--seed", type=int, default=0, help="Of the noise that icons start from.")
    parser.add_argument("--accelerator", default="auto", help="cpu, gpu, mps or auto.")
    parser.add_argument("--name", default="atlas", help="The folder of results, under tb_logs.")
    parser.add_argument("--cost", action="store_true", help="Say what it takes, and stop there.")
    with with_plugins():
        given = parser.parse_args(list(args))
        check_range(1, steps=given.steps)
        configs = _prepare_all(given)
    if given.cost:
        return
    from mti_lightning.cli.runs import fit

    for config in configs:
        on = _unfinished(config.parent)
        if config is configs[-1] or on or not _is_finished(config.parent):
            fit(["--config", str(config), *on])


def _prepare_all(given: Any) -> list[Path]:
    """Write the configuration of the atlas, or of each of two, the second beside the first."""
    from mti_lightning.backbone import Backbone
    from mti_lightning.features.classes import in_network, read_feature

    models, layers = given.model, given.layer or [None]
    count = max(len(models), len(layers))
    if count > 2 or not {len(models), len(layers)} <= {1, count}:
        raise InputError(
            f"{len(models)} --model and {len(layers)} --layer: give one, or two to be shown side "
            "by side"
        )
    made = [
        Backbone(model, given.weights, arguments=given.arguments, labels=given.labels)
        for model in models
    ]
    read = [read_feature(feature, made[0]) for feature in given.feature]
    differ = [*models] if len(models) > 1 else [*layers]
    configs: list[Path] = []
    for number in range(count):
        name = given.name if count == 1 else f"{given.name}_{file_name(differ[number], _LONGEST)}"
        backbone = made[min(number, len(made) - 1)]
        features = [in_network(feature, made[0], backbone) for feature in read]
        layer = layers[min(number, len(layers) - 1)]
        beside = str(configs[0].parent) if configs else None
        configs.append(_prepare(given, name, backbone, features, layer, beside))
    return configs


def _prepare(
    given: Any,
    name: str,
    backbone: "Backbone",
    features: "Sequence[Feature]",
    layer_name: str | None,
    beside: str | None,
) -> Path:
    """Say what an atlas takes, and write its configuration."""
    import yaml  # type: ignore[import-untyped]
    from lightning import Trainer

    from mti_lightning.atlas.folder import cost, kept, settings, some_of
    from mti_lightning.atlas.inversion import AtlasInversion
    from mti_lightning.atlas.map import Chart
    from mti_lightning.backbone import Layer
    from mti_lightning.cli.mti_cli import check_name
    from mti_lightning.data.modules import PictureFolder
    from mti_lightning.explanation.choose import choose_layer
    from mti_lightning.features.bound import BoundFeature
    from mti_lightning.log import log_info
    from mti_lightning.sweep.module import Sweep

    check_name(name)
    folder = at_home(given.folder).absolute()
    data = PictureFolder(folder, recursive=True)
    data.use(backbone.preprocessing)
    layer, why = Layer.parse(layer_name or "."), f"attributed to {layer_name}"
    few = some_of(data)
    if layer_name is None:
        bound = [BoundFeature(feature, backbone) for feature in features]
        layer, why = choose_layer(backbone, few, bound)
    log_info(why)
    named = [*map(str, features)]
    keep = kept(backbone, layer, len(data.pictures), len(named))
    of = (backbone, named, str(layer))
    AtlasInversion(*of, chart=Chart(apart=True))  # what is wrong is told now,
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing"), False)
    Trainer(accelerator=given.accelerator, enable_model_summary=False, **quiet)  # and of this, too
    sweep = Sweep(*of, keep=keep, rivals=0)
    log_info(str(cost(sweep, few, len(data.pictures), given.steps)))
    made = settings(
        name,
        backbone,
        named,
        str(layer),
        folder,
        keep,
        given.steps,
        given.seed,
        given.accelerator,
        beside,
    )
    config = Path("tb_logs", name, "atlas.yaml")
    text = yaml.safe_dump(made, sort_keys=False, allow_unicode=True)
    check_output(config, overwrite=True)
    with hold_in_turn(config):
        if config.is_file() and read_text(config) != text:
            raise InputError(f"{config} is of another atlas; give --name, or move its folder away")
        with replacing(config) as part:
            part.write_text(text, encoding="utf-8")
    print(config)
    return config


def _is_finished(folder: Path) -> bool:
    from mti_lightning.atlas.beside import finished

    try:
        finished(folder)
    except InputError:
        return False
    return True


def _unfinished(folder: Path) -> list[str]:
    """Return how to go on with the last run of an atlas, if it was stopped.

    Raises:
        InputError: If another process is at it.
    """
    if not (runs := versions(folder)):
        return []
    last = runs[-1]
    with hold(last):
        # One that was killed after its last epoch has no unfinished checkpoint, and no results.
        kept = "unfinished.ckpt" if (last / "results.csv").is_file() else "*.ckpt"
        found = [path for path in (last / "checkpoints").glob(kept) if path.name[0] != "."]
    newest = max(found, key=lambda path: path.stat().st_mtime_ns, default=None)
    return [] if newest is None else ["--ckpt_path", str(newest)]
