"""Pictures for people: transparency masks, rows side by side, the contact sheet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur
from torchvision.utils import make_grid

from mti_lightning.errors import InputError
from mti_lightning.files import open_file, versions
from mti_lightning.tables import read_table

_GROUND = 0.92  # light grey behind transparent pictures


def opacity(saliency: Tensor, percentile: float = 95.0, blur: float = 0.015) -> Tensor:
    """Return how opaque each pixel is, [N, 1, H, W] in 0..1: opaque where the objective looked.

    Args:
        saliency: Σ over steps of |∂loss/∂pixel|, averaged over channels, [N, H, W].
        percentile: Where opacity reaches 1.
        blur: Standard deviation of the blur, in shares of the longer side.
    """
    sigma = max(blur * max(saliency.shape[1:]), 0.5)
    kernel = 2 * min(int(3 * sigma), (min(saliency.shape[1:]) - 1) // 2) + 1
    # Across, then down: on a canvas of 512 pixels in both at once takes as long as seven steps.
    across = gaussian_blur(saliency[:, None].float(), [kernel, 1], [sigma, sigma])
    blurred = gaussian_blur(across, [1, kernel], [sigma, sigma])
    top = torch.quantile(blurred.flatten(1), percentile / 100, dim=1)[:, None, None, None]
    alpha: Tensor = (blurred / top.clamp(min=1e-12)).clamp(0, 1)
    return alpha


def within(size: tuple[int, int], widest: float) -> tuple[int, int]:
    """Return a height and width of the same shape, at most so wide."""
    shrink = min(1.0, widest / size[1])
    return max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))


def composite(pictures: Tensor, alpha: Tensor) -> Tensor:
    """Lay pictures over light grey, [N, 3, H, W]."""
    return pictures * alpha + _GROUND * (1 - alpha)


def grid(pictures: Tensor, columns: int) -> Tensor:
    """Return pictures [N, 3, H, W] in rows, as one, [3, H', W']."""
    laid: Tensor = make_grid(pictures, nrow=columns, padding=2, pad_value=1.0)
    return laid


def to_image(picture: Tensor, alpha: Tensor | None = None) -> Image.Image:
    """Turn a picture [3, H, W] in 0..1 and its opacity [1, H, W] into RGBA; without one, RGB."""
    planes = picture if alpha is None else torch.cat([picture, alpha])
    values = planes.detach().float().cpu().clamp(0, 1).mul(255).round().byte()
    return Image.fromarray(np.ascontiguousarray(values.permute(1, 2, 0).numpy()))


@dataclass(frozen=True)
class Run:
    """The results of one run on disk."""

    folder: Path
    rows: list[dict[str, str]]
    sources: list[dict[str, str]]

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """Read a run's folder, or the latest version in a folder of versions.

        Raises:
            InputError: If there are no results in it.
        """
        finished = [path for path in versions(folder) if (path / "results.csv").exists()]
        latest = finished[-1] if finished else folder
        if not (latest / "results.csv").is_file():
            raise InputError(
                f"{folder} holds no results.csv; give the folder of a finished run, such as "
                "tb_logs/NAME/version_0"
            )

        def table(name: str) -> list[dict[str, str]]:
            path = latest / name
            return read_table(path) if path.is_file() else []

        return cls(latest, table("results.csv"), table("sources.csv"))

    def picture(self, row: Mapping[str, str]) -> Path:
        """Return the file of a row's picture.

        Raises:
            InputError: If it is outside the folder.
        """
        path = self.folder / row["file"]
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise InputError(f"{self.folder} names {row['file']}, which is outside it")
        return path


# Pillow's own font knows no superscripts and no typographic minus.
_COLUMNS = {
    "source": ("source", "the picture as the network sees it"),
    "positive": ("+ inversion", "what in it excites the feature"),
    "negative": ("- inversion", "what in it inhibits the feature"),
    "mti": ("tense image", "made from noise: excites and inhibits"),
}
_MARGIN, _TILE, _NUMBERS, _HEAD = 14, 176, 270, 84


_Cell = dict[str, tuple[Path, dict[str, str]]]


def _cells(runs: Sequence[Run]) -> dict[tuple[str, str], _Cell]:
    """Return for each (feature, source) a picture's file and its numbers, by what it shows."""
    cells: dict[tuple[str, str], _Cell] = {}
    for run in runs:
        for row in run.sources:
            cell = cells.setdefault((row["feature"], row["source"]), {})
            cell["source"] = (run.picture(row), row)
        for row in filter(lambda row: row["source"], run.rows):
            cell = cells.setdefault((row["feature"], row["source"]), {})
            cell.setdefault(row["objective"], (run.picture(row), row))
    for run in runs:
        for row in filter(lambda row: not row["source"], run.rows):
            # Made from noise: shown beside every source of its feature.
            beside = [key for key in cells if key[0] == row["feature"]] or [(row["feature"], "")]
            for key in beside:
                cell = cells.setdefault(key, {})
                cell.setdefault(row["objective"], (run.picture(row), row))
    return cells


