"""Maximally tense images and +/− attribution inversions, for any timm model."""

from mti_lightning import vetoed_shapes_backbone as _embedded_default  # noqa: F401  registers it with timm
from mti_lightning.atlas_inversion import AtlasInversion, Chart
from mti_lightning.atlas_log import AtlasLog
from mti_lightning.attribution import ActGrad, Attribution, attribute
from mti_lightning.backbone import Backbone, Layer
from mti_lightning.bank import ImageBankStrategy
from mti_lightning.data import (
    ImageFolder,
    PictureData,
    PictureFile,
    PictureFolder,
    PictureShards,
    VetoedShapesPictures,
)
from mti_lightning.errors import InputError, MtiError, RenderError
from mti_lightning.feature import Feature
from mti_lightning.image import FourierPhase, ImageParameters, Pixels
from mti_lightning.objectives import (
    MaximallyTense,
    NegativeInversion,
    Objective,
    PositiveInversion,
    SignedInversion,
)
from mti_lightning.render import Rendering, render
from mti_lightning.signs import Tension
from mti_lightning.store import SweepStore
from mti_lightning.sweep import Sweep
from mti_lightning.swept import SweepPictures
from mti_lightning.validity import Validity
from mti_lightning.vetoed_shapes import VetoedShapes
from mti_lightning.views import Views

__version__ = "0.1.0"
__all__ = [
    "ActGrad",
    "AtlasInversion",
    "AtlasLog",
    "Attribution",
    "Backbone",
    "Chart",
    "Feature",
    "FourierPhase",
    "ImageBankStrategy",
    "ImageFolder",
    "ImageParameters",
    "InputError",
    "Layer",
    "MaximallyTense",
    "MtiError",
    "NegativeInversion",
    "Objective",
    "PictureData",
    "PictureFile",
    "PictureFolder",
    "PictureShards",
    "Pixels",
    "PositiveInversion",
    "RenderError",
    "Rendering",
    "SignedInversion",
    "Sweep",
    "SweepPictures",
    "SweepStore",
    "Tension",
    "Validity",
    "VetoedShapes",
    "VetoedShapesPictures",
    "Views",
    "attribute",
    "render",
]
