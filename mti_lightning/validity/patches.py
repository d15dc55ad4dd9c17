"""The patch test: what is said to inhibit in one picture, pasted into others, lowers the response.

Of half of the pictures patches are chosen, on the other half they are tried, each beside others of
the same source and size in the same place of the same pictures. One is from where another source
has its own, so that chance is as fond of the middle or the rim as the attribution is; one has the
opposite sign, so that it is as conspicuous; one is said to inhibit another feature. An attribution
that knew no places would do no better than the first of them, and one that knew no signs no better
than the second. It has to do better than both, so that chance passes either way no more often than
a test of pairs allows it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import wilcoxon
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from mti_lightning.attribution.effects import tells_parts
from mti_lightning.attribution.methods import Attribution, attribute
from mti_lightning.attribution.signs import Sign, at_scale, signed_map
from mti_lightning.attribution.tension import Tension
from mti_lightning.backbone import ActivationLayout, Backbone, Layer
from mti_lightning.features.bound import BoundFeature
from mti_lightning.features.feature import Feature
from mti_lightning.validity.limits import OPPOSITE, Finding, finding, unmeasured

_STEPS: Final = 24  # in which places are told: parts of a picture's height and width
_SIDE: Final = 8  # of them a patch is high and wide: a third of the picture
_FEWEST, _MOST = 8, 64  # patches of one sign
_INTO = 2  # pictures that each is pasted into
_OVERLAP = 0.25  # most that a random patch has of the one it stands beside, where that can be had
_BATCH = 32
_RESAMPLED = 2000
_ROUNDING = 1e-5  # spread of a response that is always the same, as a share of it
CHECKS_OF: Final[dict[Sign, str]] = {
    "-": "pasting inhibitory patches",
    "+": "pasting excitatory patches",
}


def patch_sums(attribution: Tensor, tension: Tension, layout: ActivationLayout) -> Tensor | None:
    """Return how much every possible patch excites (> 0) or inhibits, [N, P, P], by its place.

    Args:
        attribution: A, [N, ...].
        tension: Has the scale at which signs are split.
        layout: How A lies; without positions there are no patches, and None is returned.
    """
    if not tells_parts(layout):
        return None
    signed = at_scale(signed_map(attribution, layout.channel_dim), tension.scale, layout)
    fine = interpolate(
        layout.on_grid(signed)[:, None], (_STEPS, _STEPS), mode="bilinear", align_corners=False
    )
    return avg_pool2d(fine, _SIDE, stride=1).squeeze(1)


@final
@dataclass(frozen=True)
class Pairs:
    """Which patches go where; places are the (row, column) of upper left corners, in steps.

    Attributes:
        sources: Pictures that patches are of, [n].
        own: Where the attribution points at in each, [n, 2].
        random: Where it points at in another of them, each of these once, [n, 2].
        contrary: Where it points at in each for the opposite sign, [n, 2].
        into: Pictures that each is pasted into, [n, K].
        at: Where, [n, K, 2].
    """

    sources: Tensor
    own: Tensor
    random: Tensor
    contrary: Tensor
    into: Tensor
    at: Tensor


def choose_pairs(sums: Tensor, response: Tensor, sign: Sign, seed: int) -> Pairs | None:
    """Choose patches on one half of the pictures, and where to paste them on the other.

    They go where a picture is least excited or inhibited, of the places that the feature sees well:
    there they hide the least.

    Args:
        sums: By `patch_sums`, [N, P, P].
        response: r, [N].
        sign: `-`: patches that inhibit, into pictures that express the feature most. `+`: patches
            that excite, into those that express it least.
        seed: Of what is random.

    Returns:
        None where there are too few pictures.
    """
    generator = torch.Generator().manual_seed(seed)
    order, half = torch.randperm(len(sums), generator=generator), len(sums) // 2
    count = min(_MOST, half // 2)
    if count < _FEWEST:
        return None
    choosing, testing, way = order[:half], order[half:], 1 if sign == "+" else -1
    strongest = (way * sums[choosing]).amax((1, 2)).topk(count).indices
    sources = choosing[strongest]
    own = strongest_places(way * sums[sources])
    far = (own[:, None] - own).abs()  # [n, n, 2]
    overlap = (_SIDE - far).clamp(min=0).prod(2) / _SIDE**2
    chance = torch.rand(overlap.shape, generator=generator)
    cost = (overlap - _OVERLAP).clamp(min=0) * _SIDE**2 * count + chance  # any excess above all
    # Each place stands once as a source's own and once as random: what it does by itself cancels.
    random = own[torch.from_numpy(linear_sum_assignment(cost)[1])]
    best = (-way * response[testing]).topk(count).indices
    tried = testing[best[torch.randperm(count, generator=generator)]]
    turns = (torch.arange(count)[:, None] + torch.arange(_INTO)) % count
    seen = sums[choosing].abs().mean(0)
    hidden = sums[tried].abs().masked_fill(seen < seen.max() / 2, torch.inf)
    contrary, at = strongest_places(-way * sums[sources]), strongest_places(-hidden)
    return Pairs(sources, own, random, contrary, tried[turns], at[turns])


def strongest_places(sums: Tensor) -> Tensor:
    """Return where [N, P, P] are largest, [N, 2]."""
    at = sums.flatten(1).argmax(1)
    return torch.stack([at // sums.shape[2], at % sums.shape[2]], 1)


def paste(into: Tensor, at: Tensor, source: Tensor, place: Tensor) -> Tensor:
    """Return a picture, [3, H, W], with a patch of another at a place of its own."""
    height, width = into.shape[1:]
    rows, columns = round(_SIDE * height / _STEPS), round(_SIDE * width / _STEPS)
    (top, left), (y, x) = (
        (round(int(one[0]) * height / _STEPS), round(int(one[1]) * width / _STEPS))
        for one in (at, place)
    )
    pasted = into.clone()
    pasted[:, top : top + rows, left : left + columns] = source[:, y : y + rows, x : x + columns]
    return pasted


def _batches(pictures: Sequence[Tensor]) -> Iterator[Tensor]:
    for first in range(0, len(pictures), _BATCH):
        yield torch.stack([*pictures[first : first + _BATCH]])


@final
@dataclass(frozen=True)
class Pasted:
    """What pasting did to the response, in units of its standard deviation over pictures, each [n].

    Attributes:
        change: r with the patch less r of the picture as it was.
        random: r with the patch less r with a random one.
        contrary: r with the patch less r with one of the opposite sign.
        other: r with the patch less r with one of another feature; None where there is no other.
    """

    change: Tensor
    random: Tensor
    contrary: Tensor
    other: Tensor | None

    def p_value(self, way: int) -> float:
        """Return how likely by chance they are as far above (1) random and contrary ones; or below.

        The larger p of the two: it is claimed that they are above both.
        """
        return max(p_value(way * one) for one in (self.random, self.contrary))


def try_pairs(
    respond: Callable[[Tensor], Tensor],
    picture: Callable[[int], Tensor],
    pairs: Pairs,
    response: Tensor,
    other: Tensor | None,
) -> Pasted:
    """Paste patches into pictures, and measure.

    Args:
        respond: Computes responses, [M], from pictures [M, 3, H, W].
        picture: Returns one by its row.
        pairs: Which patches go where.
        response: r, [N], of pictures as they are.
        other: Where another feature has its patch in each source, [n, 2].
    """
    kinds = [pairs.own, pairs.random, pairs.contrary] + ([] if other is None else [other])
    found: list[list[Tensor]] = [[] for _ in kinds]
    sources = [picture(row) for row in pairs.sources.tolist()]
    for into, at in zip(pairs.into.T, pairs.at.transpose(0, 1), strict=True):
        hosts = [picture(row) for row in into.tolist()]
        for values, places in zip(found, kinds, strict=True):
            pasted = [paste(*one) for one in zip(hosts, at, sources, places, strict=True)]
            values.append(torch.cat([respond(part) for part in _batches(pasted)]))
    spread = response.std()
    own, *others = (torch.stack(values).mean(0) / spread for values in found)
    change = own - response[pairs.into].mean(1) / spread
    random, contrary, *another = (own - one for one in others)
    return Pasted(change, random, contrary, another[0] if another else None)


def judge_pasted(pasted: Sequence[Pasted | str], sign: Sign) -> list[Finding]:
    """Judge what pasting did, for all features of a run: the p values of one of them are corrected.

    Args:
        pasted: For each feature; where it could not be tried, why not.
        sign: Of the patches.
    """
    way, tried = 1 if sign == "+" else -1, [one for one in pasted if not isinstance(one, str)]
    p, opposite = (holm([one.p_value(side) for one in tried]) for side in (way, -way))
    rows, found = zip(tried, p, opposite, strict=True), []
    for given in pasted:
        if isinstance(given, str):
            found.append(unmeasured(CHECKS_OF[sign], given))
            continue
        one, *p_values = next(rows)
        values = {"patches": len(one.random), "change": float(one.change.mean())}
        values |= dict(zip(("effect", "low", "high"), interval(one.random), strict=True))
        values["beside the opposite sign's"] = float(one.contrary.mean())
        if one.other is not None:
            values["beside another feature's"] = float(one.other.mean())
        values |= dict(zip(("p", OPPOSITE), p_values, strict=True))
        found.append(finding(CHECKS_OF[sign], values))
    return found


def p_value(differences: Tensor) -> float:
    """Return how likely differences of pairs, [n], are as positive by chance: Wilcoxon's test."""
    if not differences.any():
        return 1.0
    test = wilcoxon(differences.double().numpy(), alternative="greater", zero_method="zsplit")
    return float(test.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for how many there are (Holm 1979)."""
    corrected, largest = [0.0] * len(p_values), 0.0
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def interval(values: Tensor) -> tuple[float, float, float]:
    """Return a mean, of [n], and its 95% bootstrap confidence interval."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(values), (_RESAMPLED, len(values)), generator=generator)
    means = values.double()[drawn].mean(1)
    low, high = torch.quantile(means, means.new_tensor([0.025, 0.975])).tolist()
    return float(values.mean()), low, high


@torch.no_grad()
def check_patches(
    backbone: Backbone,
    bound_features: Sequence[BoundFeature],
    columns: Sequence[dict[str, Tensor]],
    picture: Callable[[int], Tensor],
    layer: Layer,
    method: Attribution,
    tension: Tension,
    seed: int,
) -> list[list[Finding]]:
    """Make the patch test of all features of a run; the findings are in their order.

    Args:
        backbone: The network.
        bound_features: The features.
        columns: For each what was measured of pictures: `response`, [N], and `patches`, by
            `patch_sums`, where there are positions.
        picture: Returns a picture, [3, H, W], by its row.
        layer: The attribution layer.
        method: The attribution method.
        tension: The tension measure.
        seed: Seed of what is random.
    """
    findings: list[list[Finding]] = [[] for _ in bound_features]
    for sign in CHECKS_OF:
        pasted: list[Pasted | str] = []
        for place, (bound_feature, measured) in enumerate(
            zip(bound_features, columns, strict=True)
        ):
            response, sums = measured["response"], measured.get("patches")
            if sums is None:
                pasted.append("the attribution layer has no positions to point at, or one")
                continue
            if response.std() <= _ROUNDING * response.abs().max():
                pasted.append("the response is the same in all pictures")
                continue
            if (pairs := choose_pairs(sums, response, sign, seed)) is None:
                pasted.append(f"there are fewer than {4 * _FEWEST} pictures")
                continue
            if len(columns) > 1:
                others: Tensor | None = columns[(place + 1) % len(columns)]["patches"][
                    pairs.sources
                ]
            else:
                given = [picture(row) for row in pairs.sources.tolist()]
                others = _sums_of_another(
                    backbone, bound_feature, given, layer, method, tension, seed
                )
            other = None
            if others is not None:
                other = strongest_places(others if sign == "+" else -others)

            def respond(pictures: Tensor, bound_feature: BoundFeature = bound_feature) -> Tensor:
                pictures = pictures.to(backbone.mean)
                tapped = backbone.run(pictures, [bound_feature.layer])[bound_feature.layer]
                values: Tensor = bound_feature(tapped).cpu()
                return values

            pasted.append(try_pairs(respond, picture, pairs, response, other))
        for of_feature, found in zip(findings, judge_pasted(pasted, sign), strict=True):
            of_feature.append(found)
    return findings


@torch.enable_grad()
def _sums_of_another(
    backbone: Backbone,
    bound_feature: BoundFeature,
    pictures: Sequence[Tensor],
    layer: Layer,
    method: Attribution,
    tension: Tension,
    seed: int,
) -> Tensor | None:
    """Return `patch_sums` for a random other channel of the feature's layer; None without one."""
    feature, channels = bound_feature.feature, bound_feature.layout.channels
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(channels, generator=generator).tolist()
    left = [channel for channel in order if channel != feature.channel]
    if not left:
        return None
    named = Feature(feature.layer, channel=left[0], position=feature.position)
    another, found = BoundFeature(named, backbone), []
    for part in _batches(pictures):
        of = (backbone, part.to(backbone.mean), [another] * len(part), layer, method)
        sums = patch_sums(attribute(*of)[1].detach(), tension, backbone.layout(layer))
        if sums is None:
            return None
        found.append(sums.cpu())
    return torch.cat(found)
