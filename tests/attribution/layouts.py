"""Layouts of activations that no network gave."""

from mti_lightning import ActivationLayout


def layout_of(shape: tuple[int, ...], channel_dim: int) -> ActivationLayout:
    """Return how activations [N, ...] of a shape lie; tokens lie on no grid."""
    if len(shape) < 4:
        return ActivationLayout(shape[1:], -1, None)
    rows, columns = shape[2:] if channel_dim == 1 else shape[1:3]
    return ActivationLayout(shape[1:], channel_dim, (rows, columns))
