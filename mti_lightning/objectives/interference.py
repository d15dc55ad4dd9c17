"""The interference index of an objective's pictures, by what a sweep knows of their rivals."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mti_lightning.attribution.module import AttributionModule
from mti_lightning.backbone import Backbone
from mti_lightning.superposition.rivals import Rivals
from mti_lightning.sweep.pictures import SweepPictures, rivals_of
from mti_lightning.sweep.store import SweepStore

KnownRivals = dict[int, tuple[Rivals, int]]  # by a feature's place, with its place among them


def find_rivals(sweep: object, module: AttributionModule) -> KnownRivals:
    """Take from a sweep what the rivals of a module's features look like.

    Args:
        sweep: A sweep or pictures of one; of anything else nothing is known.
        module: Whose features they are.
    """
    store = sweep.store if isinstance(sweep, SweepPictures) else sweep
    if not isinstance(store, SweepStore) or store.provenance["attribution_layer"] != str(
        module.layer
    ):
        return {}
    return {
        place: found
        for place, feature in enumerate(module.features)
        if (found := rivals_of(store, str(feature), module.backbone)) is not None
    }


def index_by(
    rivals: Mapping[int, tuple[Rivals, int]],
    backbone: Backbone,
    pictures: Tensor,
    features: Sequence[int],
) -> Tensor:
    """Return the interference index of each picture, [N]; NaN where rivals are not known.

    Args:
        rivals: What is known.
        backbone: The network.
        pictures: [N, 3, H, W] in 0..1, of the backbone's input size.
        features: The place of each picture's feature.
    """
    index = pictures.new_full((len(pictures),), torch.nan)
    for place in {*features} & rivals.keys():
        known, column = rivals[place]
        rows = [i for i, feature in enumerate(features) if feature == place]
        index[rows] = known.index(backbone, pictures[rows])[:, column]
    return index
