"""The interference index in sweeps and results: against its formula, and against the truth."""

from pathlib import Path

import numpy as np
import torch
from lightning import Trainer
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from benchmarks.superposition import causes_in_pictures
from mti_lightning import (
    Backbone,
    Layer,
    MaximallyTense,
    SignedInversion,
    Sweep,
    SweepPictures,
    SweepStore,
    VetoedShapesPictures,
)
from mti_lightning.features.bound import BoundFeature, FeatureGroup
from mti_lightning.features.feature import Feature
from mti_lightning.superposition.interference import interference_index, profile_features
from mti_lightning.superposition.rivals import choose_rivals

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def swept(
    path: Path, backbone: Backbone, features: list[str], layer: str, size: int, **options: object
) -> tuple[SweepStore, VetoedShapesPictures]:
    sweep = Sweep(backbone, features, layer, store=str(path), **options)
    data = VetoedShapesPictures(size, seed=41, contents="random")
    Trainer(accelerator="cpu", **QUIET).predict(sweep, datamodule=data, return_predictions=False)
    return SweepStore(path), data


def plain_index(backbone: Backbone, pictures: Tensor, layer: str, group: FeatureGroup) -> Tensor:
    """The formula, of whole maps: a picture and a feature at a time."""
    target = group.bound_features[0].layer
    activations, attributions, gradients, responses = [], [], [], []
    for picture in pictures:
        tapped = backbone.run(picture[None], [Layer(layer), target], cut=Layer(layer))
        found = group(tapped[target])[0]
        jacobian = torch.stack(
            [torch.autograd.grad(r, tapped[Layer(layer)], retain_graph=True)[0][0] for r in found]
        )
        a = tapped[Layer(layer)][0].detach()
        activations.append(a.mean((1, 2)))
        attributions.append((a * jacobian).sum((2, 3)))
        gradients.append(jacobian.sum((2, 3)))
        responses.append(found.detach())
    pooled, gradient = torch.stack(activations), torch.stack(gradients)
    centred = torch.stack(attributions) - pooled.mean(0) * gradient
    return interference_index(
        pooled, centred, profile_features(pooled, centred, torch.stack(responses))
    )


def test_of_all_classes_it_is_the_formula_s(tmp_path: Path) -> None:
    backbone = Backbone("vetoed_shapes_narrow")
    store, data = swept(tmp_path / "sweep.zarr", backbone, ["fc:*"], "layer4", 48, block=20)
    group, _ = next(
        iter(
            FeatureGroup.of(
                [BoundFeature(Feature.parse(f"fc:{k}"), backbone) for k in range(8)]
            ).items()
        )
    )
    pictures = torch.stack([sample["picture"] for sample in data.samples()])
    expected = plain_index(backbone, pictures, "layer4", group)
    np.testing.assert_allclose(store.values("interference"), expected, atol=2e-3)
    # An objective whose sources come from the sweep measures by the same profiles.
    sources = SweepPictures(tmp_path / "sweep.zarr", feature="fc:3", count=4)
    objective = SignedInversion(backbone, ["fc:3"], "layer4", coherent=False)
    objective.build_bank(sources)
    pairs, found = objective.measure_sources()
    assert pairs == [(source, 0) for source in range(4)]
    places = store.top(3, "tension", 4)
    np.testing.assert_allclose(
        found["interference"], store.values("interference", 3)[places], atol=1e-4
    )
    tense = MaximallyTense(backbone, ["fc:3"], "layer4")
    tense.build_bank(sources)
    assert tense.measure()["interference"].isfinite().all()
    tense = MaximallyTense(backbone, ["fc:3"], "layer4")
    tense.build_bank(None)
    assert tense.measure()["interference"].isnan().all()


def test_of_some_channels_rivals_are_drawn_and_windows_change_nothing(tmp_path: Path) -> None:
    backbone = Backbone("resnet18", "random", arguments={"zero_init_last": False})
    feature = "layer2.0.act2/input:5@centre"
    store, data = swept(
        tmp_path / "sweep.zarr", backbone, [feature], "layer1", 12, rivals=4, block=5
    )
    names, box, _ = store.rivals(0)
    assert names[0] == feature
    assert len(set(names)) == 4
    assert store.window(0) is not None
    assert box is not None
    group = FeatureGroup([BoundFeature(Feature.parse(name), backbone) for name in names])
    data.use(backbone.preprocessing)
    pictures = torch.stack([sample["picture"] for sample in data.samples()])
    # Activations are pooled over the window: what lies outside explains nothing.
    sources = SweepPictures(tmp_path / "sweep.zarr", count=12, measure="response")
    objective = SignedInversion(backbone, [feature], "layer1", coherent=False)
    objective.build_bank(sources)
    found = objective.measure_sources()[1]["interference"]
    places = store.top(0, "response", 12)
    np.testing.assert_allclose(found, store.values("interference", 0)[places], atol=1e-3)
    assert plain_index(backbone, pictures, "layer1", group).shape == (12, 4)


def test_it_is_left_out_where_rivals_are_missing(tmp_path: Path) -> None:
    backbone = Backbone("vetoed_shapes_resnet")
    store, _ = swept(tmp_path / "one.zarr", backbone, ["fc:3"], "layer4", 8)
    assert np.isnan(store.values("interference")).all()
    store, _ = swept(tmp_path / "none.zarr", backbone, ["fc:*"], "layer4", 8, rivals=0)
    assert np.isnan(store.values("interference")).all()
    group = FeatureGroup([BoundFeature(Feature.parse(f"fc:{kind}"), backbone) for kind in (2, 5)])
    assert choose_rivals(group, 1).channels == [2, 5]
    chosen = choose_rivals(group, 6).channels
    assert chosen[:2] == [2, 5]
    assert len(set(chosen)) == 6
    assert sorted(choose_rivals(group, 99).channels) == list(range(8))


def test_on_the_narrow_backbone_it_tells_inhibition_from_interference(tmp_path: Path) -> None:
    store, data = swept(
        tmp_path / "sweep.zarr",
        Backbone("vetoed_shapes_narrow"),
        ["fc:*"],
        "layer4",
        800,
        calibrate=800,
    )
    chosen, tense = causes_in_pictures(data.world)
    assert tense.sum() > 200
    genuine = 1 - torch.from_numpy(store.values("interference"))[chosen]
    assert binary_auroc(genuine, tense) >= 0.8
