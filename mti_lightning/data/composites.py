"""Pictures put together of parts whose place is known, and the same without each part."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path, PurePath
from typing import Final, final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.functional import pil_to_tensor

from mti_lightning.backbone import Preprocessing
from mti_lightning.data.base import PictureData
from mti_lightning.data.datasets import (
    Picture,
    PictureFiles,
    Pictures,
    Stamp,
    StoredPictures,
    have_changed,
)
from mti_lightning.data.decode import decode_cut_out
from mti_lightning.data.folders import existing_folder, picture_names
from mti_lightning.errors import InputError, check_range

PARTS: Final = 2
MOST_COMPOSITES: Final = 1_000_000
_WIDE, _HIGH = 0.48, 0.9  # what a part may take of the picture at most: two stand side by side
_CENTRAL: Final = 0.8  # share of a photograph's sides that is its part


@final
class Composites(Pictures):
    """Two parts side by side on a photograph, drawn by the seed and the picture's index.

    Args:
        photographs: What they stand on, of the size that the backbone sees; without cut-outs
            parts are squares from the middle of others of these.
        size: How many pictures.
        seed: Seed of all that is random.
        cut_outs: Pictures with transparency to take the parts from.

    Raises:
        InputError: If there are too few to tell parts and photograph apart.
    """

    parts = PARTS

    def __init__(
        self,
        photographs: Pictures,
        size: int,
        seed: int,
        cut_outs: PictureFiles | None = None,
    ) -> None:
        self.photographs, self.seed, self.cut_outs = photographs, seed, cut_outs
        parts = len(cut_outs or photographs)
        if parts < PARTS + (not cut_outs) or not len(photographs):
            kind = "cut-outs" if cut_outs else "photographs"
            raise InputError(
                f"{parts} {kind} will not do: two parts and what they stand on are to differ"
            )
        self.keys = [self._key(index) for index in range(size)]

    def _draw(self, index: int) -> tuple[np.random.Generator, list[int], int]:
        """Return a picture's random stream, its parts and its photograph."""
        random = np.random.default_rng([self.seed, index])
        if self.cut_outs:
            parts = random.choice(len(self.cut_outs), PARTS, replace=False).tolist()
            return random, parts, int(random.integers(len(self.photographs)))
        *parts, ground = random.choice(len(self.photographs), PARTS + 1, replace=False).tolist()
        return random, parts, ground

    def _key(self, index: int) -> str:
        _, parts, ground = self._draw(index)
        of_parts = self.cut_outs or self.photographs
        names = [of_parts.keys[part] for part in parts]
        first, second = (PurePath(name).name if self.cut_outs else name for name in names)
        return f"{index:06d} {first} + {second} on {self.photographs.keys[ground]}"

    def __getitem__(self, index: int) -> Picture:
        """Return a picture, the same `without` each part, and the parts' `masks`."""
        random, parts, place = self._draw(index)
        shown = self.photographs[place]
        ground, stamps = shown["picture"], [shown.get("stamp")]
        swapped = bool(random.integers(2))
        layers = [
            self._laid_out(part, ground, left != swapped, random, stamps)
            for left, part in zip((True, False), parts, strict=True)
        ]
        whole = _on(ground, layers)
        without = torch.stack([_on(ground, layers[1:]), _on(ground, layers[:1])])
        masks = torch.stack([layer[3] for layer in layers])
        made = Picture(picture=whole, key=self.keys[index], without=without, masks=masks)
        known = [stamp for stamp in stamps if stamp is not None]
        if len(known) == len(stamps):
            made["stamp"] = Stamp.of_all(known)
        return made

    def changed(self, index: int, stamp: Stamp) -> bool:
        _, parts, place = self._draw(index)
        of_parts = self.cut_outs or self.photographs
        places = [(self.photographs, place), *((of_parts, part) for part in parts)]
        stored = [(of, number) for of, number in places if isinstance(of, StoredPictures)]
        return have_changed(stored, stamp)

    def _laid_out(
        self,
        part: int,
        ground: Tensor,
        left: bool,
        random: np.random.Generator,
        stamps: list[Stamp | None],
    ) -> Tensor:
        """Return a part in its half of the picture, [4, H, W] in 0..1, the last how opaque."""
        (found, stamp), (height, width) = self._part(part), (ground.shape[1], ground.shape[2])
        stamps.append(stamp)
        largest = min(_WIDE * width / found.shape[2], _HIGH * height / found.shape[1])
        scale = largest * random.uniform(0.85, 1)
        high, wide = (max(1, round(side * scale)) for side in found.shape[1:])
        # Colours weigh by how opaque they are: what cannot be seen has no colour of its own.
        seen = torch.cat([found[:3] * found[3:], found[3:]])
        seen = interpolate(seen[None], (high, wide), mode="bilinear", antialias=True)[0]
        x = round((0 if left else width / 2) + (width / 2 - wide) * random.uniform(0.3, 0.7))
        y = round((height - high) * random.uniform(0.2, 0.8))
        layer = torch.zeros(4, height, width)
        layer[:, y : y + high, x : x + wide] = seen
        return layer

    def _part(self, part: int) -> tuple[Tensor, Stamp | None]:
        """Return a part alone, [4, h, w] in 0..1, and the stamp of the file that it is of."""
        if self.cut_outs:
            raw, stamp = self.cut_outs.read(part)
            name = self.cut_outs.root / self.cut_outs.keys[part]
            levels: Tensor = pil_to_tensor(decode_cut_out(BytesIO(raw), name))
            return levels.float() / 255, stamp
        shown = self.photographs[part]
        picture = shown["picture"]
        side = round(_CENTRAL * min(picture.shape[1:]))
        top, left = ((full - side) // 2 for full in picture.shape[1:])
        square = picture[:, top : top + side, left : left + side]
        return torch.cat([square, torch.ones(1, side, side)]), shown.get("stamp")


def _on(ground: Tensor, layers: Sequence[Tensor]) -> Tensor:
    """Return a picture, [3, H, W], with layers whose colours were multiplied by their opacity."""
    for layer in layers:
        ground = ground * (1 - layer[3]) + layer[:3]
    return ground.clamp(0, 1)


class CompositePictures(PictureData):
    """Pictures of two parts side by side on a photograph; what each part does is measured.

    What a part does to a feature is known by leaving it out: a sweep of such pictures holds the
    effects, true E⁺, E⁻ and tension, beside what it attributes.

    Args:
        path: A folder of photographs to put parts on. Without cut-outs the parts are squares from
            the middle of others of these.
        cut_outs: A folder of pictures with transparency to take the parts from.
        size: How many pictures.
        seed: Seed of which parts stand where.
        recursive: Take the pictures in folders below, too.
        batch_size: Pictures per batch.
        num_workers: Processes that put pictures together; 0 does so in the main one.

    Raises:
        InputError: If a folder is missing, or holds too few pictures.
    """

    def __init__(
        self,
        path: str | Path,
        cut_outs: str | Path | None = None,
        size: int = 300,
        seed: int = 0,
        recursive: bool = False,
        *,
        batch_size: int = 32,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        check_range(1, MOST_COMPOSITES, size=size)
        check_range(0, seed=seed)
        self.path, self.size, self.seed = existing_folder(path), size, seed
        self.names = picture_names(self.path, recursive)
        self.cut_outs = None if cut_outs is None else existing_folder(cut_outs)
        self.parts = picture_names(self.cut_outs, recursive) if self.cut_outs else []
        if self.cut_outs and not self.parts:
            raise InputError(f"cut_outs: {self.cut_outs} holds no picture")
        if len(self.names) < (1 if self.parts else PARTS + 1):
            raise InputError(
                f"folder {self.path} holds {len(self.names)} pictures; two parts and what they "
                "stand on are to differ; recursive: true looks into the folders below it, too"
            )

    def _open(self, preprocessing: Preprocessing) -> Composites:
        photographs = PictureFiles(self.path, self.names, preprocessing)
        if self.cut_outs is None:
            return Composites(photographs, self.size, self.seed)
        parts = PictureFiles(self.cut_outs, self.parts, preprocessing)
        return Composites(photographs, self.size, self.seed, parts)
