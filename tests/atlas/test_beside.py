"""Two atlases of the same pictures beside each other: what links their cells, and what is shown."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver import ActionChains

from mti_lightning import InputError
from mti_lightning.atlas.beside import Side, check_same_pictures, colour, compare, finished
from mti_lightning.atlas.layout import Cell, find_cells, lay_out
from mti_lightning.atlas.page import write_page
from mti_lightning.pages import read_data
from mti_lightning.tables import read_table, writing_table
from tests.atlas.test_page import EVIL
from tests.tools.page import Browser, browser

HOSTILE = [
    "=HYPERLINK(1)",
    "a\rb",
    "a\nb",
    'a,"b',
    "\u202egnp.exe",
    "</script><script>",
    "'=1",
    EVIL,
]
SHOWN = 40, 20  # of 60 pictures: those on the left map, and from which on those on the right


def an_atlas(folder: Path, seed: int, keys: list[str], size: tuple[int, int]) -> list[Cell]:
    """Write what a finished run leaves of an atlas; return its cells."""
    random = np.random.default_rng(seed)
    points = random.random((len(keys), 2))
    layout = lay_out(np.arange(len(keys)), points, size)
    columns = {"response": points[:, 0]}
    found = find_cells(layout, random.normal(size=(len(keys), 4)), columns, 3)
    icons = [{"positive": Image.new("RGB", (9, 9), (n, 90, 200))} for n in range(len(found))]
    folder.mkdir()
    title = f"feature {EVIL} {seed}"
    write_page(folder / "atlas.html", layout, found, icons, columns, keys, title=title)
    with writing_table(
        folder / "atlas_pictures.csv", ["map", "row", "column", "x", "y", "picture"]
    ) as write:
        for cell, (x, y), key in zip(layout.cell.tolist(), layout.points, keys, strict=True):
            write(["both", *divmod(cell, size[1]), x, y, key])
    return found


def two(folder: Path) -> dict[str, Any]:
    """Write two atlases that have pictures in common, and put them side by side."""
    every = [*HOSTILE, *(f"a folder/{place}.png" for place in range(52))]
    np.random.default_rng(0).shuffle(every)
    keys = {"left": every[: SHOWN[0]], "right": every[SHOWN[1] :]}
    sizes = {"left": (3, 3), "right": (2, 4)}
    cells = {
        name: an_atlas(folder / name, place, keys[name], sizes[name])
        for place, name in enumerate(keys)
    }
    compare(folder / "left", folder / "right")
    of = {name: [{keys[name][m] for m in cell.members} for cell in cells[name]] for name in keys}
    return {"cells": cells, "of": of, "folder": folder / "right"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return two(tmp_path_factory.mktemp("beside"))


def test_cells_are_linked_by_the_pictures_they_share(made: dict[str, Any]) -> None:
    wanted = []
    for left, there in zip(made["cells"]["left"], made["of"]["left"], strict=True):
        for right, here in zip(made["cells"]["right"], made["of"]["right"], strict=True):
            if common := len(there & here):
                places = (right.row, right.column, left.row, left.column)
                wanted.append((*places, common, common / len(here), common / len(there)))
    assert len(wanted) > 10
    rows = read_table(made["folder"] / "atlas_links.csv")
    names = ("row", "column", "beside_row", "beside_column", "common", "share", "beside_share")
    found = [tuple(float(row[name]) for name in names) for row in rows]
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert {row["map"] for row in rows} == {"both"}
    page = read_data(made["folder"] / "beside_both.html")
    told = {(link[0], link[1]): link[2:] for link in page["links"]}
    for (left, right), (count, named) in told.items():
        common = made["of"]["left"][left] & made["of"]["right"][right]
        assert (count, {*named} <= common, len(named)) == (len(common), True, min(3, count))
    for side, name in enumerate(("left", "right")):
        other = set().union(*made["of"]["right" if side == 0 else "left"])
        cells = page["maps"][side]["cells"]
        assert [cell["elsewhere"] for cell in cells] == [len(of - other) for of in made["of"][name]]


def test_a_cell_has_the_mean_colour_of_its_pictures_on_the_other_map(made: dict[str, Any]) -> None:
    page = read_data(made["folder"] / "beside_both.html")
    shades = [
        [np.array([*map(int, cell["colour"][4:-1].split(","))]) for cell in side["cells"]]
        for side in page["maps"]
    ]
    assert len({tuple(shade) for shade in shades[0]}) == len(shades[0])
    for place, shade in enumerate(shades[1]):
        links = [(link[2], shades[0][link[0]]) for link in page["links"] if link[1] == place]
        mean = sum(count * of for count, of in links) / sum(count for count, _ in links)
        np.testing.assert_allclose(shade, mean, atol=1.01)
    with Image.open(made["folder"] / "beside_both.png") as picture:
        assert picture.width == 1800
        seen = {of for _, of in picture.convert("RGB").getcolors(1 << 24)}
    assert {tuple(shade) for side in shades for shade in side} <= seen


def test_nothing_shared_is_grey() -> None:
    side = Side({"size": [1, 1]}, ["a"], [Cell(0, 0, np.arange(1), {}, np.arange(1))])
    assert colour(side, side, {})[1] == [(189, 189, 189)]


def test_equal_atlases_give_equal_bytes_beside_each_other(
    made: dict[str, Any], tmp_path: Path
) -> None:
    two(tmp_path)
    for path in made["folder"].iterdir():
        assert (tmp_path / "right" / path.name).read_bytes() == path.read_bytes()


def test_only_a_finished_atlas_of_the_same_pictures_is_shown_beside_one(
    made: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"beside: there is no finished atlas in .*none"):
        finished(tmp_path / "none")
    for version, pages in ((2, ["atlas"]), (10, ["atlas"]), (11, [])):  # the last was stopped
        (tmp_path / f"version_{version}").mkdir()
        table = (made["folder"] / "atlas_pictures.csv").read_bytes()
        (tmp_path / f"version_{version}" / "atlas_pictures.csv").write_bytes(table)
        for page in pages:
            (tmp_path / f"version_{version}" / f"{page}.html").touch()
    assert finished(tmp_path) == tmp_path / "version_10"
    check_same_pictures(made["folder"], ["of none", *made["of"]["right"][0]])
    with pytest.raises(InputError, match="has none of this one's pictures"):
        check_same_pictures(made["folder"], ["of none"])


@pytest.fixture(scope="module")
def page(made: dict[str, Any]) -> Iterator[Browser]:
    with browser() as opened:
        opened.open(made["folder"] / "beside_both.html", "document.images.length > 9")
        yield opened


def test_pointing_at_a_cell_lights_those_up_that_share_its_pictures(
    page: Browser, made: dict[str, Any]
) -> None:
    for side, name in enumerate(("left", "right")):
        own, others = made["of"][name], made["of"]["right" if side == 0 else "left"]
        maps = page.find(".map")
        cells = maps[side].find_elements("css selector", "button")
        assert len(cells) == len(own)
        there = maps[1 - side].find_elements("css selector", "button")
        ActionChains(page.driver, duration=20).move_to_element(cells[0]).perform()
        lit = {place for place, of in enumerate(there) if "linked" in of.get_attribute("class")}
        assert lit == {place for place, of in enumerate(others) if of & own[0]}
        for place in lit:
            share = 100 * len(others[place] & own[0]) / len(own[0])
            assert abs(int(there[place].text.rstrip("%")) - share) <= 0.5
    # A click keeps a cell, Esc lets it go.
    cells[0].click()
    ActionChains(page.driver, duration=20).move_to_element(cells[1]).perform()
    assert "own" in cells[0].get_attribute("class")
    ActionChains(page.driver).send_keys("\ue00c").perform()
    assert page.find(".own") == []
    assert page.texts("#told") == [""]
    assert page.complaints() == []
    assert all(address.startswith(("file:", "data:")) for address in page.requests())
