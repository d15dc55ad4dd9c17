"""`mti atlas`: the atlas of a feature over a folder of pictures, in one command."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mti_lightning.cli.parser import Parser
from mti_lightning.errors import InputError, check_range
from mti_lightning.files import at_home, replacing


def run(args: Sequence[str]) -> None:
    """Run `mti atlas`."""
    from mti_lightning.cli.discovery import with_plugins  # imports PyTorch

    parser = Parser(
        prog="mti atlas",
        description="A map of what in a folder's pictures excites a feature, and one of what "
        "inhibits it, with an icon and photographs for each cell. Says first what it takes, and "
        "writes the YAML by which mti fit --config makes the same. Stopped, the same command goes "
        "on.",
    )
    parser.add_argument("folder", help="The pictures, those in folders below it, too.")
    parser.add_network()
    parser.add_argument(
        "--feature", required=True, help="Such as 'fc:Egyptian cat' or layer3.0.act2/input:12@mean."
    )
    parser.add_argument(
        "--layer", help="The attribution layer; by default the last on a fine grid that feeds it."
    )
    parser.add_argument("--steps", type=int, default=100, help="Steps for each icon.")
    parser.add_argument("--seed", type=int, default=0, help="Of the noise that icons start from.")
    parser.add_argument("--accelerator", default="auto", help="cpu, gpu, mps or auto.")
    parser.add_argument("--name", default="atlas", help="The folder of results, under tb_logs.")
    parser.add_argument("--cost", action="store_true", help="Say what it takes, and stop there.")
    with with_plugins():
        given = parser.parse_args(list(args))
        check_range(1, steps=given.steps)
        config = _prepare(given)
    if given.cost:
        return
    from mti_lightning.cli.runs import fit

    fit(["--config", str(config), *_unfinished(config.parent)])


def _prepare(given: Any) -> Path:
    """Say what the atlas takes, and write its configuration."""
    import yaml  # type: ignore[import-untyped]

    from mti_lightning.atlas.folder import cost, kept, settings, some_of
    from mti_lightning.backbone import Backbone, Layer
    from mti_lightning.cli.mti_cli import check_name
    from mti_lightning.data.modules import PictureFolder
    from mti_lightning.explanation.choose import choose_layer
    from mti_lightning.features.bound import BoundFeature
    from mti_lightning.features.classes import read_feature
    from mti_lightning.log import log_info
    from mti_lightning.sweep.module import Sweep

    check_name(given.name)
    folder = at_home(given.folder).absolute()
    data = PictureFolder(folder, recursive=True)
    backbone = Backbone(given.model, given.weights, arguments=given.arguments, labels=given.labels)
    feature = read_feature(given.feature, backbone)
    data.use(backbone.preprocessing)
    layer, why = Layer.parse(given.layer or "."), f"attributed to {given.layer}"
    few = some_of(data)
    if given.layer is None:
        layer, why = choose_layer(backbone, few, [BoundFeature(feature, backbone)])
    log_info(why)
    keep = kept(backbone, layer, len(data.pictures))
    sweep = Sweep(backbone, [str(feature)], str(layer), keep=keep, rivals=0)
    log_info(str(cost(sweep, few, len(data.pictures), given.steps)))
    made = settings(
        given.name,
        backbone,
        str(feature),
        str(layer),
        folder,
        keep,
        given.steps,
        given.seed,
        given.accelerator,
    )
    config = Path("tb_logs", given.name, "atlas.yaml")
    text = yaml.safe_dump(made, sort_keys=False, allow_unicode=True)
    if config.is_file() and config.read_text(encoding="utf-8") != text:
        raise InputError(f"{config} is of another atlas; give --name, or move its folder away")
    config.parent.mkdir(parents=True, exist_ok=True)
    with replacing(config) as part:
        part.write_text(text, encoding="utf-8")
    print(config)
    return config


def _unfinished(folder: Path) -> list[str]:
    """Return how to go on with the last run of an atlas, if it was stopped."""
    versions = [
        path for path in folder.glob("version_*") if re.fullmatch(r"version_\d+", path.name)
    ]
    last = max(versions, key=lambda path: int(path.name[8:]), default=folder)
    checkpoint = last / "checkpoints" / "unfinished.ckpt"
    return ["--ckpt_path", str(checkpoint)] if checkpoint.is_file() else []
