"""The atlas as a picture: an icon per cell, the map beneath it, a run's own pictures on it."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from PIL import Image, ImageColor, ImageDraw, ImageFont

from mti_lightning.atlas.columns import KINDS, OTHER, commonest, ranked, scale
from mti_lightning.atlas.layout import MOST_DOTS, Cell, Face, Layout, thinned
from mti_lightning.attribution.signs import Sign
from mti_lightning.errors import shortened
from mti_lightning.sweep.measures import Array

_FACES = {
    "positive": "+ inversions",
    "negative": "− inversions",
    "both": "+ and − inversions",
    "+": "photographs, cut to where they excite most,",
    "-": "photographs, cut to where they inhibit most,",
}
_BELOW = ("excitation", "inhibition")  # columns that have no scatter; tension shows both
_GROUND, _OUTLINE = "#f2f2f2", "#5a5a5a"
_DPI = 100
_WIDTH, _HEAD, _FOOT, _EDGE = 1800, 110, 780, 30  # pixels
LARGEST = 240  # pixels: a cell's side
_SMALLEST = 0.75  # an icon's side as a share of it
_MOST_SHOWN = 32  # a run's pictures that are shown beside the map
_MAP_HIGH = 1000
_NARROW: Final = 52  # pixels: an icon that no caption fits into
_LONGEST: Final = 36  # letters of a feature's name in the legend


def draw(
    layout: Layout,
    cells: Sequence[Cell],
    icons: Mapping[tuple[int, int], Image.Image],
    columns: Mapping[str, Array],
    title: str,
    face: Face | Sign = "both",
    of: str | None = None,
    features: Sequence[str] | None = None,
) -> Image.Image:
    """Draw the atlas, 1,800 pixels wide: its icons, and beneath them the pictures of the map.

    The icons' map ends where the cells that are shown do. An icon's border is coloured by its
    cell's mean response, or by the feature most of its pictures are of, and its side grows with
    the number of the cell's pictures.

    Args:
        layout: Where M pictures lie.
        cells: Those that are shown.
        icons: For (row, column) of a cell its icon, RGBA; a cell without one is only its border.
        columns: The pictures' numbers, [M] each, response among them.
        title: What the atlas is of.
        face: What the icons show: a face, or photographs of a sign.
        of: Which pictures the map is of, in words.
        features: Of each picture, where the map is of several, [M].
    """
    few, many = _counts(cells)
    subtitle = (
        f"{_FACES[face]} of {len(cells)} cells of a map of "
        f"{of or f'{len(layout.pictures):,} pictures'}; "
        f"the smallest icons are of {few}, the largest of {many} or more"
    )
    parts = [
        _head(title, subtitle, columns, features),
        draw_icons(layout.size, cells, icons, _borders(cells, columns, features)),
        _scatters(layout, {n: v for n, v in columns.items() if n not in _BELOW}, features),
    ]
    sheet = Image.new("RGB", (_WIDTH, sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    return sheet


def mark(
    layout: Layout,
    responses: Array,
    points: Array,
    pictures: Sequence[Image.Image],
    title: str,
) -> Image.Image:
    """Show where a run's own pictures fall on the map, each beside it with a line to its place.

    Args:
        layout: Where M pictures lie.
        responses: [M].
        points: Where the run's pictures fall, 0..1, [K, 2]; see `atlas.place`.
        pictures: The first of them are shown, the others only ringed, [K].
        title: What the map is of.
    """
    figure = Figure(figsize=(_WIDTH / _DPI, _MAP_HIGH / _DPI), dpi=_DPI)
    axes = figure.add_axes((0.19, 0.09, 0.62, 0.84))
    dots = _dots(axes, layout, "response", responses)
    axes.scatter(
        points[:, 0],
        points[:, 1],
        s=60,
        facecolors="none",
        edgecolors="black",
        linewidths=1.3,
        zorder=3,
    )
    shown = np.arange(min(len(pictures), _MOST_SHOWN))
    by_side = shown[np.argsort(points[shown, 0], kind="stable")]
    for side, chosen in enumerate(np.array_split(by_side, 2)):
        _beside(axes, points, pictures, chosen[np.argsort(-points[chosen, 1], kind="stable")], side)
    axes.set_title(title, parse_math=False)
    bar = figure.colorbar(
        dots, cax=figure.add_axes((0.35, 0.045, 0.3, 0.016)), orientation="horizontal"
    )
    bar.set_label("response")
    return _rendered(figure)


def _beside(
    axes: Axes, points: Array, pictures: Sequence[Image.Image], chosen: Array, side: int
) -> None:
    """Put pictures to the left (0) or the right (1) of the map, from the top down."""
    rows = len(chosen)
    pixels = min(110, int(0.84 * _MAP_HIGH / max(rows, 1)) - 9)
    for row, index in enumerate(chosen.tolist()):
        icon = pictures[index].convert("RGBA")
        icon.thumbnail((pixels, pixels), Image.Resampling.LANCZOS)
        axes.add_artist(
            AnnotationBbox(
                OffsetImage(np.asarray(icon), dpi_cor=False),
                tuple(points[index]),
                xybox=(1.09 if side else -0.09, 1 - (row + 0.5) / rows),
                boxcoords="axes fraction",
                pad=0.1,
                arrowprops={"arrowstyle": "-", "color": "0.25", "linewidth": 0.8},
                annotation_clip=False,
            )
        )


def _colours(name: str, values: Array) -> tuple[str, Normalize]:
    colours, low, high = scale(name, values)
    return colours, Normalize(low, high)


def _counts(cells: Sequence[Cell]) -> tuple[int, int]:
    """Return how many pictures the smallest and the largest icons stand for.

    A tenth of the cells may have more: a few crowded ones would make all others small.
    """
    counts = [cell.count for cell in cells] or [1]
    return min(counts), int(np.percentile(counts, 90, method="lower"))


def _shades(features: Sequence[str]) -> dict[str, str]:
    """Return the colour of each feature, the commonest first; the rarer ones share one."""
    names, _ = ranked(features)
    return dict(zip(names, [*KINDS, *[OTHER] * len(names)], strict=False))


def _borders(
    cells: Sequence[Cell], columns: Mapping[str, Array], features: Sequence[str] | None
) -> list[tuple[int, ...]]:
    """Return the colour of each cell's border."""
    if features is not None:
        shades = [*_shades(features).values()]
        places = np.array(ranked(features)[1])
        most = [commonest(places[cell.members].tolist())[0][0] for cell in cells]
        return [ImageColor.getrgb(shades[place]) for place in most]
    colours, norm = _colours("response", columns["response"])
    shown = ScalarMappable(norm, colours)
    means = [shown.to_rgba(np.array(cell.means["response"]), bytes=True)[:3] for cell in cells]
    return [tuple(map(int, mean)) for mean in means]


