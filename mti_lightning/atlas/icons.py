"""A run's pictures as an atlas shows them: icons of its cells, or its own pictures on a map."""

from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from PIL import Image

from mti_lightning.atlas import layout
from mti_lightning.atlas.inversion import AtlasInversion
from mti_lightning.atlas.layout import Face
from mti_lightning.atlas.map import Map
from mti_lightning.atlas.picture import LARGEST
from mti_lightning.atlas.selection import pool
from mti_lightning.attribution.methods import attribute
from mti_lightning.compose import opacity, to_image, within
from mti_lightning.images.views import whole
from mti_lightning.objectives.base import Objective
from mti_lightning.sweep.measures import Array


def icons_of(objective: AtlasInversion) -> dict[Face, dict[tuple[int, int], Image.Image]]:
    """Return the icons of each face by row and column; of several seeds the first."""
    icons: dict[Face, dict[tuple[int, int], Image.Image]] = {face: {} for face in objective.faces}
    size = within(objective.canvas, LARGEST)
    with torch.no_grad():
        for chunk in objective.chunks:
            for entry, picture, alpha in zip(
                chunk.entries, chunk(size), opacity(chunk.saliency(size)), strict=True
            ):
                cell = objective.cell(entry.source or 0)
                icon = to_image(picture, alpha)
                icons[cast("Face", entry.objective)].setdefault((cell.row, cell.column), icon)
    return icons


def placed_on(
    objective: Objective, maps: Mapping[int, Map]
) -> dict[int, tuple[Array, list[Image.Image]]]:
    """Return for each feature where the run's pictures lie on its map, [K, 2], and the pictures."""
    vectors: dict[int, list[Array]] = {place: [] for place in maps}
    shown: dict[int, list[Image.Image]] = {place: [] for place in maps}
    for chunk in objective.chunks:
        with torch.no_grad():
            pictures, alphas = chunk(), opacity(chunk.saliency())
        _, attribution, _ = attribute(
            objective.backbone,
            whole(pictures, objective.input_size),
            [objective.bound_features[entry.feature] for entry in chunk.entries],
            objective.layer,
            objective.attribution,
        )
        scale = objective.tension.scale
        pooled = pool(attribution.cpu().numpy(), objective.layout, scale)
        for entry, vector, picture, alpha in zip(
            chunk.entries, pooled, pictures, alphas, strict=True
        ):
            vectors[entry.feature].append(vector)
            shown[entry.feature].append(to_image(picture, alpha))
    return {
        place: (
            layout.place(np.stack(vectors[place]), found.vectors, found.layout.points),
            shown[place],
        )
        for place, found in maps.items()
    }
