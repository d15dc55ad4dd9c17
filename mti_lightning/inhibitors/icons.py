"""An image of each unit: an inversion whose target is that unit alone."""

from collections.abc import Mapping
from functools import partial
from typing import Any, final

import numpy as np
import torch
from PIL import Image

from mti_lightning.attribution.methods import Attribution
from mti_lightning.backbone import Layer
from mti_lightning.errors import RenderError
from mti_lightning.images.seeds import derive_seed
from mti_lightning.inhibitors.network import Network
from mti_lightning.log import log_warning, quietly
from mti_lightning.objectives.chunk import Entry, ImageChunk
from mti_lightning.objectives.inversion import Inversion, Target
from mti_lightning.rendering import render
from mti_lightning.sweep.measures import Array


@final
class _UnitInversion(Inversion):
    """An image that makes one unit active, everywhere, and keeps the others of its layer quiet.

    Args:
        unit: The channel.
        sign: Whether it is to become positive, 1, or negative, −1.
    """

    needs_sources = False
    decisive = ("power",)
    signs = ()  # it plans its image itself

    def __init__(self, *args: Any, unit: int, sign: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.unit, self.sign = unit, sign

    def plan(self) -> list[Entry]:
        own = derive_seed(self.seed, self.layer, self.unit)
        return [Entry(f"unit{self.unit}", own, 0, "unit", self.seed)]

    def target(self, chunk: ImageChunk) -> dict[Layer, Target]:
        layout = self.layout
        target = torch.zeros(len(chunk.entries), *layout.shape, device=self.device)
        target.movedim(layout.channel_dim, -1)[..., self.unit] = self.sign
        return {self.layer: (target, torch.ones_like(target))}


def draw_icons(
    network: Network, method: Attribution, units: Mapping[int, int], steps: int, seed: int
) -> dict[int, Image.Image]:
    """Return an image of each unit of which one can be made, RGBA.

    Args:
        network: The network and the layer.
        method: By which the feature is attributed.
        units: Of each whether it is to become positive, 1, or negative, −1.
        steps: For each image.
        seed: Of the noise they start from.
    """
    made = {}
    for unit, sign in units.items():
        draw = partial(_draw, network, method, unit, sign, steps, seed)
        made[unit] = network.pieces.next(draw)["rgba"]
    return {unit: Image.fromarray(icon) for unit, icon in made.items() if icon.size}


def _draw(
    network: Network, method: Attribution, unit: int, sign: int, steps: int, seed: int
) -> dict[str, Array]:
    """Return `rgba`, an image, [H, W, 4], or an empty one where it cannot be made."""
    of = (network.backbone, [str(network.feature.feature)], str(network.layer), method)
    objective = _UnitInversion(*of, unit=unit, sign=sign, steps_per_epoch=steps, seed=seed)
    device = network.backbone.mean.device
    run = {"enable_progress_bar": False, "accelerator": device.type, "devices": 1}
    try:
        with quietly():
            return {"rgba": np.asarray(render(objective, None, 1, **run)[0].image)}
    except RenderError as error:
        log_warning(f"unit {unit} gets no image: {error}")
        return {"rgba": np.empty(0)}
    finally:
        network.backbone.to(device)