def _head(
    title: str, subtitle: str, columns: Mapping[str, Array], features: Sequence[str] | None
) -> Image.Image:
    figure = Figure(figsize=(_WIDTH / _DPI, _HEAD / _DPI), dpi=_DPI)
    left = _EDGE / _WIDTH
    figure.text(left, 0.72, title, fontsize=15, parse_math=False)
    figure.text(left, 0.42, subtitle, fontsize=10, color="0.3", parse_math=False)
    if features is not None:
        _legend(figure, features)
        return _rendered(figure)
    colours, norm = _colours("response", columns["response"])
    bar = figure.colorbar(
        ScalarMappable(norm, colours),
        cax=figure.add_axes((0.7, 0.6, 0.28, 0.16)),
        orientation="horizontal",
        extend="both",
    )
    bar.set_label("mean response of the cell (border)")
    return _rendered(figure)


def _legend(figure: Figure, features: Sequence[str]) -> None:
    """Name the features beside their colours."""
    shades = _shades(features)
    named = list(shades)[: len(KINDS)]
    named += ["others"] if len(shades) > len(named) else []
    figure.legend(
        [Line2D([], [], marker="s", linestyle="", color=shades.get(n, OTHER)) for n in named],
        [shortened(name, _LONGEST) for name in named],
        loc="upper right",
        ncols=2,
        fontsize=9,
        frameon=False,
        title="the feature of most points of the cell (border)",
        title_fontsize=9,
    )
    for text in figure.legends[0].get_texts():
        text.set_parse_math(False)


