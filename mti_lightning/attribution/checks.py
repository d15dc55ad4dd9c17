"""Whether a method can be used at an attribution layer: tried before a run."""

import warnings

import torch

from mti_lightning.attribution.methods import (
    Attribution,
    PathGradient,
    attribute,
    describe,
    fixed_baseline,
)
from mti_lightning.backbone import Backbone, Layer
from mti_lightning.errors import InputError, MtiError, RunError, reason_of
from mti_lightning.features.bound import BoundFeature
from mti_lightning.log import log_info


def check_method(
    method: Attribution, backbone: Backbone, layer: Layer, bound_feature: BoundFeature
) -> None:
    """Make sure that a method can be used at an attribution layer: try it on a picture of noise.

    Raises:
        InputError: If it takes no baseline but one is given, the baseline does not fit, the method
            declines the network, or the layer does not feed the feature.
        RunError: If it fails, or what it gives is no attribution.
    """
    name = type(method).__name__
    if method.baseline is not None and not method.needs_baseline:
        raise InputError(f"{name} takes no baseline; leave {str(method.baseline)!r} out")
    fixed_baseline(method, backbone.layout(layer))
    if isinstance(method, PathGradient):
        return
    check_path(backbone, bound_feature, layer)  # the method would fail by it
    try:
        # The picture is not the user's: neither warnings about it nor what it draws shall show.
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            attribute(backbone, backbone.noise(1), [bound_feature], layer, method)
    except MtiError:
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {reason_of(error)}"
        raise RunError(f"{describe(method)} fails: {cause}") from error
    if not method.additive:
        log_info(f"{name} is not additive: E+ less E- is not the response")


def check_path(backbone: Backbone, bound_feature: BoundFeature, layer: Layer) -> None:
    """Make sure that the attribution layer feeds the feature.

    Raises:
        InputError: If it does not.
    """
    backbone.layout(layer)
    with torch.enable_grad():
        tapped = backbone.run(backbone.noise(1), [layer, bound_feature.layer], cut=layer)
        response = bound_feature(tapped[bound_feature.layer]).sum()
        gradient = None
        if response.requires_grad:
            (gradient,) = torch.autograd.grad(response, tapped[layer], allow_unused=True)
    if gradient is None:
        raise InputError(
            f"attribution layer {str(layer)!r} does not feed feature "
            f"{str(bound_feature.feature)!r}: "
            "it lies behind the target layer or beside it; name an earlier layer"
        )
