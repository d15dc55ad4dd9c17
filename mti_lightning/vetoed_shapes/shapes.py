"""The shapes that are drawn: their kinds, outlines and what each covers of a picture."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

KINDS = ("disc", "square", "triangle", "star", "cross", "ring", "crescent", "bars")
PICTURE_SIZE = 96  # pixels, each side

Array = npt.NDArray[np.float64]


def _signed_distance(kind: int, u: Array, v: Array) -> Array:
    """Distance to the border of a shape of unit radius, negative inside.

    Exact enough for anti-aliasing.
    """
    r = np.hypot(u, v)
    name = KINDS[kind]
    if name == "disc":
        return r - 0.85
    if name == "square":
        return np.maximum(abs(u), abs(v)) - 0.74
    if name == "triangle":
        return np.maximum(abs(u) * 0.8660254 + v * 0.5, -v) - 0.5
    if name == "star":
        sector = np.pi / 5
        # Folded into one half of a point.
        angle: Array = abs(np.mod(np.arctan2(u, v) + sector, 2 * sector) - sector)
        inner = 0.42 * np.array([np.cos(sector), np.sin(sector)])
        normal = np.array([inner[1], 1 - inner[0]]) / np.hypot(inner[1], 1 - inner[0])
        edge: Array = (r * np.cos(angle) - 1) * normal[0] + r * np.sin(angle) * normal[1]
        return edge
    if name == "cross":
        upright = np.maximum(abs(u) - 0.27, abs(v) - 0.95)
        return np.minimum(np.maximum(abs(u) - 0.95, abs(v) - 0.27), upright)
    if name == "ring":
        return abs(r - 0.72) - 0.2
    if name == "crescent":
        return np.maximum(r - 0.95, 0.8 - np.hypot(u - 0.5, v))
    return np.maximum(abs(v) - 0.85, abs(abs(u) - 0.5) - 0.2)  # bars


@dataclass(frozen=True)
class Shape:
    """One shape of a scene.

    Attributes:
        kind: 0..7.
        row: Of its centre, in pixels.
        column: Of its centre, in pixels.
        radius: In pixels.
        angle: In radians.
        colour: RGB in 0..1.
    """

    kind: int
    row: float
    column: float
    radius: float
    angle: float
    colour: tuple[float, float, float]

    def coverage(self) -> Array:
        """Return the share of each pixel the shape covers, [H, W] in 0..1."""
        y, x = np.mgrid[:PICTURE_SIZE, :PICTURE_SIZE]
        y, x = (y - self.row) / self.radius, (x - self.column) / self.radius
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        distance = _signed_distance(self.kind, cos * x + sin * y, cos * y - sin * x)
        share: Array = np.clip(0.5 - distance * self.radius, 0, 1)
        return share
