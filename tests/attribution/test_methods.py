"""Attribution methods: what they know, and what they may ask for."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mti_lightning.attribution.checks import check_method
from mti_lightning.attribution.methods import ActGrad, Attribution, Pass, attribute
from mti_lightning.backbone import Backbone, Layer
from mti_lightning.features.bound import BoundFeature
from mti_lightning.features.feature import Feature
from mti_lightning.vetoed_shapes.world import VetoedShapes


class Occlusion(Attribution):
    """What the response loses when a channel is set to nought: by forward passes alone."""

    differentiable = False

    def attribute(self, forward: Pass, create_graph: bool) -> Tensor:
        result = torch.zeros_like(forward.activations)
        with torch.no_grad():
            for channel in range(3):
                without = forward.activations.detach().clone()
                without[:, channel] = 0
                result[:, channel, 0, 0] = forward.responses - forward.head(without)
        return result


def test_another_method_can_ask_for_other_activations() -> None:
    backbone = Backbone("vetoed_shapes_resnet")
    bound_feature = BoundFeature(Feature("fc", 3), backbone)
    pictures = torch.stack([VetoedShapes(4, seed=5)[i]["picture"] for i in range(4)])
    _, a, _ = attribute(backbone, pictures, [bound_feature] * 4, Layer("layer4"), ActGrad())
    _, lost, _ = attribute(backbone, pictures, [bound_feature] * 4, Layer("layer4"), Occlusion())
    # The head over the last stage is linear, so what a channel adds is what is lost without it.
    torch.testing.assert_close(lost[:, :3, 0, 0], a[:, :3].sum((2, 3)), rtol=1e-4, atol=1e-5)


class FromBaseline(Attribution):
    """(a − baseline) ⊙ ∂r/∂a, times `factor`."""

    additive = True
    needs_baseline = True

    def __init__(self, baseline: str | None = None, factor: float = 1.0) -> None:
        self.baseline, self.factor = baseline, factor

    def attribute(self, forward: Pass, create_graph: bool) -> Tensor:
        (gradient,) = torch.autograd.grad(forward.responses.sum(), forward.activations)
        return self.factor * (forward.activations - forward.baseline) * gradient


def test_a_method_knows_what_it_was_made_with() -> None:
    assert FromBaseline().arguments == {"baseline": None, "factor": 1.0}
    assert FromBaseline("mean.npy", factor=2.0).arguments == {"baseline": "mean.npy", "factor": 2.0}
    assert copy.deepcopy(FromBaseline(factor=3.0)).arguments["factor"] == 3.0
    assert ActGrad().arguments == {}
    with pytest.raises(TypeError):
        ActGrad(3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("name", "layer", "feature"),
    [("vetoed_shapes_resnet", "layer4", "fc:3"), ("test_vit", "norm", "head:3")],
)
def test_a_baseline_is_laid_out_as_the_activations_are(
    name: str, layer: str, feature: str, tmp_path: Path
) -> None:
    backbone = Backbone(name, "pretrained" if name == "vetoed_shapes_resnet" else "random")
    site = backbone.layout(Layer(layer))
    values = np.arange(site.channels, dtype=np.float32)
    np.save(tmp_path / "mean.npy", values)
    method = FromBaseline(str(tmp_path / "mean.npy"))
    pictures = torch.rand(2, 3, *backbone.preprocessing.size)
    bound_features = [BoundFeature(Feature.parse(feature), backbone)] * 2
    check_method(method, backbone, Layer(layer), bound_features[0])
    a, plain, _ = attribute(backbone, pictures, bound_features, Layer(layer), ActGrad())
    _, from_zeros, _ = attribute(backbone, pictures, bound_features, Layer(layer), FromBaseline())
    torch.testing.assert_close(from_zeros, plain)
    _, found, _ = attribute(backbone, pictures, bound_features, Layer(layer), method)
    start = torch.from_numpy(values).view([-1, 1, 1] if site.channel_dim == 1 else [-1])
    gradient = torch.where(a == 0, 0, plain / a)
    torch.testing.assert_close(
        torch.where(a == 0, 0, found), (a - start) * gradient, rtol=1e-4, atol=1e-5
    )
