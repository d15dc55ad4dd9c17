"""The vetoed shapes: pictures whose excitation and inhibition are known.

Eight kinds of shape on coloured 1/f noise. Class k is present only if shape k is there *and* its
veto, shape (k + 3) mod 8, is not; a picture that holds both is a true maximally tense image of
class k's logit.
"""

from typing import Final, Literal, TypedDict, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mti_lightning.errors import InputError
from mti_lightning.vetoed_shapes.shapes import KINDS, PICTURE_SIZE, Array, Shape

VETO_OFFSET = 3
MOST_PICTURES: Final = 1_000_000

Contents = Literal["random", "tense", "overlap"]
Split = Literal["train", "validation", "test"]


def veto_of(kind: int) -> int:
    """Return the kind of shape whose presence vetoes class `kind` (0..7)."""
    return (kind + VETO_OFFSET) % len(KINDS)


class Sample(TypedDict):
    """One picture of the world and its truth."""

    picture: Tensor  # [3, 96, 96], 0..1
    key: str  # contents, split, seed and index: enough to draw the picture again
    present: Tensor  # [8], 1 where the shape is there
    label: Tensor  # [8], 1 where the class is: the shape is there and its veto is not
    tense: Tensor  # [8], 1 where shape and veto are both there


def _background(rng: np.random.Generator) -> tuple[Array, Array]:
    """Return coloured 1/f noise, [H, W, 3], and its mean colour, [3]."""
    rows, columns = np.fft.fftfreq(PICTURE_SIZE), np.fft.rfftfreq(PICTURE_SIZE)
    radius = np.maximum(np.hypot(rows[:, None], columns), 1 / PICTURE_SIZE)
    white = rng.standard_normal((2, 3, *radius.shape))
    noise = np.fft.irfft2((white[0] + 1j * white[1]) / radius, s=(PICTURE_SIZE, PICTURE_SIZE))
    noise = (noise - noise.mean((1, 2), keepdims=True)) / noise.std((1, 2), keepdims=True)
    noise = 0.75 * noise[:1] + 0.66 * noise  # mostly brightness, some colour
    mean = rng.uniform(0.2, 0.8, 3)
    return mean + rng.uniform(0.06, 0.14) * noise.transpose(1, 2, 0), mean


def _choose_kinds(rng: np.random.Generator, contents: Contents, index: int) -> list[int]:
    if contents != "random":
        kind = index % len(KINDS)
        return [kind, veto_of(kind)]
    kinds = [int(kind) for kind in rng.permutation(len(KINDS))[: rng.integers(1, 4)]]
    # Left to chance one picture in twenty is tense for a class; vetoes that rare are learnt poorly.
    if len(kinds) > 1 and rng.random() < 0.3:
        kinds[1] = veto_of(kinds[0])
        kinds = list(dict.fromkeys(kinds))
    return kinds


def _place(
    rng: np.random.Generator, shapes: list[Shape], radius: float, overlap: bool
) -> tuple[float, float]:
    """Return a centre (row, column) clear of `shapes`, or, with `overlap`, on the last of them."""
    low, high = radius - 1, PICTURE_SIZE - radius
    if overlap and shapes:
        offset = rng.uniform(0.5, 0.85) * shapes[-1].radius
        angle = rng.uniform(0, 2 * np.pi)
        row = shapes[-1].row + offset * np.sin(angle)
        column = shapes[-1].column + offset * np.cos(angle)
        return float(np.clip(row, low, high)), float(np.clip(column, low, high))
    centres = rng.uniform(low, high, (40, 2))
    clearance = np.full(len(centres), np.inf)
    for shape in shapes:
        distance = np.hypot(centres[:, 0] - shape.row, centres[:, 1] - shape.column)
        clearance = np.minimum(clearance, distance - shape.radius - radius)
    best = int(np.argmax(clearance >= 0)) if (clearance >= 0).any() else int(np.argmax(clearance))
    return float(centres[best, 0]), float(centres[best, 1])


