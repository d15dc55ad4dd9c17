"""All findings of a feature, in the report's order, from what was measured of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mti_lightning.data.datasets import Picture
from mti_lightning.errors import RenderError
from mti_lightning.objectives.inversion import SignedInversion
from mti_lightning.validity.judging import (
    judge_interference,
    judge_names,
    judge_pictures,
    judge_renderings,
    judge_truth,
)
from mti_lightning.validity.limits import Finding, finding, unmeasured
from mti_lightning.validity.renderings import check_renderings, make_inversions
from mti_lightning.validity.truth import check_names

_SHARE = 10  # the tensest are one picture in so many at most: in more, few have to be tense


def judge_feature(
    columns: Mapping[str, Tensor],
    tensest: int,
    rendered: Sequence[Finding],
    interference: tuple[Tensor, Tensor, tuple[int, int]] | None,
    tense: Tensor | None,
) -> list[Finding]:
    """Judge all that was measured of a feature.

    Args:
        columns: Of natural pictures, each [N], or fewer with randomised layers.
        tensest: How many of the tensest are tried to be turned on, at most.
        rendered: What was found of inversions.
        interference: As `interference_by_feature` has it; None where there are no rivals.
        tense: Which pictures are truly tense, [N]; None where that is not known.
    """
    order = columns["tension"].argsort(descending=True)
    top = order[: max(1, min(tensest, len(order) // _SHARE))]
    found = [*judge_pictures(columns, top), *rendered]
    if interference is None:
        why = "it has no rivals: name other directions of the layer, too"
        found.append(unmeasured("interference", why))
    else:
        index, expressed, took_part = interference
        of = (index, columns["response"], expressed, top, took_part)
        found.append(judge_interference(*of))
    if tense is not None:
        found.append(judge_truth(columns["tension"], tense))
    return found


def judge_inversions(
    pictures: Sequence[Picture],
    tense: Tensor | None,
    device: torch.device,
    further: Callable[[SignedInversion], list[Finding]],
    **options: Any,
) -> list[Finding]:
    """Make + and − inversions of pictures, and judge them.

    Args:
        pictures: Of the size that the backbone sees.
        tense: Which of them are truly tense, [S], where the feature is a class of the vetoed
            shapes; else None.
        device: Where they are made.
        further: Finds what else there is to find of them.
        options: What `SignedInversion` takes.
    """
    try:
        objective = make_inversions(pictures, device, **options)
    except RenderError as error:
        return [replace(finding("pictures", {}), warnings=(str(error),))]
    found = judge_renderings(check_renderings(objective))
    if objective.without_target:
        found.append(replace(finding("pictures", {}), warnings=(objective.without_target,)))
    kind = objective.features[0].channel
    if tense is not None and kind is not None:
        found.append(judge_names(check_names(objective, kind, tense)))
    return [*found, *further(objective)]
