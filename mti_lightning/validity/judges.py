"""What other networks, which had no part in them, see in + and − inversions of a class."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mti_lightning.backbone import Backbone
from mti_lightning.data.datasets import Picture
from mti_lightning.errors import InputError
from mti_lightning.features.bound import BoundFeature
from mti_lightning.features.classes import gives_classes
from mti_lightning.images.views import whole
from mti_lightning.objectives.base import Objective
from mti_lightning.validity.judging import median
from mti_lightning.validity.limits import Finding, finding, unmeasured

_CHECK = "what other networks see"
_NAMED = 5  # classes that a judge sees in a source


def make_judges(
    given: Sequence[str | Mapping[str, Any] | Backbone], backbone: Backbone
) -> list[Backbone]:
    """Return networks with a backbone's classes, as judges.

    Args:
        given: Each a name, or what `Backbone` is made of.
        backbone: Whose pictures they judge.

    Raises:
        InputError: If there is none like that, it has other classes, is the backbone itself or
            another judge, or there is but one class, which is always the first.
    """
    judges: list[Backbone] = []
    known = {backbone.digest(): f"the network itself, {backbone.name}"} if given else {}
    with torch.no_grad():
        wanted = backbone(backbone.noise(1)).shape if given else ()
        if wanted and wanted[1] < 2:
            raise InputError(
                f"judges: {backbone.name} has one class, of which there is no rank; leave them out"
            )
        for one in given:
            if isinstance(one, Mapping):
                try:
                    judge = Backbone(**one)
                except TypeError as error:
                    raise InputError(f"judges: {dict(one)!r} makes no backbone: {error}") from error
            else:
                judge = Backbone(one) if isinstance(one, str) else one
            found = judge(judge.noise(1)).shape
            if found != wanted:
                raise InputError(
                    f"judges: {judge.name} gives {list(found)[1:]}, and {backbone.name} "
                    f"{list(wanted)[1:]}; a judge has to have the same classes"
                )
            if same := known.get(digest := judge.digest()):
                raise InputError(
                    f"judges: {judge.name} has the weights of {same}; a judge has to be another"
                )
            known[digest] = f"another judge, {judge.name}"
            judges.append(judge)
    return judges


@torch.no_grad()
def check_judge(
    judge: Backbone, objective: Objective, sources: Sequence[Picture], label: int
) -> dict[str, Tensor]:
    """Ask a judge what it sees in finished + and − inversions of a class.

    What inhibits a class is not known; what else the judge sees in a source stands for it.

    Args:
        judge: The network.
        objective: The inversions.
        sources: The pictures that they are made of.
        label: The class.

    Returns:
        The class's rank, from 1, in `sources` and in `+` pictures, and how much its logit is larger
        in these, `rise`; and in `-` pictures the best rank of what else the judge names first in
        the source.
    """
    size = judge.preprocessing.size

    def look(pictures: Tensor) -> Tensor:
        logits: Tensor = judge(whole(pictures.to(judge.mean), size))
        return logits

    before = look(torch.stack([source["picture"] for source in sources]))
    after = torch.cat([look(chunk()) for chunk in objective.chunks])
    first = before.index_fill(1, torch.tensor([label], device=before.device), -torch.inf)
    rivals = first.topk(min(_NAMED, before.shape[1]) - 1, 1).indices  # [S, 4]
    found: dict[str, list[Tensor]] = {"sources": [*_rank(before)[:, label]]}
    for entry, seen, rank in zip(objective.entries, after, _rank(after), strict=True):
        assert entry.source is not None
        if entry.sign == "+":
            found.setdefault("+", []).append(rank[label])
            rise = seen[label] - before[entry.source, label]
            found.setdefault("rise", []).append(rise)
        else:
            found.setdefault("-", []).append(rank[rivals[entry.source]].min())
    return {name: torch.stack(values) for name, values in found.items()}


def _rank(logits: Tensor) -> Tensor:
    """Return each class's rank in each picture, from 1, [N, K]."""
    return logits.argsort(1, descending=True).argsort(1) + 1


def ask_judges(
    judges: Sequence[Backbone],
    objective: Objective,
    sources: Sequence[Picture],
    bound_feature: BoundFeature,
) -> list[Finding]:
    """Report what judges see, by the median over pictures; nothing where there are no judges."""
    label = bound_feature.feature.channel
    if not judges:
        return []
    if label is None or not gives_classes(bound_feature.layer, objective.backbone):
        return [unmeasured(_CHECK, "the feature is no class")]
    values: dict[str, float] = {}
    names = [judge.name for judge in judges]
    for number, judge in enumerate(judges):
        before = names[:number].count(judge.name)  # of the same architecture with other weights
        name = f"{judge.name} ({before + 1})" if before else judge.name
        found = check_judge(judge.to(objective.device), objective, sources, label)
        named = {"sources": "rank in sources", "+": "in +", "rise": "logit's rise"}
        named |= {"-": "others' rank in -"}
        values |= {
            f"{name}: {what}": median(found[kind]) for kind, what in named.items() if kind in found
        }
    return [finding(_CHECK, values)]
