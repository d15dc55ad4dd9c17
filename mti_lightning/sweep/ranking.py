"""The top pictures and features of a sweep, as tables, contact sheets and scatters."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from mti_lightning.compose import to_image
from mti_lightning.data.datasets import Pictures
from mti_lightning.errors import InputError, shortened
from mti_lightning.features.classes import display
from mti_lightning.files import replacing
from mti_lightning.locks import taking
from mti_lightning.log import log_info
from mti_lightning.loggers import log_figure, log_text, tensorboards
from mti_lightning.sweep.measures import MEASURES, Array, check_measure, select
from mti_lightning.sweep.pictures import pictures_of
from mti_lightning.sweep.store import SweepStore
from mti_lightning.tables import in_markdown, write_table

_TILE, _MARGIN, _LINES, _COLUMNS, _HEAD = 176, 14, 62, 5, 48
_RINGED = 16
_MOST_SCATTERS = 16
_MOST_BARS = 30
_LONGEST = 36  # letters beside a bar
_COLOURS = "PuOr_r"  # diverging, told apart by people with colour-blindness


def table(store: SweepStore, feature: int, measure: str, count: int) -> list[dict[str, Any]]:
    """Return a row for each of the top pictures of a feature, with all its measures.

    Raises:
        InputError: If no picture has the measure.
    """
    top = store.top(feature, measure, count)
    if not top:
        raise _nothing_to_rank(store, measure)
    values = {name: store.values(name, feature, top) for name in store.measures}
    return [
        {"rank": place + 1, "key": key, "index": top[place]}
        | {name: f"{column[place]:.6g}" for name, column in values.items()}
        for place, key in enumerate(store.keys_of(top))
    ]


def layer_table(store: SweepStore, measure: str = "tension") -> list[dict[str, Any]]:
    """Return a row for each feature, ranked by how high a measure gets.

    That is its 99th percentile over the pictures, for the low end the first: of the top pictures,
    but not of a single one.

    Raises:
        InputError: If no picture has the measure.
    """
    name, low = check_measure(measure)
    sign, wide, depth = -1 if low else 1, len(store.features), store.size // 100 + 2
    count, total = 0, np.zeros(wide)
    peak, top = np.full(wide, -np.inf), np.zeros(wide, np.int64)
    held, floor = [np.empty(0, np.float32)] * wide, np.full(wide, -np.inf)
    # Only the top hundredth is held: all pictures by all features of a layer may not fit in memory.
    for span in store.spans:
        values = sign * store.values(name, pictures=span)  # [P', F]
        rows = np.flatnonzero(np.isfinite(values).all(1))
        if not len(rows):
            continue
        values = np.ascontiguousarray(values[rows].T)  # [F, P']
        count, total = count + len(rows), total + values.sum(1, dtype=np.float64)
        top = np.where(values.max(1) > peak, span.start + rows[values.argmax(1)], top)
        peak = np.maximum(values.max(1), peak)
        for place, of_feature in enumerate(values):
            held[place] = np.append(held[place], of_feature[of_feature > floor[place]])
            if len(held[place]) > 2 * depth:
                held[place] = _highest(held[place], depth)
                floor[place] = held[place].min()
    if not count:
        raise _nothing_to_rank(store, measure)
    highest = np.stack([_highest(values, depth) for values in held], 1)
    from_top = 0.01 * (count - 1) / max(len(highest) - 1, 1)  # of what is held
    classes = store.classes
    high, mean = sign * np.quantile(highest, 1 - from_top, axis=0), sign * total / count
    rows_of = [
        {
            "feature": feature,
            "class": classes[place],
            f"{name}_{'1st' if low else '99th'}": f"{high[place]:.6g}",
            f"{name}_mean": f"{mean[place]:.6g}",
            "lowest" if low else "highest": key,
        }
        for place, (feature, key) in enumerate(zip(store.features, store.keys_of(top), strict=True))
    ]
    return [rows_of[place] for place in np.argsort(-sign * high, kind="stable")]


def _highest(values: Array, count: int) -> Array:
    """Return the highest of some values, in no order."""
    return np.partition(values, max(len(values) - count, 0))[-count:]


def _nothing_to_rank(store: SweepStore, measure: str) -> InputError:
    return InputError(f"{store.path} has no picture with a finite {measure.removeprefix('-')} yet")


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


def scatter(columns: Mapping[str, Array], ringed: Sequence[int], feature: str) -> Figure:
    """Draw E⁺ against E⁻ of all pictures, coloured by response, some of them ringed.

    Args:
        columns: `excitation`, `inhibition` and `response` of a feature, [P] each.
        ringed: Some of the pictures.
        feature: What the title calls it.
    """
    excited, inhibited, response = (
        columns[name] for name in ("excitation", "inhibition", "response")
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
        aspect="equal",
    )
    axes.set_title(f"{feature}, {len(ringed)} tensest ringed", parse_math=False)
    figure.colorbar(dots, label="response")
    return figure


def layer_bars(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draw how much tension the features see that see most."""
    shown = rows[:_MOST_BARS]
    figure = Figure(figsize=(6.4, 0.4 + 0.24 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(range(len(shown)), [float(row["tension_99th"]) for row in shown])
    names = [display(row["feature"], row["class"]) for row in shown]
    # A longer one would leave no room for its bar.
    names = [shortened(name, _LONGEST) for name in names]
    axes.set_yticks(range(len(shown)), names, parse_math=False)
    axes.invert_yaxis()
    axes.set(xlabel="99th percentile of tension over the pictures")
    return figure


def log(store: SweepStore, loggers: Sequence[Logger]) -> None:
    """Show a sweep in loggers: a scatter per feature, the features that see most tension."""
    ranked = layer_table(store)
    places = [store.feature_index(row["feature"]) for row in ranked[:_MOST_SCATTERS]]
    shown = [store.shown[place] for place in places]
    names = ("excitation", "inhibition", "response", "tension")
    values = {name: store.values(name, places) for name in names}  # at once; see there
    for place, feature in enumerate(shown):
        columns = {name: of_all[:, place] for name, of_all in values.items()}
        ringed = select(columns["tension"], _RINGED).tolist()
        log_figure(loggers, f"sweep/{feature}", scatter(columns, ringed, feature), 0)
    if len(ranked) > 1:
        log_figure(loggers, "sweep_features", layer_bars(ranked), 0)
        head = "| " + " | ".join(ranked[0]) + " |\n|" + "---|" * len(ranked[0])
        body = [
            "| " + " | ".join(in_markdown(str(v)) for v in row.values()) + " |" for row in ranked
        ]
        log_text(loggers, "sweep_features", "\n".join([head, *body]))
    for writer in tensorboards(loggers):
        writer.flush()


def make_ranking(
    sweep: str,
    feature: str | None,
    measure: str,
    count: int | None,
    out: Path,
    sheet: Path | None,
    overwrite: bool,
) -> None:
    """Write the table, and the contact sheet, of the top pictures of a feature.

    Without a feature, where there are several, the table is of the features.

    Raises:
        InputError: If there is no such sweep, feature or measure, a file exists or cannot be
            written, or the sweep's pictures are gone or have changed.
    """
    check_measure(measure)
    if count is not None and count < 1:
        raise InputError(f"count {count}: give 1 or more")
    if sheet is not None and sheet.resolve() == out.resolve():
        raise InputError(f"{out} cannot be the table and the sheet; give two names")
    known = Image.registered_extensions()  # which fills SAVE
    if sheet is not None and known.get(sheet.suffix.lower()) not in Image.SAVE:
        raise InputError(f"{sheet}: Pillow writes no such format; give {sheet.stem}.png, or .jpg")
    store = SweepStore(sweep)
    if not store.complete:
        done = f"{np.count_nonzero(store.status)} of {store.size} pictures"
        log_info(f"{store.path} is not finished ({done}); the same mti predict goes on with it")
    whole_layer = feature is None and len(store.features) > 1 and sheet is None
    place = 0 if whole_layer else store.feature_index(feature)  # says which there are
    with taking(*filter(None, (out, sheet)), overwrite=overwrite):
        if whole_layer:
            write_table(out, layer_table(store, measure)[:count])
            return
        rows = table(store, place, measure, count or 20)
        if sheet is not None:
            title = f"{store.shown[place]}, top {len(rows)} by {measure}"
            pictures = pictures_of(store)
            store.check_contents(pictures, [row["index"] for row in rows])
            drawn = picture_sheet(store, pictures, place, rows, title)
            with replacing(sheet) as part:
                drawn.save(part)
        write_table(out, rows)


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"...{text[3 - length :]}"
