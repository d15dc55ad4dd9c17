"""The sweep that an atlas is of: made where there is none, compared where there is one."""

from pathlib import Path
from typing import Any

import torch
from lightning import Trainer

from mti_lightning.atlas.map import INSTEAD
from mti_lightning.attribution.module import AttributionModule, on_device
from mti_lightning.data.base import PictureData
from mti_lightning.errors import InputError
from mti_lightning.locks import hold_in_turn
from mti_lightning.signals import Stopped
from mti_lightning.sweep.module import Sweep
from mti_lightning.sweep.progress import SweepProgress
from mti_lightning.sweep.store import SweepStore
from mti_lightning.sweep.writing import check_place

# Of how a sweep is made, what an atlas depends on; it may have been made of further features.
_SAME = ("weights", "attribution_layer", "attribution", "tension", "preprocessing")
_SAME_DATA = ("data", "keep", "keep_by", "rivals")


def ensure_sweep(
    module: AttributionModule, data: PictureData | None, path: Path, **options: Any
) -> None:
    """Make the sweep, or make sure that the one that is there is the one that is meant.

    Where another process is at it, as when several start together, wait for it.

    Args:
        module: Whose network, features, layer, attribution and tension it is of. Where the steps of
            its attribution are open, it takes those of the sweep.
        data: The pictures; None where there has to be a sweep already, of whatever pictures.
        path: Where it is.
        options: Further ones, as `Sweep` takes them.

    Raises:
        InputError: If it was made otherwise, or there is neither sweep nor data.
    """
    sweep = Sweep(
        module.backbone,
        [str(feature) for feature in module.features],
        str(module.layer),
        module.attribution,
        module.tension,
        store=str(path),
        **options,
    )
    # Icons start from nothing; and of photographs' neighbours on a map fewer are alike from the
    # ground, by which things are told from what they stand on, and not from one another.
    sweep.from_ground = False

    def is_there() -> bool:
        if not path.exists() or not (store := SweepStore(path)).complete:
            return False
        sweep.take_steps(store.provenance.get("attribution", {}))
        module.attribution = sweep.attribution
        provenance = sweep.provenance(data)
        same = _SAME if data is None else (*_SAME, *_SAME_DATA)
        store.check_provenance({name: provenance[name] for name in same}, INSTEAD)
        if data is not None:
            data.use(module.backbone.preprocessing)
            store.check_keys(data.pictures.keys, INSTEAD)
        return True

    if is_there():
        return
    if data is None:
        raise InputError(
            f"there is no complete sweep at {path}; make it by mti predict with --model.keep "
            "N, or give --data to have it made now"
        )
    check_place(path)
    with hold_in_turn(path):
        if is_there():
            return
        try:
            _run(sweep, data, module.device)
        except Stopped as stopped:
            stopped.add_note("every finished block of its sweep is kept")
            raise
        finally:
            module.to(module.device)  # and with it the backbone, which Lightning takes to the CPU
        module.attribution = sweep.attribution


def _run(sweep: Sweep, data: PictureData, device: torch.device) -> None:
    trainer = Trainer(
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[SweepProgress()],
        **on_device(device),
    )
    trainer.predict(sweep, datamodule=data, return_predictions=False)
