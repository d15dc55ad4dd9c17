"""The report on a real network: it tells wrong attributions from right ones, and from chance."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import mti_efficientnet_lite  # noqa: F401  registers the networks
import numpy as np
import pytest
import torch
from lightning import Trainer
from mti_efficientnet_lite.photographs import photograph
from PIL import Image
from torch import Tensor

from mti_lightning import (
    ActGrad,
    Attribution,
    Backbone,
    BoundFeature,
    Feature,
    IntGrad,
    Layer,
    PictureFolder,
    Tension,
    Validity,
    attribute,
)
from mti_lightning.attribution.methods import Pass
from mti_lightning.validity.checks import modules_between, shuffled
from mti_lightning.validity.limits import Finding
from mti_lightning.validity.patches import check_patches, patch_sums

NAMES = ("chelsea.png", "coffee.png", "china.jpg", "rocket.jpg", "astronaut.png", "flower.jpg")
NAMES += ("motorcycle_left.png", "camera.png")
NETWORK = "efficientnet_lite0_in1k"
LABELS = (285, 967, 663, 670)  # Egyptian cat, espresso, monastery, motor scooter
COUNT, FEW, DRAWS = 128, 32, 20
LAYER, METHOD = Layer("blocks.6"), IntGrad(4)

Measured = list[tuple[Tensor, Tensor]]


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


@cache
def measured() -> tuple[Backbone, Tensor, list[BoundFeature], Measured]:
    """Return a network, pictures, features, and of each the attributions and the responses."""
    backbone, pictures = Backbone(NETWORK), crops()
    features = [BoundFeature(Feature("classifier", label), backbone) for label in LABELS]
    found = []
    for feature in features:
        parts = [
            attribute(backbone, part, [feature] * len(part), LAYER, METHOD)[1:]
            for part in pictures.split(16)
        ]
        attribution, response = (torch.cat(values) for values in zip(*parts, strict=True))
        found.append((attribution.sum(1, keepdim=True), response))
    return backbone, pictures, features, found


def findings(of_features: Measured, count: int = len(LABELS)) -> list[list[Finding]]:
    """Make the test of maps [N, 1, h, w] and responses [N] of the first features."""
    backbone, pictures, features, _ = measured()
    columns = []
    for maps, response in of_features:
        sums = patch_sums(maps, Tension(), backbone.layout(LAYER))
        assert sums is not None
        columns.append({"response": response, "patches": sums})
    of = (pictures.__getitem__, LAYER, METHOD, Tension(), 0)
    return check_patches(backbone, features[:count], columns, *of)


@pytest.mark.slow
def test_what_is_said_to_inhibit_or_excite_does_so_elsewhere_and_not_with_signs_flipped():
    right = findings(measured()[3])
    flipped = findings([(-maps, response) for maps, response in measured()[3]])
    for sign, way in ((0, -1), (1, 1)):
        assert min(way * found[sign].values["effect"] for found in right) > 0
        assert max(way * found[sign].values["effect"] for found in flipped) < 0
        assert any(found[sign].values["p"] <= 0.05 for found in right)
        assert all(found[sign].values["p"] > 0.05 for found in flipped)


@pytest.mark.slow
def test_shuffled_attributions_pass_no_more_often_than_the_level():
    """Of each draw's two features, each map's values are shuffled: they know nothing of places."""
    generator, alarms = torch.Generator().manual_seed(0), 0
    for _ in range(DRAWS):
        drawn = []
        for maps, response in measured()[3][:2]:
            values = maps[:FEW].flatten(2)
            order = torch.rand(values.shape, generator=generator).argsort(2)
            drawn.append((values.gather(2, order).view_as(maps[:FEW]), response[:FEW]))
        for of_sign in zip(*findings(drawn, 2), strict=True):
            alarms += min(found.values["p"] for found in of_sign) <= 0.05
    assert alarms <= 0.05 * 2 * DRAWS


class Wrong(Attribution):
    """An attribution that a mistake gives: of the pass as it is, and the layer."""

    def __init__(self, mistake: Callable[[Pass], Tensor]) -> None:
        self.mistake = mistake

    def attribute(self, forward: Pass, create_graph: bool) -> Tensor:
        return self.mistake(forward)


def wrong(layer: str, right: IntGrad) -> dict[str, Attribution]:
    """Return attributions of a class that are wrong, by what is wrong with them."""
    backbone, at = Backbone(NETWORK), Layer(layer)
    other = shuffled(backbone, modules_between(backbone, at, Layer("classifier")))
    elsewhere = {
        "weights shuffled": BoundFeature(Feature("classifier", LABELS[0]), other),
        "wrong layer": BoundFeature(Feature.parse(f"bn2.act/input:{LABELS[0]}@mean"), backbone),
    }

    def flip(forward: Pass) -> Tensor:
        found = right.attribute(forward, create_graph=False)
        return found * torch.randn(found.shape).sign()

    def of(name: str) -> Callable[[Pass], Tensor]:
        network, feature = (other if "shuffled" in name else backbone), elsewhere[name]
        return lambda forward: attribute(
            network, forward.pictures, [feature] * len(forward.pictures), at, right
        )[1]

    found: dict[str, Attribution] = {name: Wrong(of(name)) for name in elsewhere}
    found["signs flipped"] = Wrong(flip)
    found["all signs turned"] = Wrong(lambda f: -right.attribute(f, create_graph=False))
    return found | ({"act × grad": ActGrad()} if layer != "blocks.6" else {})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "steps", "count"),
    [("blocks.6", 4, 48), ("blocks.4", 16, 64)],  # as many steps as are found at set-up
)
def test_the_verdict_tells_wrong_runs_from_the_right_one(
    tmp_path: Path, layer: str, steps: int, count: int
):
    for number, picture in enumerate(crops()[:count]):
        levels = (picture.movedim(0, 2) * 255).round().byte().numpy()
        Image.fromarray(levels).save(tmp_path / f"{number:03d}.png")
    feature, right = f"classifier:{LABELS[0]}", IntGrad(steps)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}

    def verdict(method: Attribution) -> str:
        module = Validity(Backbone(NETWORK), [feature], layer, method, pictures=count, rendered=0)
        data = PictureFolder(tmp_path, batch_size=16)
        trainer = Trainer(accelerator="cpu", inference_mode=False, **quiet)
        trainer.validate(module, datamodule=data, verbose=False)
        assert module.report is not None
        return module.report.verdicts[feature]

    verdicts = {name: verdict(method) for name, method in wrong(layer, right).items()}
    assert all(told.startswith("do not believe it") for told in verdicts.values()), verdicts
    assert not (told := verdict(right)).startswith("do not believe it"), told
