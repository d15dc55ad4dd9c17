"""The frozen network: a timm model, its weights, and taps on its layers."""

from mti_lightning.backbone.layout import ActivationLayout, Layer
from mti_lightning.backbone.network import Backbone
from mti_lightning.backbone.preprocessing import Preprocessing

__all__ = ["ActivationLayout", "Backbone", "Layer", "Preprocessing"]
