"""Captum's layer methods as attribution methods of mti-lightning."""

from mti_captum.deep_lift import DeepLift
from mti_captum.gradients import GradientShap, GradientXActivation, IntegratedGradients

__all__ = ["DeepLift", "GradientShap", "GradientXActivation", "IntegratedGradients"]
