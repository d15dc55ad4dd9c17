"""The page of inhibitors in a browser, and what TensorBoard gets, of units that are made up."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mti_lightning.inhibitors.causal import Change, describe_change
from mti_lightning.inhibitors.figures import log
from mti_lightning.inhibitors.page import write_page
from mti_lightning.inhibitors.ranking import rank_units
from mti_lightning.inhibitors.result import SCALES, Branch, Example, Inhibitors, Unit
from tests.tools.page import Browser, browser

EVIL = "<img src=x onerror=alert(1)></script>.png"
COLOURS = {7: (210, 40, 40), 2: (40, 60, 200)}


def made_up() -> Inhibitors:
    """Two inhibitors of a feature, one confirmed."""
    rng = np.random.default_rng(0)
    intact = rng.normal(-1, 0.5, 30)
    ranking = rank_units([(rng.normal(-0.5, 1, (40, 9)), np.arange(40) % 2)])
    units = []
    for (unit, colour), strength in zip(COLOURS.items(), (1.5, 0.25), strict=True):
        changes = strength + rng.normal(0, 0.2, 30)
        doses = np.stack([intact + (1 - scale) * changes for scale in SCALES])
        real = describe_change(intact, doses[0])
        image = Image.new("RGB", (120, 90), colour)
        shown = (Example(EVIL, -strength, 2.0, (0, 0, 9, 9), image),)
        icon = Image.new("RGBA", (64, 64), (*colour, 200)) if unit == 7 else None
        of = (unit, -strength, 0.1, 0.9, strength * 1.1, real, real, real, 0.02 / strength, real)
        units.append(Unit(*of, doses, shown, icon))
    together = np.stack([intact + (1 - scale) * 1.75 for scale in SCALES])
    random = Change(-0.06, -0.1, 0.02, 0.0)
    below = Branch("layer2", 5, "excitors", Change(-0.2, -0.3, -0.1, 0.5))
    tree = (Branch("layer3", 7, "inhibitors", units[0].real, (below,)),)
    of = (ranking, units, intact, together, 1.9, random, 0.9, tree)
    return Inhibitors(f"fc:3 ({EVIL})", "layer3", "inhibitors", *of)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    path = tmp_path_factory.mktemp("page") / "inhibitors.html"
    write_page(path, made_up())
    with browser() as opened:
        opened.open(path, "[...document.images].every((one) => one.complete)")
        yield opened


def numbers(page: Browser, selector: str, name: str) -> list[float]:
    return [float(found.get_dom_attribute(name) or "nan") for found in page.find(selector)]


def test_bars_have_the_numbers_of_the_table(page: Browser) -> None:
    rows = made_up().rows[:2]
    assert page.texts(".unit .name") == [row["unit"] for row in rows]
    assert page.texts(".unit .name + div") == ["confirmed", "not confirmed"]
    widths = {name: numbers(page, f".bars .{name}", "width") for name in ("predicted", "real")}
    scale = widths["real"][0] / float(rows[0]["real"])
    for name, found in widths.items():
        np.testing.assert_allclose(found, [scale * float(row[name]) for row in rows], rtol=1e-3)
    ends = np.subtract(numbers(page, ".bars .ends", "x2"), numbers(page, ".bars .ends", "x1"))
    told = [float(row["high"]) - float(row["low"]) for row in rows]
    np.testing.assert_allclose(ends, np.multiply(told, scale), rtol=2e-2)


def test_curves_have_the_numbers_of_the_table(page: Browser) -> None:
    found = made_up()
    doses = [found.doses, *(unit.doses for unit in found.units)]
    curves = [one.get_dom_attribute("points") or "" for one in page.find(".curve")]
    for drawn, dose in zip(curves, doses, strict=True):
        points = np.array([[float(part) for part in pair.split(",")] for pair in drawn.split()])
        assert np.ptp(np.diff(points[:, 0]) / np.diff(SCALES)) < 1e-6
        falls, means = np.diff(points[:, 1]), np.diff(dose.mean(1))
        np.testing.assert_allclose(falls / falls[0], means / means[0], rtol=1e-3)
    titles = page.texts(".dot title")
    row = next(row for row in found.rows if row["unit"] == "all 2 x 1.5")
    changes = [float(re.split("changed by", one)[1].replace("−", "-")) for one in titles]
    assert changes[3] == pytest.approx(float(row["real"]), rel=5e-3)
    assert changes[6] == pytest.approx(float(found.rows[0]["x0.5"]), rel=5e-3)


def test_names_do_nothing_and_pictures_are_shown(page: Browser) -> None:
    assert page.texts("h1") == [f"fc:3 ({EVIL}): its inhibitors among the units of layer3"]
    assert page.driver.title == f"fc:3 ({EVIL}): inhibitors"
    assert page.texts("figcaption") == ["the unit alone", f"{EVIL}, −1.5", f"{EVIL}, −0.25"]
    wide = [image.get_property("naturalWidth") for image in page.find("img")]
    assert wide == [64, 120, 120]
    assert page.texts("#tree li b") == ["−", "+"]
    assert page.texts("#tree li li span")[0] == "layer2:5 "
    assert page.complaints() == []
    assert [url for url in page.requests() if not url.startswith(("file:", "data:"))] == []


def test_equal_inputs_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        write_page(tmp_path / name, made_up())
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert (tmp_path / "a.html").read_text().count("<script") == 2


def test_tensorboard_gets_the_figure_and_what_units_see(tmp_path: Path) -> None:
    found = made_up()
    log(found, tmp_path)
    events: Any = EventAccumulator(str(tmp_path))
    events.Reload()
    name = f"inhibitors/{found.feature}"
    assert events.Tags()["images"] == [name, f"{name}/1 unit 7", f"{name}/2 unit 2"]
    assert events.Images(f"{name}/1 unit 7")[0].width == 320