def contact_sheet(folders: Sequence[Path], most: int = 16, caption: str = "") -> Image.Image:
    """Lay the pictures of several runs side by side, a row for each source and feature.

    The columns are source, + inversion, − inversion, tense image, and the numbers.

    Args:
        folders: Folders of finished runs.
        most: Rows at most.
        caption: What stands beneath.

    Raises:
        InputError: If a folder holds no results.
    """
    runs = [Run.read(folder) for folder in folders]
    cells = _cells(runs)
    names = {row["feature"]: row.get("class", "") for run in runs for row in run.rows}
    found = {kind for cell in cells.values() for kind in cell}
    kinds = [kind for kind in _COLUMNS if kind in found]
    keys = list(cells)[:most]
    step = _TILE + _MARGIN
    font, small, bold = (ImageFont.load_default(size) for size in (15, 12, 18))
    width, high = _MARGIN + len(kinds) * step + _NUMBERS, _HEAD + len(keys) * step
    told = _wrapped(caption, small, width - 2 * _MARGIN) if caption else ""
    beneath = 18 * (told.count("\n") + 2) if told else 0
    sheet = Image.new("RGB", (width, high + beneath), "white")
    draw = ImageDraw.Draw(sheet)
    draw.multiline_text((_MARGIN, high), told, fill="#555", font=small)
    for column, kind in enumerate(kinds):
        x = _MARGIN + column * step
        draw.text((x, 20), _COLUMNS[kind][0], fill="black", font=bold)
        draw.multiline_text(
            (x, 44), _wrapped(_COLUMNS[kind][1], small, _TILE), fill="#555", font=small
        )
    draw.text(
        (_MARGIN + len(kinds) * step, 20), "response = E+ - E- + bias", fill="black", font=font
    )
    draw.text((_MARGIN + len(kinds) * step, 44), "in units of the feature", fill="#555", font=small)
    for line, key in enumerate(keys):
        y = _HEAD + line * step
        text = [""]
        for column, kind in enumerate(kinds):
            if kind not in cells[key]:
                continue
            path, row = cells[key][kind]
            with open_file(path) as file, Image.open(file, formats=["PNG"]) as image:
                shown = (0, 0, image.width, min(image.height, image.width))
                high = max(1, round(_TILE * shown[3] / image.width))
                tile = image.convert("RGBA").resize(
                    (_TILE, high), Image.Resampling.LANCZOS, box=shown
                )
            ground = Image.new("RGBA", tile.size, (round(_GROUND * 255),) * 3 + (255,))
            sheet.paste(
                Image.alpha_composite(ground, tile).convert("RGB"), (_MARGIN + column * step, y)
            )
            values = {name: float(row[name]) for name in ("response", "excitation", "inhibition")}
            label = _COLUMNS[kind][0].split()[0]
            text.append(
                f"{label:<10}{values['response']:+8.1f}{values['excitation']:8.1f}{values['inhibition']:8.1f}"
            )
        text[0] = f"{'':<10}{'response':>8}{'E+':>8}{'E-':>8}"
        x, name = _MARGIN + len(kinds) * step, names.get(key[0], "")
        draw.text((x, y + 14), name or key[0], fill="black", font=bold if name else font)
        draw.text((x, y + 38), key[0] if name else "", fill="#555", font=small)
        _table(draw, (x, y + (60 if name else 42)), text, font)
    return sheet


def _table(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    lines: Sequence[str],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """Write lines of a word and right-aligned numbers; the default font is proportional."""
    stops = (0, 130, 195, 255)
    for number, line in enumerate(lines):
        y = corner[1] + 22 * number
        words = ["", *line.split()] if number == 0 else line.split()
        draw.text((corner[0], y), words[0], fill="#555", font=font)
        for stop, word in zip(stops[1:], words[1:], strict=True):
            draw.text(
                (corner[0] + stop, y),
                word,
                fill="#555" if number == 0 else "black",
                font=font,
                anchor="ra",
            )


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= width else [*lines, word]
    return "\n".join(lines)
