"""Maximally tense images, +/− attribution inversions and attribution atlases for the models people use."""

from mti_lightning import vetoed_shapes_backbone as _embedded_default  # noqa: F401  registers it with timm

__version__ = "0.1.0"
