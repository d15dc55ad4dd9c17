"""The sweep that an atlas is of: made where there is none, compared where there is one."""

from pathlib import Path
from typing import Any

from lightning import Trainer

from mti_lightning.atlas.map import INSTEAD
from mti_lightning.attribution.module import AttributionModule
from mti_lightning.data.base import PictureData
from mti_lightning.errors import InputError
from mti_lightning.sweep.module import Sweep
from mti_lightning.sweep.progress import SweepProgress
from mti_lightning.sweep.store import SweepStore

# Of how a sweep is made, what an atlas depends on; it may have been made of further features.
_SAME = ("weights", "attribution_layer", "attribution", "tension", "preprocessing")
_SAME_DATA = ("data", "keep", "keep_by", "rivals")


def ensure_sweep(
    module: AttributionModule, data: PictureData | None, path: Path, **options: Any
) -> None:
    """Make the sweep, or make sure that the one that is there is the one that is meant.

    Args:
        module: Whose network, features, layer, attribution and tension it is of.
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
    if path.exists() and (store := SweepStore(path)).complete:
        provenance = sweep.provenance(data)
        same = _SAME if data is None else (*_SAME, *_SAME_DATA)
        store.check_provenance({name: provenance[name] for name in same}, INSTEAD)
        if data is not None:
            data.use(module.backbone.preprocessing)
            store.check_keys(data.pictures.keys, INSTEAD)
        return
    if data is None:
        raise InputError(
            f"there is no complete sweep at {path}; make it by mti predict with --model.keep "
            "N, or give --data to have it made now"
        )
    trainer = Trainer(
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[SweepProgress()],
        devices=1,
    )
    trainer.predict(sweep, datamodule=data, return_predictions=False)