def draw_icons(
    size: tuple[int, int],
    cells: Sequence[Cell],
    icons: Mapping[tuple[int, int], Image.Image],
    colours: Sequence[tuple[int, ...]],
    width: int = _WIDTH,
    captions: Sequence[str] | None = None,
) -> Image.Image:
    """Draw the cells of a map; it ends where these do.

    Args:
        size: Rows and columns of the map.
        cells: Those that are shown.
        icons: For (row, column) of a cell its icon.
        colours: Of the cells' borders.
        width: In pixels.
        captions: What stands in each cell, at its lower edge.
    """
    rows, columns = (
        range(min(taken, default=0), max(taken, default=most - 1) + 1)
        for taken, most in zip(
            ([cell.row for cell in cells], [cell.column for cell in cells]), size, strict=True
        )
    )
    # Square cells, and the map not higher than wide.
    side = min((width - 2 * _EDGE) // max(len(rows), len(columns)), LARGEST)
    border = max(2, round(side * 0.06))
    left, high = (width - len(columns) * side) // 2, len(rows) * side
    sheet = Image.new("RGB", (width, high + 2 * _EDGE), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    pen.rectangle((left, _EDGE, left + len(columns) * side - 1, _EDGE + high - 1), _GROUND)

    def number(x: float, y: float, which: int, anchor: str) -> None:
        pen.text((x, y), str(which), fill="#777", font=font, anchor=anchor)

    for place, row in enumerate(rows):
        number(left - 6, _EDGE + (place + 0.5) * side, row, "rm")
    for place, column in enumerate(columns):
        number(left + (place + 0.5) * side, _EDGE - 6, column, "ms")
    many = _counts(cells)[1]
    for index, (cell, colour) in enumerate(zip(cells, colours, strict=True)):
        share = _SMALLEST + (1 - _SMALLEST) * min(1, (cell.count / many) ** 0.5)
        outer = round((side - 2) * share)
        x = left + (cell.column - columns[0]) * side + (side - outer) // 2
        y = _EDGE + (cell.row - rows[0]) * side + (side - outer) // 2
        # The middle of the scale is as light as the ground; the outline keeps it seen.
        pen.rectangle((x, y, x + outer - 1, y + outer - 1), colour, _OUTLINE)
        inner = outer - 2 * border
        tile = Image.new("RGB", (inner, inner), _GROUND)
        if icon := icons.get((cell.row, cell.column)):
            _lay(tile, icon)
        sheet.paste(tile, (x + border, y + border))
        if captions and inner > _NARROW:
            middle, low = x + outer // 2, y + outer - border
            box = pen.textbbox((middle, low), captions[index], font=font, anchor="md")
            pen.rectangle((box[0] - 2, box[1] - 1, box[2] + 2, low), "white")
            pen.text((middle, low), captions[index], fill="#222", font=font, anchor="md")
    return sheet


def _lay(tile: Image.Image, icon: Image.Image) -> None:
    """Lay an icon of any shape into the middle of a tile."""
    scale = tile.width / max(icon.size)
    size = (max(1, round(icon.width * scale)), max(1, round(icon.height * scale)))
    icon = icon.convert("RGBA").resize(size, Image.Resampling.LANCZOS)
    tile.paste(icon, ((tile.width - size[0]) // 2, (tile.height - size[1]) // 2), icon)


def _scatters(
    layout: Layout, columns: Mapping[str, Array], features: Sequence[str] | None
) -> Image.Image:
    figure = Figure(figsize=(_WIDTH / _DPI, _FOOT / _DPI), dpi=_DPI, layout="constrained")
    several = features is not None
    every = figure.subplots(1, len(columns) + several, squeeze=False)[0]
    if features is not None:
        shades, own = _shades(features), np.array(features)
        _scatter(every[0], layout, np.array(thinned(len(own), MOST_DOTS)), [shades[n] for n in own])
        every[0].set_xlabel("feature")
        every = every[1:]
    for axes, (name, values) in zip(every, columns.items(), strict=True):
        dots = _dots(axes, layout, name, values)
        figure.colorbar(dots, ax=axes, label=name, extend="both", shrink=0.8)
    return _rendered(figure)


def _dots(axes: Axes, layout: Layout, name: str, values: Array) -> ScalarMappable:
    """Draw the map coloured by a column, those that are farthest from zero on top."""
    chosen = np.array(thinned(len(values), MOST_DOTS))
    order = chosen[np.argsort(np.abs(values[chosen]), kind="stable")]
    colours, norm = _colours(name, values)
    return _scatter(axes, layout, order, values, cmap=colours, norm=norm)


def _scatter(
    axes: Axes, layout: Layout, order: Array, colours: Sequence[str] | Array, **options: Any
) -> ScalarMappable:
    """Draw some points of the map, the last on top."""
    dots = axes.scatter(
        layout.points[order, 0],
        layout.points[order, 1],
        c=[colours[place] for place in order.tolist()],
        s=float(np.clip(20_000 / max(len(order), 1), 2, 24)),
        edgecolors="0.35",
        linewidths=0.2,
        **options,
    )
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=[], yticks=[])
    axes.set_aspect(layout.size[0] / layout.size[1])
    axes.set_facecolor(_GROUND)
    return dots


def _rendered(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return Image.fromarray(pixels).convert("RGB")
