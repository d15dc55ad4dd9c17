"""An image of each unit: an inversion whose target is that unit alone."""

from collections.abc import Mapping
from typing import Any, final

import torch
from PIL import Image

from mti_lightning.attribution.methods import Attribution
from mti_lightning.errors import RenderError
from mti_lightning.images.seeds import derive_seed
from mti_lightning.inhibitors.network import Network
from mti_lightning.log import log_warning, quietly
from mti_lightning.objectives.chunk import Entry, ImageChunk
from mti_lightning.objectives.inversion import Inversion, Target
from mti_lightning.rendering import render


@final
class _UnitInversion(Inversion):
    """Images that make one unit active, everywhere, and keep the others of its layer quiet.

    Args:
        units: Of each channel whether it is to become positive, 1, or negative, −1.
    """

    needs_sources = False
    decisive = ("power",)
    signs = ()  # it plans its images itself

    def __init__(self, *args: Any, units: Mapping[int, int], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.units = dict(units)

    def plan(self) -> list[Entry]:
        return [
            Entry(f"unit{unit}", derive_seed(self.seed, self.layer, unit), 0, "unit", self.seed)
            for unit in self.units
        ]

    def target(self, chunk: ImageChunk) -> Target:
        layout = self.layout
        target = torch.zeros(len(chunk.entries), *layout.shape, device=self.device)
        every = target.movedim(layout.channel_dim, -1)
        for row, entry in zip(every, chunk.entries, strict=True):
            unit = int(entry.id.removeprefix("unit"))
            row[..., unit] = self.units[unit]
        return target, torch.ones_like(target)


def draw_icons(
    network: Network, method: Attribution, units: Mapping[int, int], steps: int, seed: int
) -> dict[int, Image.Image]:
    """Return an image of each unit, RGBA.

    Args:
        network: The network and the layer.
        method: By which the feature is attributed.
        units: Of each whether it is to become positive, 1, or negative, −1.
        steps: For each image.
        seed: Of the noise they start from.
    """
    try:
        return _draw(network, method, units, steps, seed)
    except RenderError as error:  # of a single one
        if len(units) == 1:
            log_warning(f"unit {next(iter(units))} gets no image: {error}")
            return {}
    each = (draw_icons(network, method, {unit: units[unit]}, steps, seed) for unit in units)
    return {unit: image for one in each for unit, image in one.items()}


def _draw(
    network: Network, method: Attribution, units: Mapping[int, int], steps: int, seed: int
) -> dict[int, Image.Image]:
    of = (network.backbone, [str(network.feature.feature)], str(network.layer), method)
    objective = _UnitInversion(*of, units=units, steps_per_epoch=steps, seed=seed)
    device = network.backbone.mean.device
    run = {"enable_progress_bar": False, "accelerator": device.type, "devices": 1}
    with quietly():
        made = render(objective, None, 1, **run)
    network.backbone.to(device)
    return {unit: one.image for unit, one in zip(units, made, strict=True)}
