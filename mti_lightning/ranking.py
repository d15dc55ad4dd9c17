"""The top pictures and features of a sweep, as tables, contact sheets and scatters."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch.utils.tensorboard import SummaryWriter

from mti_lightning.compose import to_image
from mti_lightning.data import Pictures
from mti_lightning.errors import InputError
from mti_lightning.store import MEASURES, SweepStore, check_measure
from mti_lightning.swept import pictures_of

_TILE, _MARGIN, _LINES, _COLUMNS, _HEAD = 176, 14, 62, 5, 48
_RINGED = 16
_MOST_SCATTERS = 16
_MOST_BARS = 30
_COLOURS = "PuOr_r"  # diverging, told apart by people with colour-blindness


def table(store: SweepStore, feature: int, measure: str, count: int) -> list[dict[str, Any]]:
    """Return a row for each of the top pictures of a feature, with all its measures."""
    values = {name: store.values(name, feature) for name in MEASURES}
    keys = store.keys
    return [
        {"rank": rank, "key": keys[index], "index": index}
        | {name: f"{column[index]:.6g}" for name, column in values.items()}
        for rank, index in enumerate(store.top(feature, measure, count), 1)
    ]


def layer_table(store: SweepStore) -> list[dict[str, Any]]:
    """Return a row for each feature, ranked by how much tension it sees.

    That is the 99th percentile of its tension over the pictures: of the tensest it sees, but not of
    a single one.
    """
    tension, keys = store.values("tension"), store.keys
    measured = np.isfinite(tension).all(1)
    high = np.quantile(tension[measured], 0.99, axis=0)
    rows = [
        {
            "feature": name,
            "tension_99th": f"{high[place]:.6g}",
            "tension_mean": f"{tension[measured, place].mean():.6g}",
            "tensest": keys[int(np.nanargmax(tension[:, place]))],
        }
        for place, name in enumerate(store.features)
    ]
    return [rows[place] for place in np.argsort(-high, kind="stable")]


def picture_sheet(
    store: SweepStore, pictures: Pictures, feature: int, rows: Sequence[dict[str, Any]], title: str
) -> Image.Image:
    """Lay out the pictures of a table, each with the feature's window outlined, and its numbers."""
    step, high = _TILE + _MARGIN, _TILE + _LINES + _MARGIN
    columns = min(_COLUMNS, len(rows))
    lines = -(-len(rows) // _COLUMNS)
    sheet = Image.new("RGB", (_MARGIN + columns * step, _HEAD + lines * high), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    draw.text((_MARGIN, 16), title, fill="black", font=ImageFont.load_default(16))
    for place, row in enumerate(rows):
        x, y = _MARGIN + place % _COLUMNS * step, _HEAD + place // _COLUMNS * high
        tile = to_image(pictures[row["index"]]["picture"])
        if box := store.window(feature):
            top, left, height, width = box
            corners = (left, top, left + width - 1, top + height - 1)
            ImageDraw.Draw(tile).rectangle(corners, outline="white", width=2)
            ImageDraw.Draw(tile).rectangle(corners, outline="black", width=1)
        scale = _TILE / max(tile.size)
        sheet.paste(tile.resize((round(tile.width * scale), round(tile.height * scale))), (x, y))
        numbers = {name: float(row[name]) for name in MEASURES}
        text = [
            f"{row['rank']}. {_short(row['key'], 22)}",
            f"response {numbers['response']:.3g}   tension {numbers['tension']:.3g}",
            f"E+ {numbers['excitation']:.3g}   E- {numbers['inhibition']:.3g}",
        ]
        draw.multiline_text((x, y + _TILE + 4), "\n".join(text), fill="#333", font=font)
    return sheet


def scatter(store: SweepStore, feature: int, ringed: Sequence[int]) -> Figure:
    """Draw E⁺ against E⁻ of all pictures, coloured by response, some of them ringed."""
    excited, inhibited, response = (
        store.values(name, feature) for name in ("excitation", "inhibition", "response")
    )
    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    axes = figure.add_subplot()
    top = float(np.nanmax([excited, inhibited, np.full_like(excited, 1e-6)]))
    axes.plot([0, top], [0, top], color="0.6", linewidth=1, zorder=0)
    order = np.argsort(np.abs(response))  # strong ones on top
    dots = axes.scatter(
        inhibited[order],
        excited[order],
        c=response[order],
        s=float(np.clip(20_000 / max(len(order), 1), 4, 30)),
        cmap=_COLOURS,
        norm=CenteredNorm(),
        edgecolors="0.35",
        linewidths=0.2,
        rasterized=True,
    )
    axes.scatter(
        inhibited[ringed],
        excited[ringed],
        s=70,
        facecolors="none",
        edgecolors="black",
        linewidths=1.2,
    )
    axes.set(
        xlabel="inhibition E⁻",
        ylabel="excitation E⁺",
        title=f"{store.features[feature]}, {len(ringed)} tensest ringed",
        aspect="equal",
    )
    figure.colorbar(dots, label="response")
    return figure


def layer_bars(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draw how much tension the features see that see most."""
    shown = rows[:_MOST_BARS]
    figure = Figure(figsize=(6.4, 0.4 + 0.24 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh([row["feature"] for row in shown], [float(row["tension_99th"]) for row in shown])
    axes.invert_yaxis()
    axes.set(xlabel="99th percentile of tension over the pictures")
    return figure


def log(store: SweepStore, writer: SummaryWriter) -> None:
    """Show a sweep in TensorBoard: a scatter per feature, the features that see most tension."""
    ranked = layer_table(store)
    for row in ranked[:_MOST_SCATTERS]:
        feature = store.feature_index(row["feature"])
        ringed = store.top(feature, "tension", _RINGED)
        writer.add_figure(f"sweep/{row['feature']}", scatter(store, feature, ringed))
    if len(ranked) > 1:
        writer.add_figure("sweep_features", layer_bars(ranked))
        head = "| " + " | ".join(ranked[0]) + " |\n|" + "---|" * len(ranked[0])
        body = ["| " + " | ".join(map(str, row.values())) + " |" for row in ranked]
        writer.add_text("sweep_features", "\n".join([head, *body]))
    writer.flush()


def make_ranking(
    sweep: str,
    feature: str | None,
    measure: str,
    count: int,
    out: Path,
    sheet: Path | None,
    overwrite: bool,
) -> None:
    """Write the table, and the contact sheet, of the top pictures of a feature.

    Without a feature, where there are several, the table is of the features.

    Raises:
        InputError: If there is no such sweep, feature or measure, a file exists, or the sweep's
            pictures are gone.
    """
    check_measure(measure)
    if count < 1:
        raise InputError(f"count {count}: give 1 or more")
    for path in filter(None, (out, sheet)):
        if path.exists() and not overwrite:
            raise InputError(f"{path} exists; give another name, or --overwrite")
    store = SweepStore(sweep)
    if feature is None and len(store.features) > 1:
        if sheet is not None:
            store.feature_index(feature)  # says which there are
        _write(out, layer_table(store))
        return
    place = store.feature_index(feature)
    rows = table(store, place, measure, count)
    if not rows:
        raise InputError(f"{store.path} has no measured pictures yet")
    if sheet is not None:
        title = f"{store.features[place]}, top {len(rows)} by {measure}"
        sheet.parent.mkdir(parents=True, exist_ok=True)
        picture_sheet(store, pictures_of(store), place, rows, title).save(sheet)
    _write(out, rows)


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"...{text[3 - length :]}"
