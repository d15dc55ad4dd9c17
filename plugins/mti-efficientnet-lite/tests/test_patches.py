"""The report's patch test on a real network and photographs: chance passes as seldom as it says."""

import mti_efficientnet_lite  # noqa: F401  registers the networks
import numpy as np
import pytest
import torch
from mti_efficientnet_lite.photographs import photograph
from torch import Tensor

from mti_lightning import ActGrad, Backbone, BoundFeature, Feature, Layer, Tension, attribute
from mti_lightning.validity.patches import check_patches, patch_sums

NAMES = ("chelsea.png", "coffee.png", "china.jpg", "rocket.jpg", "astronaut.png", "flower.jpg")
NAMES += ("motorcycle_left.png", "camera.png")
COUNT, DRAWS = 64, 20


def crops() -> Tensor:
    """Return random squares of photographs, [N, 3, 224, 224]."""
    random, found = np.random.default_rng(0), []
    opened = [photograph(name) for name in NAMES]
    for index in range(COUNT):
        whole = opened[index % len(opened)]
        side = int(min(whole.size) * random.uniform(0.5, 1))
        left, top = (int(random.integers(0, full - side + 1)) for full in whole.size)
        part = whole.crop((left, top, left + side, top + side)).resize((224, 224))
        found.append(torch.from_numpy(np.asarray(part, np.float32) / 255).movedim(2, 0))
    return torch.stack(found)


@pytest.mark.slow
def test_shuffled_attributions_pass_no_more_often_than_the_level():
    """Of each draw's two features, each map's values are shuffled: they know nothing of places."""
    backbone, layer, pictures = Backbone("efficientnet_lite0_in1k"), Layer("blocks.6"), crops()
    bound_features = [
        BoundFeature(Feature.parse(f"classifier:{label}"), backbone) for label in (285, 967)
    ]
    generator = torch.Generator().manual_seed(0)
    measured = []
    for bound_feature in bound_features:
        of = (backbone, pictures, [bound_feature] * COUNT, layer, ActGrad())
        _, attribution, response = attribute(*of)
        measured.append((attribution.detach(), response.detach()))

    def p_values() -> list[list[float]]:
        columns = []
        for attribution, response in measured:
            order = torch.rand(COUNT, 49, generator=generator).argsort(1)
            taken = order[:, None].expand(*attribution.flatten(2).shape)
            values = attribution.flatten(2).gather(2, taken).view_as(attribution)
            sums = patch_sums(values, Tension(), backbone.layout(layer))
            columns.append({"response": response, "patches": sums})
        of = (pictures.__getitem__, layer, ActGrad(), Tension(), 0)
        found = check_patches(backbone, bound_features, columns, *of)
        return [[one.values["p"] for one in of_feature] for of_feature in found]

    alarms = 0
    for _ in range(DRAWS):
        inhibitory, excitatory = zip(*p_values(), strict=True)
        alarms += (min(inhibitory) <= 0.05) + (min(excitatory) <= 0.05)
    assert alarms <= 0.05 * 2 * DRAWS
