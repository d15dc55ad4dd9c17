"""Targets brought to one place, so that pictures of things that lie anywhere can be averaged."""

import torch
from torch import Tensor

from mti_lightning.attribution.signs import at_scale
from mti_lightning.backbone import ActivationLayout

MIDDLE = 0.5, 0.5


def aligned(
    targets: Tensor, layout: ActivationLayout, scale: float, to: tuple[float, float] = MIDDLE
) -> Tensor:
    """Move each target so that its strongest place, at a scale, comes to a place of the map.

    What is moved over an edge is lost, and what comes in is zero. Tokens off the grid stay.

    Args:
        targets: T⁺ or T⁻, not negative, [N, ...].
        layout: How they lie; without a grid they stay as they are.
        scale: As `at_scale` takes it.
        to: Where to, in shares of the height and the width.
    """
    if layout.grid is None:
        return targets
    rows, columns = layout.grid
    strength = targets.sum(layout.channel_dim, keepdim=True)
    smooth = layout.on_grid(at_scale(strength, scale, layout)).flatten(1)  # [N, H · W]
    prefix = layout.prefix_tokens if layout.is_tokens else 0
    values = targets.movedim(layout.channel_dim, -1)
    flat = values.flatten(1, -2)  # [N, T, C]
    grid = flat[:, prefix:].unflatten(1, layout.grid)  # [N, H, W, C]
    moved = torch.zeros_like(grid)
    for row, place in enumerate(smooth.argmax(1).tolist()):
        down = min(int(to[0] * rows), rows - 1) - place // columns
        right = min(int(to[1] * columns), columns - 1) - place % columns
        (above, here), (before, there) = _spans(down, rows), _spans(right, columns)
        moved[row, here, there] = grid[row, above, before]
    whole = torch.cat([flat[:, :prefix], moved.flatten(1, 2)], 1)
    return whole.reshape(values.shape).movedim(-1, layout.channel_dim)


def _spans(by: int, length: int) -> tuple[slice, slice]:
    """Return what stays on a line of places that moves by some, and where that comes to."""
    return slice(max(0, -by), length - max(0, by)), slice(max(0, by), length + min(0, by))
