"""The checks against the truth, which is known of the vetoed shapes' classes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mti_lightning.data.datasets import Pictures
from mti_lightning.data.shapes import ResizedShapes
from mti_lightning.features.bound import BoundFeature
from mti_lightning.objectives.base import Objective
from mti_lightning.vetoed_shapes.judge import judge_scores
from mti_lightning.vetoed_shapes.shapes import KINDS
from mti_lightning.vetoed_shapes.world import veto_of


def tense_by_class(
    pictures: Pictures, indices: Sequence[int], bound_features: Sequence[BoundFeature]
) -> dict[int, Tensor]:
    """Return for features that are classes of the vetoed shapes which pictures are tense, [N].

    Args:
        pictures: What may be vetoed shapes; of others nothing is known.
        indices: Some of them.
        bound_features: The features.
    """
    classes = {
        place: bound_feature.feature.channel
        for place, bound_feature in enumerate(bound_features)
        if bound_feature.layout.shape == (len(KINDS),) and bound_feature.feature.channel is not None
    }
    if not isinstance(pictures, ResizedShapes) or not classes:
        return {}
    tense = torch.stack([pictures.world[index]["tense"] for index in indices])
    return {place: tense[:, channel] for place, channel in classes.items()}


@torch.no_grad()
def check_names(objective: Objective, kind: int, tense: Tensor) -> dict[str, Tensor]:
    """Ask a judge which shape of the vetoed shapes it finds strongest in + and − inversions.

    Args:
        objective: Finished inversions for class `kind`.
        kind: 0..7.
        tense: Whether each source is truly tense, [S]: the others have no veto to show.

    Returns:
        Whether it is the class's shape in each + picture, and the veto in each − picture.
    """
    named = torch.cat([judge_scores(chunk()).argmax(1) for chunk in objective.chunks]).cpu()
    found = {}
    for sign, figure, wanted in (("+", "+ shape", kind), ("-", "- veto", veto_of(kind))):
        rows = [e.sign == sign and bool(tense[e.source]) for e in objective.entries]
        found[figure] = named[torch.tensor(rows)] == wanted
    return found
