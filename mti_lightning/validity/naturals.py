"""What natural pictures measure for the features of a report, batch by batch."""

from collections.abc import Mapping
from typing import Final, final

import torch
from torch import Tensor

from mti_lightning.attribution.module import AttributionModule
from mti_lightning.backbone import Backbone, Layer
from mti_lightning.data.base import Loaded
from mti_lightning.validity.checks import (
    check_neighbours,
    check_pictures,
    check_randomised,
    modules_between,
    picture_keys,
    shuffled,
)
from mti_lightning.validity.patches import patch_sums
from mti_lightning.validity.rivals import check_rivals, find_rivals

RANDOMISED: Final = 64  # pictures that are attributed with randomised layers


@final
class Naturals:
    """The pictures so far, and what was measured of them.

    Args:
        of: Features, network, attribution layer, method and tension.
        seed: Seed of all that is random.
    """

    def __init__(self, of: AttributionModule, seed: int) -> None:
        self.of, self.seed = of, seed
        self.indices: list[int] = []  # of the pictures, in the data
        self.rivals = find_rivals(of.bound_features, seed)
        self._columns: list[dict[str, list[Tensor]]] = [{} for _ in of.bound_features]
        self._before: list[Tensor | None] = [None for _ in of.bound_features]
        self._randomised: dict[Layer, dict[str, Backbone]] = {}

    @property
    def measured(self) -> list[dict[str, Tensor]]:
        """For each feature what was measured: a number of each picture, [N], or more, [N, ...]."""
        return [
            {name: torch.cat(values) for name, values in columns.items()}
            for columns in self._columns
        ]

    def add(self, batch: Loaded) -> None:
        """Check a batch for every feature."""
        of, pictures = self.of, batch.pictures.clone()
        how = (of.layer, of.attribution, of.tension)
        keys = picture_keys(self.seed, batch.indices.tolist())
        left = slice(max(0, RANDOMISED - len(self.indices)))
        for place, bound_feature in enumerate(of.bound_features):
            with of.backbone.working():
                found, attribution = check_pictures(
                    of.backbone, pictures, bound_feature, *how, keys
                )
            found["other"] = check_neighbours(attribution, self._before[place])
            if (sums := patch_sums(attribution, of.tension, of.layout)) is not None:
                found["patches"] = sums
            self._before[place] = attribution[-1:]
            if left.stop and (networks := self._networks(bound_feature.layer)):
                part = (pictures[left], attribution[left], bound_feature, of.layer, of.attribution)
                found |= check_randomised(networks, *part)
            _add(self._columns[place], found)
        for rivals in self.rivals:
            _add(rivals.parts, check_rivals(of.backbone, pictures, rivals.group, of.layer))
        self.indices += batch.indices.tolist()

    def _networks(self, target: Layer) -> dict[str, Backbone]:
        """Return networks with the last, half and all of the modules behind the layer shuffled."""
        if target not in self._randomised:
            between = modules_between(self.of.backbone, self.of.layer, target)
            counts = {"last": 1, "half": len(between) // 2, "all": len(between)}
            self._randomised[target] = {
                name: shuffled(self.of.backbone, between[-count:], self.seed)
                for name, count in counts.items()
                if count and between
            }
        return self._randomised[target]


def _add(columns: dict[str, list[Tensor]], found: Mapping[str, Tensor]) -> None:
    for name, values in found.items():
        columns.setdefault(name, []).append(values.cpu())
