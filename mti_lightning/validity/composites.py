"""Truth by intervention: what parts of composites do, beside what is attributed to their places."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

import torch
from scipy.stats import spearmanr
from torch import Tensor

from mti_lightning.attribution.effects import attributed_to_parts, effects_of_parts, true_signs
from mti_lightning.attribution.methods import Attribution, attribute
from mti_lightning.attribution.tension import Tension
from mti_lightning.backbone import Backbone, Layer
from mti_lightning.data.base import Loaded
from mti_lightning.features.bound import BoundFeature
from mti_lightning.validity.limits import Finding, finding, unmeasured

CHECK = "truth by intervention"
LEAST: Final = 16  # composites: of fewer a rank correlation says little
_OF_CHANNELS = (
    " Of a channel tension hardly follows it on real networks: what parts stand on excites and "
    "inhibits it as much as they do."
)


def check_composites(
    backbone: Backbone,
    batches: Iterable[Loaded],
    bound_features: Sequence[BoundFeature],
    layer: Layer,
    method: Attribution,
    tension: Tension,
) -> dict[str, Tensor]:
    """Measure what parts do, and what is said of them.

    Args:
        backbone: The network.
        batches: Composites.
        bound_features: The features.
        layer: The attribution layer.
        method: The attribution method.
        tension: The tension measure.

    Returns:
        `effect` and `attributed`, [F, N, K], and `tension`, [F, N].
    """
    found: dict[str, list[Tensor]] = {"effect": [], "attributed": [], "tension": []}
    layout = backbone.layout(layer)
    for batch in batches:
        if batch.without is None or batch.masks is None:  # none of it can be read
            continue
        shown, without, masks = (
            values.to(backbone.mean) for values in (batch.pictures, batch.without, batch.masks)
        )
        effects = effects_of_parts(backbone, shown, without, bound_features)  # [N, F, K]
        found["effect"].append(effects.transpose(0, 1))
        attributed, tensions = [], []
        for bound_feature in bound_features:
            asked = [bound_feature] * len(shown)
            attribution = attribute(backbone, shown, asked, layer, method)[1]
            attributed.append(attributed_to_parts(attribution, masks, layout))
            tensions.append(tension(attribution, layout))
        found["attributed"].append(torch.stack(attributed))
        found["tension"].append(torch.stack(tensions))
    return {name: torch.cat(values, 1).cpu() for name, values in found.items() if values}


def judge_composites(
    effect: Tensor, attributed: Tensor, tension: Tensor, of_class: bool = True
) -> Finding:
    """Judge a feature's attributions by what parts do.

    Args:
        effect: e, [N, K].
        attributed: A summed over the parts' places, [N, K].
        tension: [N].
        of_class: Whether the feature is a class.
    """
    if len(effect) < LEAST:
        return unmeasured(CHECK, f"only {len(effect)} composites can be made; {LEAST} are needed")
    if not effect.any():
        return unmeasured(CHECK, "no part changes the response at all")
    strong = effect.abs() >= effect.abs().median()
    right = (effect.sign() == attributed.sign())[strong]
    values = {
        "composites": len(effect),
        "parts": _correlation(attributed, effect)[0],
        "signs right": float(right.double().mean()),
    }
    truth = true_signs(effect)[2]
    if truth.max() > truth.min():  # else none holds both what excites and what inhibits
        values |= dict(zip(("tension", "tension's p"), _correlation(tension, truth), strict=True))
    found = finding(CHECK, values)
    return found if of_class else replace(found, meaning=found.meaning + _OF_CHANNELS)


def _correlation(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return the rank correlation of all values, and how likely one as large is by chance.

    Where either is the same throughout both are NaN: nothing is ranked.
    """
    x, y = x.flatten().double(), y.flatten().double()
    if x.min() == x.max() or y.min() == y.max():
        return math.nan, math.nan
    found = spearmanr(x.numpy(), y.numpy(), alternative="greater")
    return float(found.statistic), float(found.pvalue)
