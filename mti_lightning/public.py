"""What users, configurations and plugins name: `mti_lightning.NAME`, wherever NAME lives.

That path is what configurations, checkpoints and stores record: a later move breaks nothing.
"""

from mti_lightning.atlas.callback import AtlasLog
from mti_lightning.atlas.inversion import AtlasInversion
from mti_lightning.atlas.map import Chart
from mti_lightning.attribution.checks import check_path
from mti_lightning.attribution.methods import ActGrad, Attribution, IntGrad, Pass, attribute
from mti_lightning.attribution.signs import excitation, inhibition
from mti_lightning.attribution.tension import Tension
from mti_lightning.backbone import ActivationLayout, Backbone, Layer
from mti_lightning.backbone.trace import moves_values
from mti_lightning.callbacks import PictureLog, Results
from mti_lightning.data.base import PictureData
from mti_lightning.data.composites import CompositePictures
from mti_lightning.data.modules import ImageFolder, PictureFile, PictureFolder, PictureShards
from mti_lightning.data.shapes import VetoedShapesPictures
from mti_lightning.errors import InputError, MtiError, RenderError, RunError
from mti_lightning.explanation.explain import explain
from mti_lightning.explanation.result import Explanation
from mti_lightning.features.bound import BoundFeature
from mti_lightning.features.feature import Feature
from mti_lightning.files import at_home, replacing
from mti_lightning.images.boxes import cut
from mti_lightning.images.parameters import FourierPhase, ImageParameters, Pixels, Pyramid
from mti_lightning.images.views import Views
from mti_lightning.locks import taking
from mti_lightning.objectives.base import Objective
from mti_lightning.objectives.chunk import Entry
from mti_lightning.objectives.inversion import NegativeInversion, PositiveInversion, SignedInversion
from mti_lightning.objectives.tense import MaximallyTense
from mti_lightning.objectives.turns import ImageBankStrategy, Turn
from mti_lightning.rendering import Rendering, render
from mti_lightning.superposition.toys import AbsoluteValue, ExclusiveOr, Toy
from mti_lightning.sweep.module import Sweep
from mti_lightning.sweep.pictures import SweepPictures
from mti_lightning.sweep.store import SweepStore
from mti_lightning.tables import writing_table
from mti_lightning.validity.module import Validity
from mti_lightning.vetoed_shapes.training import VetoedShapesClassifier, VetoedShapesData
from mti_lightning.vetoed_shapes.world import VetoedShapes

__all__ = [
    "AbsoluteValue",
    "ActGrad",
    "ActivationLayout",
    "AtlasInversion",
    "AtlasLog",
    "Attribution",
    "Backbone",
    "BoundFeature",
    "Chart",
    "CompositePictures",
    "Entry",
    "ExclusiveOr",
    "Explanation",
    "Feature",
    "FourierPhase",
    "ImageBankStrategy",
    "ImageFolder",
    "ImageParameters",
    "InputError",
    "IntGrad",
    "Layer",
    "MaximallyTense",
    "MtiError",
    "NegativeInversion",
    "Objective",
    "Pass",
    "PictureData",
    "PictureFile",
    "PictureFolder",
    "PictureLog",
    "PictureShards",
    "Pixels",
    "PositiveInversion",
    "Pyramid",
    "RenderError",
    "Rendering",
    "Results",
    "RunError",
    "SignedInversion",
    "Sweep",
    "SweepPictures",
    "SweepStore",
    "Tension",
    "Toy",
    "Turn",
    "Validity",
    "VetoedShapes",
    "VetoedShapesClassifier",
    "VetoedShapesData",
    "VetoedShapesPictures",
    "Views",
    "at_home",
    "attribute",
    "check_path",
    "cut",
    "excitation",
    "explain",
    "inhibition",
    "moves_values",
    "render",
    "replacing",
    "taking",
    "writing_table",
]
