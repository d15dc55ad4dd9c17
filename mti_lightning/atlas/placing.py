"""Where on an attribution map most excites or inhibits, and targets that are brought to one place.

Things lie anywhere in photographs: what is averaged place by place is mush.
"""

import torch
from torch import Tensor

from mti_lightning.attribution.signs import Sign, at_scale, split_target
from mti_lightning.backbone import ActivationLayout

MIDDLE = 0.5, 0.5
_NEAR = 0.15  # of a strongest place, in shares of height and width: a Gaussian's deviation


def strongest(targets: Tensor, layout: ActivationLayout, scale: float) -> Tensor:
    """Return the row and the column of the place where most of each target is, [N, 2].

    Args:
        targets: T⁺ or T⁻, not negative, [N, ...].
        layout: How they lie; it has a grid.
        scale: Of things, as `at_scale` takes it.
    """
    assert layout.grid is not None
    strength = targets.sum(layout.channel_dim, keepdim=True)
    smooth = layout.on_grid(at_scale(strength, scale, layout)).flatten(1)  # [N, H · W]
    place = smooth.argmax(1)
    return torch.stack([place // layout.grid[1], place % layout.grid[1]], 1)


def near_strongest(
    attribution: Tensor, sign: Sign, layout: ActivationLayout, scale: float
) -> Tensor:
    """Return T⁺ or T⁻ around the place where most of it is, fading with the distance, [N, ...]."""
    target = split_target(attribution, sign, coherent=True, layout=layout, scale=scale)
    if layout.grid is None:
        return target
    at = strongest(target, layout, scale)  # [N, 2]
    fade = [
        torch.exp(-(((torch.arange(length) - at[:, dim, None]) / (_NEAR * length)) ** 2) / 2)
        for dim, length in enumerate(layout.grid)
    ]
    grid = fade[0][:, :, None] * fade[1][:, None]  # [N, H, W]
    return _from_grid(_to_grid(target, layout) * grid[..., None].to(target), target, layout)


def aligned(
    values: Tensor, places: Tensor, layout: ActivationLayout, to: tuple[float, float] = MIDDLE
) -> Tensor:
    """Move each map so that a place of its own comes to the same place of the map.

    What is moved over an edge is lost, and what comes in is zero. Tokens off the grid stay.

    Args:
        values: [N, ...].
        places: Row and column of each, as `strongest` finds them, [N, 2].
        layout: How they lie; it has a grid.
        to: Where to, in shares of the height and the width.
    """
    assert layout.grid is not None
    rows, columns = layout.grid
    end = min(int(to[0] * rows), rows - 1), min(int(to[1] * columns), columns - 1)
    grid = _to_grid(values, layout)
    moved = torch.zeros_like(grid)
    for place, (row, column) in enumerate(places.tolist()):
        (above, here), (left, there) = _spans(end[0] - row, rows), _spans(end[1] - column, columns)
        moved[place, here, there] = grid[place, above, left]
    return _from_grid(moved, values, layout)


def _to_grid(values: Tensor, layout: ActivationLayout) -> Tensor:
    """Return what lies on the grid, [N, H, W, C]."""
    assert layout.grid is not None
    flat = values.movedim(layout.channel_dim, -1).flatten(1, -2)  # [N, T, C]
    return flat[:, layout.off_grid :].reshape(len(flat), *layout.grid, -1)


def _from_grid(grid: Tensor, values: Tensor, layout: ActivationLayout) -> Tensor:
    """Return values with what lies on the grid replaced, of their own shape."""
    last = values.movedim(layout.channel_dim, -1)
    flat = torch.cat([last.flatten(1, -2)[:, : layout.off_grid], grid.flatten(1, 2)], 1)
    return flat.reshape(last.shape).movedim(-1, layout.channel_dim)


def _spans(by: int, length: int) -> tuple[slice, slice]:
    """Return what stays on a line of places that moves by some, and where that comes to."""
    return slice(max(0, -by), length - max(0, by)), slice(max(0, by), length + min(0, by))
