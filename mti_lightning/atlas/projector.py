"""A map's pictures for TensorBoard's projector."""

import math
from typing import Final

import torch
from torch.nn.functional import interpolate
from torch.utils.tensorboard import SummaryWriter

from mti_lightning.atlas.data_set import data_set_of, labels_of
from mti_lightning.atlas.layout import thinned
from mti_lightning.atlas.map import Map
from mti_lightning.files import file_name

_SPRITE: Final = 8192  # TensorBoard's largest, pixels a side
_MOST_PROJECTED: Final = 10_000


def project(found: Map, writer: SummaryWriter) -> None:
    """Give pictures, numbers and pooled attributions to TensorBoard's projector."""
    chosen = thinned(len(found.rows), _MOST_PROJECTED)
    side = min(64, _SPRITE // math.ceil(len(chosen) ** 0.5))
    keys, pictures = found.store.keys, data_set_of(found)
    sprites = None
    if pictures:
        shown = (pictures[int(found.layout.pictures[place])]["picture"] for place in chosen)
        sprites = torch.stack([interpolate(p[None], (side, side), mode="area")[0] for p in shown])
    columns = {name: [f"{value:.4g}" for value in of] for name, of in found.columns.items()}
    if names := found.feature_names:
        columns["feature"] = names
    if labels := labels_of(found, pictures):
        columns["label"] = labels
    rows = [
        [
            " ".join(text.split())  # a tab or a line's end would begin another column or row
            for text in (
                keys[int(found.layout.pictures[place])],
                *(of[place] for of in columns.values()),
            )
        ]
        for place in chosen
    ]
    writer.add_embedding(
        found.vectors[list(chosen)],
        rows,
        sprites,
        tag=file_name(found.name + (found.sign or "")),
        metadata_header=["picture", *columns],
    )
