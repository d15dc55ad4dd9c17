"""Sweeps of composites: what parts do, by leaving them out, beside what is attributed to them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mti_lightning import (
    Backbone,
    BoundFeature,
    CompositePictures,
    Feature,
    InputError,
    Layer,
    Sweep,
    SweepStore,
    VetoedShapes,
    VetoedShapesPictures,
    attribute,
)
from mti_lightning.sweep.ranking import table
from tests.sweep.test_module import WORLD, predict

FEATURES = ["fc:0", "layer4.0.act2/input:7@mean", "fc:3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    world = VetoedShapes(8, seed=4, split="test", contents="random")
    for index in range(8):
        levels = (world[index]["picture"] * 255).byte().permute(1, 2, 0)
        Image.fromarray(levels.numpy()).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def store(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> SweepStore:
    path = tmp_path_factory.mktemp("sweep") / "s.zarr"
    sweep = Sweep(Backbone(WORLD), FEATURES, "layer3", store=str(path), block=8, calibrate=4)
    predict(sweep, CompositePictures(folder, size=20, batch_size=5))
    return SweepStore(path)


def test_effects_are_what_leaving_a_part_out_changes(store: SweepStore, folder: Path) -> None:
    backbone, data = Backbone(WORLD), CompositePictures(folder, size=20)
    data.use(backbone.preprocessing)
    effects = store.of_parts("effect")
    assert effects.shape == (20, 3, 2)
    for index in (0, 7, 19):
        found = data.pictures[index]
        for place, name in enumerate(FEATURES):
            feature = BoundFeature(Feature.parse(name), backbone)
            with torch.no_grad():
                whole, *without = (
                    float(feature(backbone.run(one[None], [feature.layer])[feature.layer]))
                    for one in (found["picture"], *found["without"])
                )
            wanted = [whole - one for one in without]
            assert effects[index, place] == pytest.approx(wanted, abs=1e-4)
            assert store.values("response", place)[index] == pytest.approx(whole, abs=1e-4)


def test_true_signs_follow_from_the_effects(store: SweepStore) -> None:
    effects = store.of_parts("effect")
    excited, inhibited = effects.clip(0).sum(2), (-effects).clip(0).sum(2)
    assert store.values("true_excitation") == pytest.approx(excited, abs=1e-5)
    assert store.values("true_inhibition") == pytest.approx(inhibited, abs=1e-5)
    assert store.values("true_tension") == pytest.approx(np.sqrt(excited * inhibited), abs=1e-5)


def test_attributions_are_summed_over_the_places_of_parts(store: SweepStore, folder: Path) -> None:
    backbone, data = Backbone(WORLD), CompositePictures(folder, size=20)
    sweep = Sweep(backbone, FEATURES, "layer3", store="unused")
    sweep.take_steps(store.provenance["attribution"])
    data.use(backbone.preprocessing)
    layer, found = Layer.parse("layer3"), data.pictures[3]
    rows, columns = backbone.layout(layer).grid or (0, 0)
    high, wide = (
        full // n for full, n in zip(found["masks"].shape[1:], (rows, columns), strict=True)
    )
    for place, name in enumerate(FEATURES):
        feature = BoundFeature(Feature.parse(name), backbone)
        pictures = found["picture"][None]
        attribution = attribute(backbone, pictures, [feature], layer, sweep.attribution)[1][0]
        for part, mask in enumerate(found["masks"]):
            covered = (mask > 0.25).float().view(rows, high, columns, wide).mean((1, 3))
            wanted = float((attribution.sum(0) * covered).sum())
            assert store.of_parts("part_attribution")[3, place, part] == pytest.approx(
                wanted, abs=1e-3
            )


def test_pictures_are_ranked_by_the_truth(store: SweepStore) -> None:
    rows = table(store, 0, "true_tension", 3)
    best = np.argsort(-store.values("true_tension", 0), kind="stable")[:3]
    assert [row["index"] for row in rows] == best.tolist()


def test_what_is_lost_of_the_truth_is_noticed(store: SweepStore, tmp_path: Path) -> None:
    other = shutil.copytree(store.path, tmp_path / "s.zarr")
    (other / "effect" / "c" / "1" / "0" / "0").unlink()
    with pytest.raises(InputError, match="effect is lost in part"):
        SweepStore(other)


def test_other_pictures_know_no_truth(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    data = VetoedShapesPictures(4, batch_size=4)
    predict(Sweep(Backbone(WORLD), ["fc:0"], "layer4", store=str(path), calibrate=2), data)
    with pytest.raises(InputError, match="knows no parts of its pictures; sweep CompositePictures"):
        SweepStore(path).values("true_tension")
    asked = Sweep(
        *(Backbone(WORLD), ["fc:0"], "layer4"), store=f"{path}2", keep=1, keep_by=["true_tension"]
    )
    with pytest.raises(InputError, match="true_tension is known of CompositePictures alone"):
        predict(asked, data)


def test_a_layer_without_positions_tells_no_parts_apart(tmp_path: Path, folder: Path) -> None:
    sweep = Sweep(Backbone(WORLD), ["fc:0"], "global_pool", store=str(tmp_path / "s.zarr"))
    with pytest.raises(InputError, match="global_pool has no positions"):
        predict(sweep, CompositePictures(folder, size=4))
