"""Boxes of pictures and of maps."""

from torch import Tensor

Box = tuple[int, int, int, int]  # top, left, height, width


def cut(maps: Tensor, box: Box) -> Tensor:
    """Cut a box out of pictures or maps, [..., H, W]."""
    top, left, height, width = box
    return maps[..., top : top + height, left : left + width]
