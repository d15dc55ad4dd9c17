"""The atlas's picture: pixels where they should be, in the colours they should have."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from mti_lightning.atlas.layout import Cell, Layout, find_cells, lay_out
from mti_lightning.atlas.picture import draw, mark

SIDE, LEFT, TOP = 87, 30, 140  # of a cell among 20 × 20, in pixels
WIDTH = 1800
GROUND = (242, 242, 242)
RED, BLUE = (200, 20, 20), (20, 20, 200)


def a_cell(row: int, column: int, count: int, response: float) -> Cell:
    members = np.arange(count)
    return Cell(row, column, members, {"response": response}, members[:5])


def of(responses: np.ndarray) -> dict[str, np.ndarray]:
    return {"response": responses, "excitation": responses, "tension": np.abs(responses)}


@pytest.fixture(scope="module")
def layout() -> Layout:
    return lay_out(np.arange(400), np.random.default_rng(0).normal(size=(400, 2)))


@pytest.fixture(scope="module")
def responses() -> np.ndarray:
    return np.linspace(-3, 5, 400)


def icon(colour: tuple[int, int, int], opaque: int = 255) -> Image.Image:
    return Image.new("RGBA", (96, 96), (*colour, opaque))


def middle(row: int, column: int) -> tuple[int, int]:
    return LEFT + column * SIDE + SIDE // 2, TOP + row * SIDE + SIDE // 2


@pytest.fixture(scope="module")
def sheet(layout: Layout, responses: np.ndarray) -> Image.Image:
    chosen = [
        a_cell(0, 0, 100, 1e6),
        a_cell(3, 5, 100, 0),
        a_cell(19, 19, 100, -1e6),
        a_cell(7, 2, 4, 0),
        a_cell(9, 9, 60, 0),
        a_cell(9, 10, 4000, 0),
    ]
    icons = {
        (0, 0): icon(RED),
        (3, 5): icon(BLUE, 0),
        (19, 19): icon(BLUE, 128),
        (7, 2): icon(RED),
        (9, 10): Image.new("RGBA", (96, 48), (*RED, 255)),
        (12, 12): icon(RED),  # of a cell that is not shown
    }
    return draw(layout, chosen, icons, of(responses), "f", "positive")


def across(sheet: Image.Image, row: int, column: int) -> list[tuple[int, int, int]]:
    x, y = middle(row, column)
    return [sheet.getpixel((x - SIDE // 2 + step, y)) for step in range(SIDE)]


def test_icons_lie_in_their_cells_with_their_transparency(sheet: Image.Image) -> None:
    assert sheet.mode == "RGB"
    assert sheet.width == WIDTH
    assert sheet.getpixel(middle(0, 0)) == RED
    assert sheet.getpixel(middle(3, 5)) == GROUND
    half = sheet.getpixel(middle(19, 19))
    np.testing.assert_allclose(half, (np.array(GROUND) + BLUE) / 2, atol=1)
    assert sheet.getpixel(middle(9, 9)) == GROUND  # no icon yet, only the border
    x, y = middle(9, 10)  # twice as wide as high: in the middle
    assert sheet.getpixel((x, y)) == RED
    assert sheet.getpixel((x, y - 25)) == sheet.getpixel((x, y + 25)) == GROUND


def test_cells_that_are_not_shown_are_empty(sheet: Image.Image) -> None:
    for row, column in ((12, 12), (5, 5), (0, 19)):
        assert set(across(sheet, row, column)) == {GROUND}


def test_borders_tell_the_response(sheet: Image.Image) -> None:
    colours = colormaps["coolwarm"]

    def border(row: int, column: int) -> tuple[int, int, int]:
        drawn = [pixel for pixel in across(sheet, row, column) if pixel != GROUND]
        return drawn[2]  # behind the outline

    for cell, value in (((0, 0), 1.0), ((19, 19), 0.0), ((3, 5), 0.5)):
        expected = [255 * part for part in colours(value)[:3]]
        np.testing.assert_allclose(border(*cell), expected, atol=1)


def test_icons_grow_with_the_number_of_pictures(sheet: Image.Image) -> None:
    def wide(row: int, column: int) -> int:
        pixels = across(sheet, row, column)
        drawn = [place for place, pixel in enumerate(pixels) if pixel != GROUND]
        return drawn[-1] - drawn[0] + 1

    assert wide(7, 2) < wide(9, 9) < wide(0, 0) == wide(9, 10) <= SIDE


def test_equal_inputs_give_equal_bytes(
    layout: Layout, responses: np.ndarray, tmp_path: Path
) -> None:
    found = find_cells(
        layout,
        np.random.default_rng(1).normal(size=(400, 3)),
        dict.fromkeys(("response", "excitation", "inhibition", "tension"), responses),
        minimum=2,
    )
    icons = {(cell.row, cell.column): icon(RED, 100) for cell in found}
    for name in ("a.png", "b.png"):
        draw(layout, found, icons, of(responses), "$f_").save(tmp_path / name)
        marked = mark(layout, responses, np.full((3, 2), 0.5), [icon(RED)] * 3, "$f_")
        marked.save(tmp_path / f"mark_{name}")
    for name in ("", "mark_"):
        one, other = (tmp_path / f"{name}{letter}.png" for letter in "ab")
        assert one.read_bytes() == other.read_bytes()
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("size", [(1, 1), (3, 30), (30, 3), (30, 30)])
def test_maps_of_any_shape(size: tuple[int, int], responses: np.ndarray) -> None:
    layout = lay_out(np.arange(400), np.random.default_rng(0).normal(size=(400, 2)), size)
    first, last = a_cell(0, 0, 9, 1.0), a_cell(size[0] - 1, size[1] - 1, 9, 1.0)
    place = last.row, last.column
    sheet = draw(layout, [first, last], {place: icon(RED)}, of(responses), "f")
    side = min(1740 // max(size), 240)
    left = (WIDTH - side * size[1]) // 2
    assert (
        sheet.getpixel((left + last.column * side + side // 2, TOP + last.row * side + side // 2))
        == RED
    )


def test_the_map_ends_where_the_cells_do(layout: Layout, responses: np.ndarray) -> None:
    shown = [a_cell(4, 7, 9, 1.0), a_cell(10, 11, 9, 1.0)]  # of 7 rows and 5 columns
    icons = {(4, 7): icon(RED), (10, 11): icon(BLUE)}
    sheet = draw(layout, shown, icons, of(responses), "f")
    side = 240
    left = (WIDTH - 5 * side) // 2
    assert sheet.getpixel((left + side // 2, TOP + side // 2)) == RED
    assert sheet.getpixel((left + 4 * side + side // 2, TOP + 6 * side + side // 2)) == BLUE
    for x in (left - 30, left + 5 * side + 3):
        assert sheet.getpixel((x, TOP + 3 * side)) == (255, 255, 255)


def test_the_scatters_are_of_the_columns_there_are(layout: Layout, responses: np.ndarray) -> None:
    def heights(columns: dict[str, np.ndarray]) -> np.ndarray:
        sheet = np.asarray(draw(layout, [], {}, columns, "f"))[-700:]
        across = (sheet == GROUND).all(2).mean(0) > 0.2  # the scatters' grounds
        return np.flatnonzero(np.diff(across.astype(int)) == 1)

    assert len(heights(of(responses))) == 2
    rare = np.where(np.arange(400) % 2, np.nan, responses)
    assert len(heights({**of(responses), "interference": rare})) == 3


def test_maps_with_next_to_nothing_on_them() -> None:
    layout = lay_out(np.arange(1), np.zeros((1, 2)))
    nothing = np.zeros(1)
    sheet = np.asarray(draw(layout, [], {}, of(nothing), "f"))
    assert (sheet[TOP : TOP + 20 * SIDE, LEFT : LEFT + 20 * SIDE] == GROUND).all()
    assert mark(layout, nothing, np.zeros((0, 2)), [], "f").width == WIDTH


@pytest.mark.parametrize("count", [1, 16, 32, 50])
def test_own_pictures_stand_beside_the_map(
    count: int, layout: Layout, responses: np.ndarray
) -> None:
    points = np.random.default_rng(0).random((count, 2))
    colours = [(255, 0, 4 * index + 40) for index in range(count)]
    picture = mark(layout, responses, points, [icon(c) for c in colours], "f")
    pixels = np.asarray(picture).astype(int)
    found = [np.argwhere((abs(pixels - colour) <= 1).all(2)) for colour in colours]
    sizes = [len(pixels) for pixels in found]
    shown = min(count, 32)
    assert min(sizes[:shown]) > 0.9 * max(sizes)  # none covers another
    assert sizes[shown:] == [0] * (count - shown)
    heights = np.array([pixels[:, 0].mean() for pixels in found[:shown]])
    left = np.array([pixels[:, 1].mean() for pixels in found[:shown]]) < WIDTH / 2
    assert left.sum() == (shown + 1) // 2
    for side in (left, ~left):  # so that lines cross little
        assert (np.argsort(heights[side]) == np.argsort(-points[:shown][side, 1])).all()
