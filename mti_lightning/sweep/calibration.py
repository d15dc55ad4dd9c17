"""What pictures of a sweep are measured by: the mean activation, and profiles of the features.

Both are of the same pictures, evenly spread over the data.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from mti_lightning.backbone import Backbone, Layer
from mti_lightning.data.base import PictureData
from mti_lightning.data.datasets import Stamp
from mti_lightning.errors import InputError
from mti_lightning.log import log_info
from mti_lightning.sweep.measuring import Measurement
from mti_lightning.sweep.writing import SweepWriter


@torch.no_grad()
def mean_activation(
    backbone: Backbone, layer: Layer, data: PictureData, count: int
) -> tuple[Tensor, dict[int, Stamp]]:
    """Return ā of each channel, [C] on the CPU, over some pictures of the data, and their stamps.

    Args:
        backbone: The network.
        layer: The attribution layer.
        data: The pictures, as the backbone sees them.
        count: Over how many; fewer where there are fewer.

    Raises:
        InputError: If none of them can be read.
    """
    log_info(f"mean activation of {layer} over {min(count, len(data.pictures))} pictures")
    layout = backbone.layout(layer)
    stamps: dict[int, Stamp] = {}
    total, pictures = torch.zeros(layout.channels, dtype=torch.float64), 0
    for shown in evenly_spread(data, count, stamps):
        values = backbone.run(shown.to(backbone.mean.device), [layer])[layer]
        # On the CPU, as a Mac's GPU has no doubles.
        total += layout.pool_mean(values.float()).cpu().double().sum(0)
        pictures += len(values)
    if not pictures:
        tried = min(count, len(data.pictures))
        raise InputError(f"none of {tried} pictures, evenly spread over the data, can be read")
    return (total / pictures).float(), stamps


def learn_profiles(
    store: SweepWriter, measurement: Measurement, data: PictureData, count: int
) -> None:
    """Measure what features with rivals look like over some pictures, and put it into the store."""
    for part in measurement.parts:
        if not part.has_rivals or store.rivals(part.places[0]):
            continue
        log_info(f"what {len(part.group.channels)} features that may explain each other look like")
        device = measurement.backbone.mean.device
        shown = (pictures.to(device) for pictures in evenly_spread(data, count, {}))
        store.write_rivals(part.places, part.names, part.box, measurement.profile(part, shown))


def evenly_spread(data: PictureData, count: int, stamps: dict[int, Stamp]) -> Iterator[Tensor]:
    """Yield pictures, [N, 3, H, W] each, and put the stamps of all that were looked at there."""
    size = len(data.pictures)
    count = min(count, size)
    for batch in data.loader([index * size // count for index in range(count)]):
        stamps |= batch.stamps
        if len(batch.indices):
            yield batch.pictures
