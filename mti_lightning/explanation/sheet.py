"""The sheet of an explanation: one band for each feature, one block for each picture.

A block has, from left to right: where in the picture the feature is excited and inhibited, what
excites it, what inhibits it, and the numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from mti_lightning import loggers
from mti_lightning.errors import shortened
from mti_lightning.explanation.choose import Said
from mti_lightning.explanation.result import Explanation, Inversion, Part, percent, said

# Told apart by people with colour-blindness; the same as in scatters and atlases.
_EXCITES, _INHIBITS, _INK, _GREY, _PAPER = "#c2570c", "#5b3a99", "#1d1d1f", "#6e6e73", "#ffffff"
_GROUND = "#f0f0f1"
_TILE, _GAP, _MARGIN, _APART = 232, 14, 40, 44  # points
_TITLE, _HEADS, _BAND, _FOOT = 92, 44, 44, 58
_DENSITY = 2  # pixels a point
_FADED = 0.25  # of what the objective did not look at, how opaque it still is


@dataclass
class _Page:
    """A figure on which things are placed in points from the upper left corner."""

    width: float
    height: float

    def __post_init__(self) -> None:
        # Of 72 points an inch.
        self.figure = Figure(figsize=(self.width / 72, self.height / 72), facecolor=_PAPER)

    def text(self, x: float, y: float, text: str, size: float = 12, **style: Any) -> None:
        style = {"color": _INK, "va": "top", **style}
        # What users give may hold a $.
        self.figure.text(
            x / self.width, 1 - y / self.height, text, fontsize=size, parse_math=False, **style
        )

    def box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        corner = x / self.width, 1 - (y + height) / self.height
        size = width / self.width, height / self.height
        self.figure.add_artist(
            Rectangle(corner, *size, color=colour, linewidth=0, transform=self.figure.transFigure)
        )

    def bar(self, x: float, y: float, width: float, height: float, of: float, colour: str) -> None:
        """Draw a share `of` a bar, 0..1, on a lighter ground."""
        self.box(x, y, width, height, _GROUND)
        self.box(x, y, width * of, height, colour)

    def image(self, x: float, y: float, image: Image.Image, side: float = _TILE) -> None:
        """Show a picture whole, in a square."""
        scale = side / max(image.size)
        size = (round(image.width * scale * _DENSITY), round(image.height * scale * _DENSITY))
        left = x + (side - size[0] / _DENSITY) / 2
        bottom = self.height - y - (side + size[1] / _DENSITY) / 2
        shown = image.resize(size, Image.Resampling.LANCZOS)
        corner = round(left * _DENSITY), round(bottom * _DENSITY)
        self.figure.figimage(np.asarray(shown), *corner, origin="upper")

    def drawn(self) -> Image.Image:
        self.figure.set_dpi(72 * _DENSITY)
        return loggers.draw(self.figure)


def draw(explanation: Explanation) -> Image.Image:
    """Draw the sheet of an explanation."""
    blocks, bands = len(explanation.pictures), _bands(explanation)
    block = 4 * _TILE + 3 * _GAP
    top = _TITLE + _TILE + _APART
    page = _Page(
        2 * _MARGIN + blocks * block + (blocks - 1) * _APART,
        top + _HEADS + len(bands) * (_BAND + _TILE + _APART) + _FOOT,
    )
    page.text(_MARGIN, 30, "What excites, what inhibits", 26, weight="bold")
    page.text(_MARGIN, 66, f"{explanation.model}, {explanation.why}", 12, color=_GREY)
    every = [(*part.numbers.values(), part.rest) for part in explanation.parts]
    longest = max(abs(value) for values in every for value in values)
    for place, picture in enumerate(explanation.pictures):
        x = _MARGIN + place * (block + _APART)
        _introduce(page, x, _TITLE, picture, explanation.names[place], explanation.said[place])
        _head(page, x, top)
        for line, parts in enumerate(bands):
            y = top + _HEADS + line * (_BAND + _TILE + _APART)
            _lay(page, x, y, picture, parts[place], longest or 1.0)
    page.text(
        _MARGIN,
        page.height - _FOOT + 14,
        "E⁺ and E⁻: what the places of the picture add to the response and take from it, at that "
        "layer; the rest is in no place, as biases are. Tension is large only if both are.\n"
        "A + or − picture is made from noise: it shows the network what excites or inhibits the "
        "feature in the picture, and nothing else of it.",
        10,
        color=_GREY,
        linespacing=1.5,
    )
    return page.drawn()


def _bands(explanation: Explanation) -> list[list[Part]]:
    """Return for each feature its parts, one of each picture."""
    bands: dict[str, list[Part]] = {}
    for part in explanation.parts:
        bands.setdefault(str(part.feature), []).append(part)
    return list(bands.values())


def _introduce(
    page: _Page, x: float, y: float, picture: Image.Image, name: str, classes: Sequence[Said]
) -> None:
    """Show a picture, and what the network says of it."""
    page.image(x, y, picture)
    x += _TILE + _GAP + 10
    page.text(x, y, shortened(name, 60), 16, weight="bold")
    if not classes:
        page.text(x, y + 30, "as the network sees it", 12, color=_GREY)
        return
    page.text(x, y + 28, "the network says", 12, color=_GREY)
    width = 2 * _TILE
    most = max(one.logit for one in classes)
    for line, one in enumerate(classes):
        at = y + 56 + 35 * line
        length = one.share if one.share is not None else max(one.logit / most, 0) if most > 0 else 0
        told = _number(one.logit) if one.share is None else percent(one.share)
        page.bar(x, at + 17, width, 8, length, _GREY if line else _INK)
        page.text(x, at, shortened(one.name, 48), 12)
        page.text(x + width, at, told, 12, ha="right")


def _head(page: _Page, x: float, y: float) -> None:
    step = _TILE + _GAP
    for place, (title, told, colour) in enumerate(
        (
            ("where", "it is excited, inhibited", _INK),
            ("+  excites it", "made from noise", _EXCITES),
            ("−  inhibits it", "made from noise", _INHIBITS),
            ("how much", "in units of the response", _INK),
        )
    ):
        at = x + place * step
        page.text(at, y, title, 14, weight="bold", color=colour)
        page.text(at, y + 19, told, 10.5, color=_GREY)
        page.box(at, y + 38, _TILE, 2, colour)


def _lay(page: _Page, x: float, y: float, picture: Image.Image, part: Part, longest: float) -> None:
    """Lay out what there is of a feature in a picture."""
    name = part.name or str(part.feature)
    page.text(x, y + 12, shortened(name, 44), 17, weight="bold")
    told = [str(part.feature)] if part.name else []
    if part.rank is not None:
        rank = {1: "said first", 2: "said second", 3: "said third"}
        told.append(rank.get(part.rank, f"rank {part.rank:,}"))
        told += [said(part)] if part.share is not None else []
    page.text(x + 4 * _TILE + 3 * _GAP, y + 16, "  ·  ".join(told), 11, color=_GREY, ha="right")
    y += _BAND
    step = _TILE + _GAP
    page.image(x, y, _overlaid(picture, part.attribution))
    before = part.numbers["response"]
    for place, (inversion, sign, colour) in enumerate(
        ((part.positive, "+", _EXCITES), (part.negative, "−", _INHIBITS)), start=1
    ):
        at = x + place * step
        if inversion is None:
            _empty(page, at, y, sign)
            continue
        page.image(at, y, _laid_over_paper(inversion))
        page.text(
            at,
            y + _TILE + 6,
            f"response {_number(before)} → {_number(inversion.response)}",
            11,
            color=colour,
            weight="bold",
        )
        if inversion.cosine < 0.1:
            page.text(at + _TILE, y + _TILE + 6, "did not succeed", 11, color=_GREY, ha="right")
    _numbers(page, x + 3 * step, y, part, longest)


def _empty(page: _Page, x: float, y: float, sign: str) -> None:
    """Say why a picture is not there."""
    does, other = ("excites", "inhibits") if sign == "+" else ("inhibits", "excites")
    page.box(x, y, _TILE, _TILE, _GROUND)
    told = f"next to nothing: hardly a place\nwhere more {does} it\nthan {other} it"
    middle = {"ha": "center", "va": "center", "color": _GREY, "linespacing": 1.5}
    page.text(x + _TILE / 2, y + _TILE / 2, told, 12, **middle)


def _numbers(page: _Page, x: float, y: float, part: Part, longest: float) -> None:
    """Draw the numbers as bars to one scale for the whole sheet."""
    rows = (
        ("excites, +E⁺", part.numbers["excitation"], _EXCITES),
        ("inhibits, −E⁻", -part.numbers["inhibition"], _INHIBITS),
        ("the rest, in no place", part.rest, _GREY),
        ("response, the sum", part.numbers["response"], _INK),
        ("tension", part.numbers["tension"], _GREY),
    )
    for line, (told, value, colour) in enumerate(rows):
        at = y + 2 + 47 * line
        page.text(x, at, told, 12, color=_GREY)
        page.text(x + _TILE, at - 2, _number(value), 16, color=colour, weight="bold", ha="right")
        page.bar(x, at + 21, _TILE, 9, abs(value) / longest, colour)


def _overlaid(picture: Image.Image, attribution: NDArray[np.float32]) -> Image.Image:
    """Lay over a faded picture how much each part of it excites and inhibits."""
    size = picture.size
    strength = np.abs(attribution).max() or 1.0
    smooth = Image.fromarray(attribution / strength).resize(size, Image.Resampling.BICUBIC)
    signed = np.clip(np.asarray(smooth), -1, 1)[..., None]  # [H, W, 1]
    grey = np.asarray(picture.convert("L"), np.float32)[..., None] / 255
    ground = 0.25 + 0.7 * grey
    colours = np.where(signed > 0, _rgb(_EXCITES), _rgb(_INHIBITS))
    opaque = np.abs(signed) * 0.85
    # Dark parts of the picture stay visible through the colour.
    mixed = ground * (1 - opaque) + colours * (0.45 + 0.75 * grey) * opaque
    return Image.fromarray((np.clip(mixed, 0, 1) * 255).round().astype(np.uint8))


def _laid_over_paper(inversion: Inversion) -> Image.Image:
    values = np.asarray(inversion.image, np.float32) / 255  # [H, W, 4]
    opaque = _FADED + (1 - _FADED) * values[..., 3:]
    mixed = values[..., :3] * opaque + 0.94 * (1 - opaque)
    return Image.fromarray((mixed * 255).round().astype(np.uint8))


def _rgb(colour: str) -> NDArray[np.float32]:
    return np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)], np.float32)


def _number(value: float) -> str:
    """Return a number with a typographic minus, to more places where it is small."""
    return f"{value:.{1 if abs(value) >= 1 else 2}f}".replace("-0.00", "0.00").replace("-", "−")
