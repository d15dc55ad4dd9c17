"""Where pictures lie on a map: UMAP's points, fitted once and kept beside the sweep."""

import hashlib
from pathlib import Path
from typing import cast

import numpy as np
import torch

from mti_lightning.errors import InputError
from mti_lightning.files import replacing
from mti_lightning.locks import hold_in_turn
from mti_lightning.log import log_info
from mti_lightning.sweep.measures import Array

_FEWEST = 4  # pictures that UMAP can lay out; fewer stand in a line
_MOST_SPECTRAL = 20_000  # UMAP's usual start takes minutes for them, and ever longer for more


def kept_points(
    sweep: Path, vectors: Array, seed: int = 0, neighbours: int = 15, min_dist: float = 0.5
) -> Array:
    """Return the points of `embed`, from beside the sweep where they were kept; else keep them.

    Raises:
        InputError: If they cannot be made, or the file that should hold them does not.
    """
    # Named by all that UMAP is told: another grid takes the same points.
    told = repr((seed, neighbours, min_dist)).encode()
    digest = hashlib.sha256(told + vectors.tobytes()).hexdigest()[:12]
    kept = sweep.with_name(f"{sweep.stem}.map-{digest}.npy")
    if kept.is_file():
        return load(kept, len(vectors))
    with hold_in_turn(kept):
        if kept.is_file():  # another process has just made them
            return load(kept, len(vectors))
        log_info(f"mapping {len(vectors)} pictures by UMAP")
        points = embed(vectors, seed, neighbours, min_dist)
        save(points, kept)
    return points


def embed(vectors: Array, seed: int = 0, neighbours: int = 15, min_dist: float = 0.5) -> Array:
    """Lay vectors [M, D] out in two dimensions by UMAP on cosine distance, [M, 2].

    Equal vectors share a point, and the map does not depend on the order of the pictures. Equal
    inputs give equal points. In the vetoed shapes, 2,000 pictures, every class at layer4 and
    layer3, groups by shape and veto kept 0.965 to 1 of their pictures' 10 nearest to themselves;
    with two other seeds 0.959 in one of 32 maps, else 0.965 or more, too. With 0.1 for `min_dist`
    the map was as faithful, but filled a quarter fewer cells.

    Args:
        vectors: As `pool` makes them.
        seed: Of UMAP.
        neighbours: How many of its nearest a picture is drawn to.
        min_dist: How close together UMAP may put pictures.

    Raises:
        InputError: If a vector is not finite, or a number is out of range.
    """
    if neighbours < 2:
        raise InputError(f"neighbours {neighbours}: give 2 or more")
    if not np.isfinite(vectors).all():
        raise InputError("some attributions are not finite; leave those pictures out of the atlas")
    unique, back = np.unique(vectors.astype(np.float32), axis=0, return_inverse=True)
    if len(unique) < _FEWEST:
        line = np.arange(len(unique), dtype=np.float32)
        return np.stack([line, np.zeros_like(line)], 1)[back]
    from umap import UMAP  # noqa: PLC0415  takes seconds; most runs do without

    threads = torch.get_num_threads()
    try:
        points = UMAP(
            n_neighbors=min(neighbours, len(unique) - 1),
            min_dist=min_dist,
            metric="cosine",
            disconnection_distance=float("inf"),  # else it warns of opposites and lets them drift
            init="spectral" if len(unique) <= _MOST_SPECTRAL else "pca",
            random_state=seed,
            n_jobs=1,
        ).fit_transform(unique)
    finally:
        torch.set_num_threads(threads)  # Numba sets its own number for all that use OpenMP
    return cast("Array", points[back])


def save(points: Array, path: Path) -> None:
    """Write the points of a map as .npy."""
    with replacing(path) as part:
        np.save(part, points)


def load(path: Path, count: int) -> Array:
    """Read the points of a map, [M, 2].

    Args:
        path: Where `save` wrote them.
        count: M.

    Raises:
        InputError: If they are not there.
    """
    try:
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False).reshape(count, 2)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} holds no map of {count} pictures; delete it to have it made again"
        ) from error
