"""Atoms as units: in the vetoed shapes the veto's atom is named, and silencing it tells."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Trainer
from mti_sae import spliced

from mti_lightning import Backbone, InputError, Layer, Sweep, SweepStore, VetoedShapes
from mti_lightning.data.shapes import VetoedShapesPictures
from mti_lightning.inhibitors.study import find_inhibitors
from mti_lightning.vetoed_shapes.world import veto_of

STAR = 3
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """The network, with what each shape adds to layer4 as its atoms; the ninth is always there."""
    world, plain = VetoedShapes(200, seed=3), Backbone("vetoed_shapes_resnet")
    some = [world[index] for index in range(200)]
    pictures = torch.stack([one["picture"] for one in some])
    known = torch.stack([torch.cat([one["present"].float(), torch.ones(1)]) for one in some])
    pooled = plain.run(pictures, [Layer("layer4")])[Layer("layer4")].detach().mean((2, 3))
    path = tmp_path_factory.mktemp("atoms") / "shapes.npy"
    np.save(path, torch.linalg.lstsq(known, pooled).solution.numpy())
    of = {"network": "vetoed_shapes_resnet", "layer": "layer4", "dictionary": str(path)}
    return Backbone(spliced.with_dictionary.__name__, arguments=of)


def test_the_network_is_the_same_and_atoms_are_channels(backbone: Backbone) -> None:
    plain, noise = Backbone("vetoed_shapes_resnet"), backbone.noise(2)
    torch.testing.assert_close(backbone(noise), plain(noise), atol=1e-4, rtol=1e-4)
    assert backbone.layout(Layer("layer4.codes")).channels == 9
    with backbone.scaled("layer4.codes", range(9)):
        assert (backbone(noise) - plain(noise)).abs().max() > 0.01
    with pytest.raises(InputError, match="no layer 'layer9'"):
        Backbone("with_dictionary", arguments={"layer": "layer9"})


def test_the_atom_of_the_veto_inhibits_most(backbone: Backbone, tmp_path: Path) -> None:
    options = {"store": str(tmp_path / "s.zarr"), "calibrate": 8, "rivals": 0, "units": True}
    sweep = Sweep(backbone, [f"fc:{STAR}"], "layer4.codes", **options)
    data = VetoedShapesPictures(96, seed=7)
    Trainer(accelerator="cpu", **QUIET).predict(sweep, datamodule=data, return_predictions=False)
    store, names = SweepStore(tmp_path / "s.zarr"), tmp_path / "names.txt"
    names.write_text("\n".join(store.keys[STAR::8]))  # a star and its veto in each
    found = find_inhibitors(store, None, 1, str(names))
    assert [unit.unit for unit in found.units] == [veto_of(STAR)]
    assert found.units[0].real.low > 1 > found.random.mean
    assert found.units[0].real.flipped >= 0.5
