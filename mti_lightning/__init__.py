"""Maximally tense images and +/− attribution inversions, for any timm model."""

from mti_lightning.atlas.callback import AtlasLog
from mti_lightning.atlas.inversion import AtlasInversion
from mti_lightning.atlas.map import Chart
from mti_lightning.attribution.methods import ActGrad, Attribution, attribute
from mti_lightning.attribution.tension import Tension
from mti_lightning.backbone import Backbone, Layer
from mti_lightning.data.base import PictureData
from mti_lightning.data.modules import ImageFolder, PictureFile, PictureFolder, PictureShards
from mti_lightning.data.shapes import VetoedShapesPictures
from mti_lightning.errors import InputError, MtiError, RenderError
from mti_lightning.features.feature import Feature
from mti_lightning.images.parameters import FourierPhase, ImageParameters, Pixels
from mti_lightning.images.views import Views
from mti_lightning.objectives.base import Objective
from mti_lightning.objectives.inversion import NegativeInversion, PositiveInversion, SignedInversion
from mti_lightning.objectives.tense import MaximallyTense
from mti_lightning.objectives.turns import ImageBankStrategy
from mti_lightning.render import Rendering, render
from mti_lightning.sweep.module import Sweep
from mti_lightning.sweep.pictures import SweepPictures
from mti_lightning.sweep.store import SweepStore
from mti_lightning.validity.module import Validity
from mti_lightning.vetoed_shapes import backbone as _default_backbone  # noqa: F401  registers it with timm
from mti_lightning.vetoed_shapes.world import VetoedShapes

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