class VetoedShapes(Dataset[Sample]):
    """Pictures of one to three shapes, each drawn from (seed, split, contents, index) alone.

    Args:
        size: Number of pictures.
        seed: Seed of the world; the same seed draws the same pictures on every machine.
        split: `train`, `validation` or `test`; no picture is in two splits.
        contents: `random`: one to three different shapes, clear of each other where there is room.
            `tense`: exactly shape k = index mod 8 and its veto. `overlap`: as `tense`, the two
            drawn over each other, either on top.

    Raises:
        InputError: If `size` is not positive, `seed` is negative, or `split` or `contents` is none
            of those named above.
    """

    def __init__(
        self, size: int = 2048, seed: int = 0, split: Split = "test", contents: Contents = "random"
    ) -> None:
        if not 1 <= size <= MOST_PICTURES:
            raise InputError(
                f"a world of {size} pictures: give a size of 1 or more, {MOST_PICTURES} at most"
            )
        if seed < 0:
            raise InputError(f"a world of seed {seed}: give 0 or more")
        for name, given, choices in (("split", split, Split), ("contents", contents, Contents)):
            if given not in get_args(choices):
                raise InputError(f"{name} {given!r} is none of {', '.join(get_args(choices))}")
        self.size, self.seed, self.split, self.contents = size, seed, split, contents

    def __len__(self) -> int:
        return self.size

    def _begin(self, index: int) -> tuple[np.random.Generator, Array, Array, list[int]]:
        """Return a picture's generator, background, its mean colour, and the kinds to draw."""
        if not 0 <= index < self.size:
            raise IndexError(f"picture {index} of a world of {self.size}")
        stream = (get_args(Split).index(self.split), get_args(Contents).index(self.contents))
        rng = np.random.default_rng((self.seed, *stream, index))
        return rng, *_background(rng), _choose_kinds(rng, self.contents, index)

    def _draw(self, index: int) -> tuple[Array, list[Shape]]:
        rng, picture, background, kinds = self._begin(index)
        shapes: list[Shape] = []
        for kind in kinds:
            radius = rng.uniform(11, 18)
            row, column = _place(rng, shapes, radius, self.contents == "overlap")
            # Unlike the background; over each other unlike the other shape, too, to be seen.
            overlapped = shapes if self.contents == "overlap" else []
            others = [background, *(np.array(shape.colour) for shape in overlapped)]
            colours = rng.uniform(0, 1, (40, 3))
            contrast = np.min([np.linalg.norm(colours - other, axis=1) for other in others], axis=0)
            enough = contrast > 0.5
            red, green, blue = colours[np.argmax(enough if enough.any() else contrast)].tolist()
            angle = rng.uniform(0, 2 * np.pi)
            shapes.append(Shape(kind, row, column, radius, angle, (red, green, blue)))
        if self.contents == "overlap" and rng.random() < 0.5:
            shapes.reverse()
        for shape in shapes:
            alpha = shape.coverage()[:, :, None]
            picture = picture * (1 - alpha) + alpha * np.array(shape.colour)
        picture += rng.normal(0, 0.01, picture.shape)
        return np.clip(picture, 0, 1), shapes

    def kinds(self, index: int) -> list[int]:
        """Return the kinds of shape in picture `index`, without drawing them."""
        return self._begin(index)[3]

    def scene(self, index: int) -> list[Shape]:
        """Return the shapes of picture `index` in the order of drawing: the last lies on top."""
        return self._draw(index)[1]

    def masks(self, index: int) -> Tensor:
        """Return what is visible of each kind in picture `index`, [8, 96, 96] bool."""
        masks = torch.zeros(len(KINDS), PICTURE_SIZE, PICTURE_SIZE, dtype=torch.bool)
        for shape in self.scene(index):
            covered = torch.from_numpy(shape.coverage() > 0.5)  # [H, W]
            masks &= ~covered
            masks[shape.kind] = covered
        return masks

    def key(self, index: int) -> str:
        """Return what picture `index` is called."""
        return f"{self.contents}/{self.split}/{self.seed}/{index}"

    def __getitem__(self, index: int) -> Sample:
        picture, shapes = self._draw(index)
        present = torch.zeros(len(KINDS))
        present[[shape.kind for shape in shapes]] = 1
        vetoed = present.roll(-VETO_OFFSET)  # [8], 1 where the veto of class k is there
        return Sample(
            picture=torch.from_numpy(picture.transpose(2, 0, 1)).float(),
            key=self.key(index),
            present=present,
            label=present * (1 - vetoed),
            tense=present * vetoed,
        )
