"""Pages that are one HTML file each, need no network, and run no script but their own."""

import base64
import hashlib
import io
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, final

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from mti_lightning.errors import InputError
from mti_lightning.files import read_text, replacing

# What all pages begin with, and what all of their scripts do.
_HEAD: Final = """<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="__POLICY__">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">"""
_START: Final = """"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
// Names are data: text goes into the page as text nodes only, never as markup.
function element(tag, text = "", parent = null, name = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (name) made.className = name;
  if (parent) parent.append(made);
  return made;
}"""


def write_html(
    path: Path, package: str, data: Mapping[str, Any], template: str = "page.html"
) -> None:
    """Write a page: a template of a package with its data put in.

    Args:
        path: The file; it is replaced in one step.
        package: Whose template has `__HEAD__` where all pages' head goes, with what the page may
            do: to run its own script and to show its own pictures; `__START__` where its script
            begins, and `__DATA__` where the data go.
        data: As JSON can tell them. Names in them are to reach the page as text nodes.
        template: Its name.
    """
    empty = files(package).joinpath(template).read_text(encoding="utf-8")
    empty = empty.replace("__HEAD__", _HEAD).replace("__START__", _START)
    # The data come last: what they hold is not searched for the other places.
    page = empty.replace("__POLICY__", _policy(empty)).replace("__DATA__", _embedded(data))
    with replacing(path) as part:
        part.write_text(page, encoding="utf-8", newline="\n")


def read_data(path: Path) -> dict[str, Any]:
    """Return the data of a page that `write_html` wrote.

    Raises:
        InputError: If it is none.
    """
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', read_text(path), re.DOTALL
    )
    try:
        data = json.loads(found[1]) if found else None
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise InputError(f"{path} is no page of this package")
    return data


@final
class Images:
    """Pictures as data addresses, equal ones once."""

    def __init__(self) -> None:
        self.addresses: dict[str, int] = {}

    def add(self, image: Image.Image, side: int) -> int:
        """Return the place of a picture whose longer side is at most `side` pixels."""
        small = image.convert("RGBA" if image.has_transparency_data else "RGB")
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        small.save(buffer, "WEBP", quality=70, alpha_quality=50, method=2)
        address = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
        return self.addresses.setdefault(address, len(self.addresses))


def numbers(values: ArrayLike) -> list[float | None]:
    """Return six significant digits of each number; None for what JSON has no number for."""
    return [
        float(f"{value:.6g}") if np.isfinite(value) else None
        for value in np.asarray(values, dtype=np.float64).tolist()
    ]


def _embedded(data: Mapping[str, Any]) -> str:
    """Return JSON that cannot end the script element it stands in."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _policy(template: str) -> str:
    """Return a content security policy that runs and styles by what is in the template alone."""
    kinds = {"script": r"<script>(.*)</script>", "style": r"<style>(.*)</style>"}
    allowed = ["default-src 'none'", "img-src data:", "base-uri 'none'", "form-action 'none'"]
    for kind, pattern in kinds.items():
        inline = "".join(re.findall(pattern, template, re.DOTALL))
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        allowed.append(f"{kind}-src 'sha256-{digest}'")
    return "; ".join(allowed)
