"""Inhibitors as a figure: what silencing each does, and the response by the dose."""

import numpy as np
from matplotlib.figure import Figure

from mti_lightning.inhibitors.result import SCALES, Inhibitors


def draw(found: Inhibitors) -> Figure:
    """Draw bars of predicted and real changes beside random units', and the dose curve."""
    figure = Figure(figsize=(9.6, 1.6 + 0.34 * (len(found.units) + 1)), layout="constrained")
    bars, dose = figure.subplots(1, 2, width_ratios=(3, 2))
    places = np.arange(len(found.units))
    real = [unit.real for unit in found.units]
    ends = [[max(0, c.mean - c.low) for c in real], [max(0, c.high - c.mean) for c in real]]
    bars.barh(
        places - 0.2, [u.predicted for u in found.units], 0.38, label="predicted", color="0.7"
    )
    bars.barh(
        *(places + 0.2, [change.mean for change in real], 0.38),
        xerr=ends,
        label="real, 95%",
        color="#5e3c99",
    )
    names = [f"{unit.unit}{'' if unit.is_confirmed else ' ?'}" for unit in found.units]
    bars.set_yticks(places, names)
    each = found.random.mean / len(found.units)
    bars.axvline(each, color="#e66101", linestyle=":", label="a random unit")
    bars.invert_yaxis()
    bars.set(xlabel="change of the response where the unit is silenced", ylabel=found.layer)
    bars.legend(frameon=False)
    low, middle, high = np.quantile(found.doses, [0.1, 0.5, 0.9], axis=1)
    dose.fill_between(SCALES, low, high, alpha=0.2, color="#5e3c99", label="10% to 90%")
    dose.plot(SCALES, found.doses.mean(1), "o-", color="#5e3c99", label="mean")
    dose.plot(SCALES, middle, "--", color="0.4", label="median")
    dose.axhline(0, color="0.6", linewidth=1)
    dose.set(xlabel=f"scale of all {len(found.units)}", ylabel="response")
    dose.legend(frameon=False)
    figure.suptitle(f"{found.feature}: {found.kind}").set_parse_math(False)
    return figure
