"""Inhibitors as a figure, bars of what silencing each does and the dose; in TensorBoard, too."""

from pathlib import Path

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from PIL import Image

from mti_lightning.inhibitors.result import SCALES, Inhibitors
from mti_lightning.loggers import log_figure, log_picture


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
    for unit in found.units:
        dose.plot(SCALES, unit.doses.mean(1), color="0.75", linewidth=1)
    low, middle, high = np.quantile(found.doses, [0.1, 0.5, 0.9], axis=1)
    dose.fill_between(SCALES, low, high, alpha=0.2, color="#5e3c99", label="10% to 90%")
    dose.plot(SCALES, found.doses.mean(1), "o-", color="#5e3c99", label="mean")
    dose.plot(SCALES, middle, "--", color="0.4", label="median")
    dose.axhline(0, color="0.6", linewidth=1)
    dose.set(xlabel=f"scale of all {len(found.units)}", ylabel="response")
    dose.legend(frameon=False)
    figure.suptitle(f"{found.feature}: {found.kind}").set_parse_math(False)
    return figure


def log(found: Inhibitors, folder: Path) -> None:
    """Show the figure, and what each unit sees, in TensorBoard."""
    board = TensorBoardLogger(folder, "", "")
    log_figure([board], f"{found.kind}/{found.feature}", draw(found), 0)
    for rank, unit in enumerate(found.units):
        icon = [] if unit.icon is None else [_on_grey(unit.icon)]
        if shown := [*icon, *(one.image for one in unit.examples)]:
            name = f"{found.kind}/{found.feature}/{rank + 1} unit {unit.unit}"
            log_picture([board], name, _beside(shown), 0)
    board.experiment.close()


def _on_grey(image: Image.Image) -> Image.Image:
    ground = Image.new("RGB", image.size, "#ebebeb")
    ground.paste(image, mask=image.getchannel("A"))
    return ground


def _beside(images: list[Image.Image], side: int = 160) -> Image.Image:
    """Lay pictures side by side, each in a square."""
    row = Image.new("RGB", (side * len(images), side), "white")
    for place, image in enumerate(images):
        scale = side / max(image.size)
        small = image.resize((round(image.width * scale), round(image.height * scale)))
        row.paste(small, (place * side, 0))
    return row
