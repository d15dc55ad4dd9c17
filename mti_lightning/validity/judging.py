"""From what the checks measured to findings: figures, held against their limits."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_average_precision

from mti_lightning.validity.limits import MORE, Finding, finding, unmeasured


def median(values: Tensor) -> float:
    """Return the median of what is not NaN; NaN if all are."""
    return float(values.double().nanmedian())


def judge_pictures(columns: Mapping[str, Tensor], tensest: Tensor) -> list[Finding]:
    """Judge natural pictures.

    Args:
        columns: What was measured of them, each [N], or fewer with randomised layers.
        tensest: Places of the tensest, which are tried to be turned on.
    """
    columns = {name: values.double() for name, values in columns.items()}
    response, total = columns["response"], columns["total"]
    change = response - columns["silent"]
    size = change.square().mean().sqrt()
    error = torch.quantile((total - change).abs() / size, change.new_tensor([0.1, 0.5, 0.9]))
    values = dict(zip(("10% error", "median error", "90% error"), error.tolist(), strict=True))
    found = [finding("completeness", values | {"correlation": _correlation(total, change)})]
    for which, way in (("inhibitory", 1), ("excitatory", -1)):
        predicted, real = columns[f"{which} predicted"], columns[f"{which} real"]
        values = {
            "ratio": median(real / predicted),
            "slope": float((predicted * real).sum() / predicted.square().sum()),
            "correlation": _correlation(predicted, real),
            MORE: float((way * (real - columns[f"random {which} real"]) > 0).double().mean()),
        }
        found.append(finding(f"silencing {which} units", values))
    check, silent = "turning tense pictures on", tensest[response[tensest] <= 0]
    if len(silent):
        own, random = (
            float((response + columns[f"{which} real"])[silent].gt(0).double().mean())
            for which in ("inhibitory", "random inhibitory")
        )
        values = {"silent": len(silent), "on": own, "on by random units": random}
        found.append(finding(check, {**values, "margin": own - random}))
    else:
        found.append(unmeasured(check, f"none of the {len(tensest)} tensest is silent (r ≤ 0)"))
    alike, view = median(columns["other"]), median(columns["view"])
    size = (response - columns["off"]).square().mean().sqrt()  # the ground differs with the picture
    found.append(finding("selectivity", {"spread": float(response.std() / size), "alike": alike}))
    found.append(finding("stability over views", {"cosine": view, "margin": view - alike}))
    shown = ("last", "half", "all", "signs kept", "complexity's rise")
    kept: dict[str, float] = {name: median(columns[name]) for name in shown if name in columns}
    if kept:
        return [*found, finding("randomised layers", kept)]
    return [*found, unmeasured("randomised layers", "no weights lie behind the attribution layer")]


def _correlation(x: Tensor, y: Tensor) -> float:
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x.norm() * y.norm()))


def judge_renderings(measured: Mapping[str, Tensor]) -> list[Finding]:
    """Judge + and − inversions, by what `check_renderings` measured."""
    found = []
    for sign in ("+", "-"):
        check = f"re-attribution of {sign} pictures"
        if len(measured[f"cosine {sign}"]):
            values = {name: median(measured[f"{name} {sign}"]) for name in ("cosine", "purity")}
            found.append(finding(check, values))
        else:
            found.append(unmeasured(check, f"no {sign} picture could be made"))
    values = {"cosine": median(measured["same target"])}
    if "other target" in measured:
        values["margin"] = values["cosine"] - median(measured["other target"])
    return [*found, finding("stability over seeds", values)]


def judge_interference(
    index: Tensor, response: Tensor, expressed: Tensor, tensest: Tensor, took_part: tuple[int, int]
) -> Finding:
    """Judge the interference index by what it is where the feature is expressed, and silent.

    Args:
        index: [N].
        response: r, [N].
        expressed: Which pictures clearly express the feature, [N].
        tensest: Places of the tensest.
        took_part: How many features may explain a picture, of how many that there are.
    """
    silent = response <= 0
    if not silent.any():
        return unmeasured("interference", "no picture is silent (r ≤ 0)")
    if not expressed.any() or index.isnan().all():
        return unmeasured("interference", "no picture clearly expresses the feature")
    places = {"index": tensest, "expressed": expressed, "silent": silent}
    values = {name: median(index[where]) for name, where in places.items()}
    above, contrast = (values[name] - values["expressed"] for name in ("index", "silent"))
    values |= {"contrast": contrast, "place": above / contrast if contrast else math.nan}
    return finding("interference", values | {"features": took_part[0], "of": took_part[1]})


def judge_names(named: Mapping[str, Tensor]) -> Finding:
    """Judge + and − inversions, by what a judge's word is of `check_names`."""
    check, pictures = "truth: what a judge sees", sum(map(len, named.values()))
    if not pictures:
        return unmeasured(check, "none of the pictures that were inverted is truly tense")
    shares = {name: float(right.double().mean()) for name, right in named.items()}
    right = float(torch.cat([*named.values()]).double().mean())
    return finding(check, {"pictures": pictures, **shares, "named": right})


def judge_truth(tension: Tensor, tense: Tensor) -> Finding:
    """Judge the ranking by tension, [N], where it is known which pictures are tense, [N] 0 or 1."""
    chance = float(tense.double().mean())
    values = {"tense pictures": float(tense.sum())}
    if chance:
        precision = float(binary_average_precision(tension, tense.int()))
        values |= {"average precision": precision, "lift": precision / chance}
    return finding("truth: ranking by tension", values)
