"""Captum's layer methods as attribution methods of mti-lightning."""

from mti_captum.deep_lift import DeepLift
from mti_captum.gradients import GradientShap, GradientXActivation
from mti_captum.integrated import IntegratedGradients
from mti_captum.pictures import Conductance, InternalInfluence

__all__ = [
    "Conductance",
    "DeepLift",
    "GradientShap",
    "GradientXActivation",
    "IntegratedGradients",
    "InternalInfluence",
]
