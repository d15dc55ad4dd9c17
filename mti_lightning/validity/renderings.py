"""The checks of rendered pictures: + and − inversions, made from several seeds, measured again."""

import warnings
from collections.abc import Sequence
from itertools import combinations
from typing import Any, final

import torch
from torch import Tensor

from mti_lightning.attribution import signs
from mti_lightning.attribution.module import on_device
from mti_lightning.backbone import Preprocessing
from mti_lightning.data.base import PictureData
from mti_lightning.data.datasets import Picture, Pictures
from mti_lightning.images.views import whole
from mti_lightning.objectives.base import Objective
from mti_lightning.objectives.inversion import SignedInversion
from mti_lightning.rendering import render


class _Given(Pictures):
    """Pictures that are there already."""

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self.given, self.keys = pictures, [picture["key"] for picture in pictures]

    def __getitem__(self, index: int) -> Picture:
        return self.given[index]


@final
class _Sources(PictureData):
    """Pictures that are there already, as an objective's sources."""

    def __init__(self, pictures: Sequence[Picture]) -> None:
        super().__init__()
        self.given = _Given(pictures)

    def _open(self, preprocessing: Preprocessing) -> Pictures:
        return self.given


def make_inversions(
    pictures: Sequence[Picture], device: torch.device, **options: Any
) -> SignedInversion:
    """Make + and − inversions of pictures, each from two seeds.

    Args:
        pictures: Of the size that the backbone sees.
        device: Where.
        options: What `SignedInversion` takes.

    Raises:
        RenderError: If none can be made.
    """
    objective = SignedInversion(**options, seeds=2)
    objective.train()  # Lightning warns of what `validate` has put in eval mode
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* images cannot be made")  # the report says so
            quiet = {"enable_progress_bar": False, **on_device(device)}
            render(objective, _Sources(pictures), epochs=1, **quiet)
    finally:
        objective.to(device)  # and with it the backbone, which Lightning takes to the CPU
    return objective


@torch.no_grad()
def check_renderings(objective: Objective) -> dict[str, Tensor]:
    """Measure finished + and − inversions, each made from two seeds or more.

    Returns:
        `cosine` with the target and `purity` of each `+` and each `-` picture; the cosines of the
        activations of pictures of the `same target` from two seeds, and, where there is another
        source, of the same sign but for an `other target`.
    """
    measured, entries = objective.measure(), objective.entries
    excited, inhibited = measured["excitation"], measured["inhibition"]
    found = {}
    for sign, own in (("+", excited), ("-", inhibited)):
        rows = torch.tensor([entry.sign == sign for entry in entries])
        found[f"cosine {sign}"] = measured["cosine"][rows]
        found[f"purity {sign}"] = (own / (excited + inhibited).clamp(min=1e-12))[rows]
    activations = torch.cat(
        [
            objective.backbone.run(whole(chunk(), objective.input_size), [objective.layer])[
                objective.layer
            ]
            for chunk in objective.chunks
        ]
    )
    pairs: dict[str, list[tuple[int, int]]] = {}
    for (i, one), (j, other) in combinations(enumerate(entries), 2):
        if one.sign == other.sign and one.seed != other.seed:
            kind = "same target" if one.source == other.source else "other target"
            pairs.setdefault(kind, []).append((i, j))
    for kind, places in pairs.items():
        first, second = torch.tensor(places).T
        found[kind] = signs.cosine(activations[first], activations[second]).cpu()
    return found
