"""What `explain` returns: pictures and numbers that show, print and save themselves."""

import base64
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]
from numpy.typing import NDArray
from PIL import Image

from mti_lightning.errors import InputError
from mti_lightning.explanation.choose import Said
from mti_lightning.features.classes import display
from mti_lightning.features.feature import Feature
from mti_lightning.files import file_name, replacing

_COLUMNS = ("response", "excitation", "inhibition", "tension")


@dataclass(frozen=True)
class Inversion:
    """A + or − inversion.

    Attributes:
        image: RGBA, opaque where the objective looked.
        response: The feature's value for it.
        cosine: Of its activations and what it was to show, -1..1.
    """

    image: Image.Image
    response: float
    cosine: float


@dataclass(frozen=True)
class Part:
    """What excites and inhibits one feature in one picture.

    Attributes:
        feature: The feature.
        name: Its class's; "" where it stands for none.
        picture: The index of the picture.
        numbers: `response`, `excitation`, `inhibition` and `tension`, in units of the response.
        rank: The class's among all classes of this picture, from 1; None where it is no class.
        share: The class's of the softmax, 0..1; None where classes do not exclude each other.
        attribution: How much each position excites (> 0) or inhibits, [rows, columns].
        positive: What excites the feature; None where nothing does.
        negative: What inhibits it; None where nothing does.
    """

    feature: Feature
    name: str
    picture: int
    numbers: Mapping[str, float]
    rank: int | None
    share: float | None
    attribution: NDArray[np.float32]
    positive: Inversion | None
    negative: Inversion | None

    @property
    def shown(self) -> str:
        """How the feature is shown to people."""
        return display(self.feature, self.name)

    @property
    def rest(self) -> float:
        """What of the response is in no place: biases, and what the method leaves out."""
        numbers = self.numbers
        return numbers["response"] - numbers["excitation"] + numbers["inhibition"]


@dataclass(frozen=True)
class Explanation:
    """What excites and what inhibits features of a network in pictures.

    In a notebook it shows itself.

    Attributes:
        model: The network's name.
        layer: The attribution layer.
        why: How it came to be that one, in a line.
        names: What each picture is called.
        pictures: As the network sees them.
        said: For each picture the classes that the network says first.
        parts: For each feature, of each picture.
        originals: The pictures in full.
        path: The file that a replay reads, where one holds just what was explained.
        settings: What `mti fit` takes to make the same, but for its data.
    """

    model: str
    layer: str
    why: str
    names: Sequence[str]
    pictures: Sequence[Image.Image]
    said: Sequence[Sequence[Said]]
    parts: Sequence[Part]
    originals: Sequence[Image.Image]
    path: Path | None
    settings: Mapping[str, Any]

    @property
    def sheet(self) -> Image.Image:
        """All of it on one sheet."""
        from mti_lightning.explanation.sheet import draw  # noqa: PLC0415  Matplotlib is slow to import

        return draw(self)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The numbers as a table, a row for each feature and picture."""
        return [
            {
                "feature": str(part.feature),
                "class": part.name,
                "picture": self.names[part.picture],
                "rank": part.rank,
                "share": part.share,
                **{name: part.numbers[name] for name in _COLUMNS},
                "response of +": part.positive and part.positive.response,
                "response of -": part.negative and part.negative.response,
            }
            for part in self.parts
        ]

    @property
    def table(self) -> str:
        """The numbers as text, with a head."""
        head = ("feature", "picture", "says", "response", "E+", "E-", "tension", "of +", "of -")
        lines: list[tuple[str, ...]] = [head]
        for part in self.parts:
            of = [inversion and inversion.response for inversion in (part.positive, part.negative)]
            values = [*(part.numbers[name] for name in _COLUMNS), *of]
            lines.append(
                (
                    part.shown,
                    self.names[part.picture],
                    said(part),
                    *("-" if value is None else f"{value:.2f}" for value in values),
                )
            )
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if place < 2 else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )

    def configuration(self, folder: Path | None = None) -> str:
        """Return what `mti fit --config` takes to make the same pictures, as YAML.

        Args:
            folder: Where pictures lie that have no file of their own, by `save`.
        """
        given = self.path or folder or Path("pictures")
        data = {
            "class_path": "PictureFile" if self.path else "PictureFolder",
            "init_args": {"path": str(given)},
        }
        text: str = yaml.safe_dump({**self.settings, "data": data}, sort_keys=False, width=100)
        return text

    def save(self, out: str | Path, overwrite: bool = False) -> list[Path]:
        """Write the sheet, and beside it the YAML that makes its pictures again.

        Several pictures, and those that have no file, go into a folder beside it, too.

        Args:
            out: The sheet, such as explain.png.
            overwrite: Replace what is there.

        Returns:
            What was written.

        Raises:
            InputError: If something is there, or it cannot be written.
        """
        out = Path(out)
        check_out(out, overwrite)
        folder, settings = pictures_folder(out), out.with_suffix(".yaml")
        written = [out, settings]
        with _writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            with replacing(out) as part:
                self.sheet.save(part)
            if self.path is None:
                folder.mkdir(exist_ok=True)
                for old in folder.glob("[0-9]*_*.png"):
                    old.unlink()
                for index, (name, picture) in enumerate(
                    zip(self.names, self.originals, strict=True)
                ):
                    with replacing(folder / f"{index}_{file_name(name, 80)}.png") as part:
                        picture.save(part)
                written.append(folder)
            with replacing(settings) as part:
                part.write_text(self.configuration(folder.absolute()), encoding="utf-8")
        return written

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.sheet.save(buffer, "PNG")
        return buffer.getvalue()

    def _repr_html_(self) -> str:
        address = base64.b64encode(self._repr_png_()).decode()
        return (
            f'<img alt="{escape(self.why)}" style="max-width: 100%" '
            f'src="data:image/png;base64,{address}"><pre>{escape(self.table)}</pre>'
        )


def said(part: Part) -> str:
    """Return how far up the network says the class: its share, or its rank, or nothing."""
    if part.share is not None:
        return percent(part.share)
    return "" if part.rank is None else f"#{part.rank}"


def percent(share: float) -> str:
    """Return a share as people write it."""
    return f"{share:.0%}" if share >= 0.005 else "<1%"


def pictures_folder(out: Path) -> Path:
    """Return the folder beside a sheet for pictures that have no file of their own."""
    return out.with_name(f"{out.stem}_pictures")


def check_out(out: Path, overwrite: bool) -> None:
    """Make sure that a sheet can be written.

    Raises:
        InputError: If it cannot.
    """
    if out.is_dir():
        raise InputError(f"{out} is a folder; give the name of a file in it")
    known = Image.registered_extensions()  # which fills SAVE
    if known.get(out.suffix.lower()) not in Image.SAVE:
        raise InputError(f"{out}: Pillow writes no such format; give {out.stem or 'sheet'}.png")
    for path in (out, out.with_suffix(".yaml"), pictures_folder(out)):
        if path.exists() and not overwrite:
            raise InputError(f"{path} exists; give another name, or --overwrite")
    parent = next(p for p in out.absolute().parents if p.exists())
    if not parent.is_dir():
        raise InputError(f"{out} cannot be written: {parent} is no folder")
    if not os.access(parent, os.W_OK):
        raise InputError(f"{out} cannot be written: no permission for {parent}")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be written: {error}") from error
