"""The ground of a picture: what its activations are where no thing stands, by themselves alone."""

from typing import Final

import torch
from torch import Tensor

from mti_lightning.backbone import ActivationLayout
from mti_lightning.errors import InputError

GROUND: Final = "ground"  # what a method's baseline is called then
_ROUNDS: Final = 3


def check_ground(layout: ActivationLayout) -> None:
    """Make sure that a layer has positions, of which some are the ground.

    Raises:
        InputError: If it has none.
    """
    if layout.grid is None:
        raise InputError(f"baseline {GROUND!r}: the attribution layer has no positions; take zeros")


def ground_of(activations: Tensor, layout: ActivationLayout) -> Tensor:
    """Return the mean activations of the ground of each picture, of a shape that expands to theirs.

    The ground is that half of the positions whose activations are nearest to the middle of all: to
    the median of each channel at first, then three times to the mean of the half so found. Things
    that fill less than half of the picture are not in it.

    Args:
        activations: a, [N, ...], of the whole map or a part of it.
        layout: How they lie. Tokens off the grid, such as a class token, have a ground of 0.
    """
    values = activations.movedim(layout.channel_dim, -1)  # [N, ..., C]
    spread = [1] * (values.ndim - 2)
    values = values.flatten(1, -2)[:, layout.off_grid :]  # [N, P, C]
    half, middle = (values.shape[1] + 1) // 2, values.detach().median(1, keepdim=True).values
    for _ in range(_ROUNDS):
        apart = (values.detach() - middle).square().sum(2)
        nearest = apart.topk(half, dim=1, largest=False).indices[..., None]  # [N, P / 2, 1]
        ground = values.gather(1, nearest.expand(-1, -1, values.shape[2])).mean(1)  # [N, C]
        middle = ground.detach()[:, None]
    if off := layout.off_grid:
        rows = ground[:, None].expand(-1, values.shape[1], -1)
        return torch.cat([torch.zeros_like(rows[:, :1]).expand(-1, off, -1), rows], 1)
    return ground.view(len(ground), *spread, -1).movedim(-1, layout.channel_dim)
