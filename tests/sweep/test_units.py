"""Contributions of units: attributions summed over positions, kept feature by feature."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mti_lightning import (
    Backbone,
    BoundFeature,
    Feature,
    InputError,
    Layer,
    Sweep,
    SweepStore,
    VetoedShapesPictures,
    attribute,
)
from mti_lightning.attribution.methods import IntGrad
from mti_lightning.sweep.pictures import backbone_of
from tests.sweep.test_module import WORLD, assert_same, predict

FEATURES = ["fc:3", "layer3.0.act2/input:5@centre", "fc:0"]  # the second is of a window


def sweep(path: Path, **options: object) -> Sweep:
    given = {"units": True, "block": 4, "calibrate": 4, **options}
    method = IntGrad(2)
    return Sweep(Backbone(WORLD), FEATURES, "layer2", method, store=str(path), **given)


def world() -> VetoedShapesPictures:
    return VetoedShapesPictures(10, seed=9, contents="random", batch_size=3)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SweepStore:
    path = tmp_path_factory.mktemp("sweep") / "s.zarr"
    predict(sweep(path), world())
    return SweepStore(path)


def test_they_are_attributions_summed_over_positions(store: SweepStore) -> None:
    backbone, data = Backbone(WORLD), world()
    data.use(backbone.preprocessing)
    pictures = torch.stack([data.pictures[index]["picture"] for index in (7, 2)])
    for place, name in enumerate(FEATURES):
        feature = BoundFeature(Feature.parse(name), backbone)
        of = (backbone, pictures, [feature] * 2, Layer("layer2"), IntGrad(2))
        wanted = attribute(*of)[1].sum((2, 3))
        found = store.contributions(place, np.array([7, 2]))
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4)
        total = store.values("excitation", place) - store.values("inhibition", place)
        np.testing.assert_allclose(found.sum(1), total[[7, 2]], atol=1e-3)


def test_a_features_are_read_without_the_others(store: SweepStore, tmp_path: Path) -> None:
    other = shutil.copytree(store.path, tmp_path / "s.zarr")
    shard = other / "contribution" / "c" / "0" / "0" / "0"
    held = bytearray(shard.read_bytes())
    held[len(held) * 2 // 5] ^= 1  # of the second feature, as they come
    shard.write_bytes(held)
    damaged = []
    for feature in range(3):
        try:
            assert SweepStore(other).contributions(feature, np.arange(10)).shape == (10, 64)
        except InputError:
            damaged.append(feature)
    assert len(damaged) == 1
    shard.unlink()
    with pytest.raises(InputError, match="contribution is lost in part"):
        SweepStore(other)


def test_stopped_and_continued_they_are_the_same(store: SweepStore, tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    predict(sweep(path), world(), limit_predict_batches=2)
    assert not SweepStore(path).complete
    predict(sweep(path), world())
    assert_same(store.path, path)
    with pytest.raises(InputError, match="holds contributions of units; give another"):
        predict(sweep(path, units=False), world())


def test_without_being_asked_for_there_are_none(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    predict(sweep(path, units=False), VetoedShapesPictures(2, batch_size=2))
    assert "contribution" not in {entry.name for entry in path.iterdir()}
    with pytest.raises(InputError, match=r"holds no contributions of units.*--model\.units true"):
        SweepStore(path).contributions(0, np.arange(2))
    with pytest.raises(InputError, match="holds no contributions of units; give another"):
        predict(sweep(path), VetoedShapesPictures(2, batch_size=2))


def test_the_log_says_what_they_take(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "mti_lightning"):
        predict(sweep(tmp_path / "s.zarr"), VetoedShapesPictures(2, batch_size=2))
    assert "64 contributions to a feature, 0.0 MB at most" in caplog.text


def test_the_network_of_a_sweep_is_made_again(store: SweepStore, tmp_path: Path) -> None:
    assert backbone_of(store).digest() == store.provenance["weights"]
    network, path = Backbone(WORLD), tmp_path / "s.zarr"
    with network.scaled("layer2", [0]):
        module = Sweep(network, ["fc:0"], "layer4", store=str(path), calibrate=2)
        predict(module, VetoedShapesPictures(2, batch_size=2))
    with pytest.raises(InputError, match="has other weights, or units of it were scaled"):
        backbone_of(SweepStore(path))
