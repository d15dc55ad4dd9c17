"""Everything on a device that is not the CPU: nothing is computed or drawn elsewhere."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from lightning import Callback, Trainer

from mti_lightning import (
    ActGrad,
    AtlasInversion,
    Backbone,
    Chart,
    IntGrad,
    MaximallyTense,
    Objective,
    PositiveInversion,
    RenderError,
    SignedInversion,
    Sweep,
    Validity,
    VetoedShapesPictures,
    Views,
    explain,
    render,
)
from mti_lightning.atlas import embedding
from tests.tools.device import MPS, Device, playing_mps, watching_cuda

WORLD = "vetoed_shapes_resnet"
QUIET: Any = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
STILL = Views(noise=0)


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.fixture(params=["mps", pytest.param("cuda", marks=NO_GPU)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    monkeypatch.setattr("mti_lightning.superposition.interference._STEPS", 5)  # of 300 alike ones
    watched = playing_mps(monkeypatch) if request.param == "mps" else watching_cuda()
    with watched as found:
        yield found


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    with playing_mps(monkeypatch) as found:
        yield found


def pictures(count: int = 2) -> VetoedShapesPictures:
    return VetoedShapesPictures(count, seed=9, contents="random", batch_size=12)


def test_the_played_device_is_strict(played: Device) -> None:
    there, here = torch.ones(3).to("mps"), torch.ones(3)
    assert there.device == MPS
    assert (there + there).device == MPS
    assert torch.zeros(2, device="mps").device == MPS
    assert there.cpu().device == here.device
    assert (there + torch.tensor(1.0)).tolist() == [2, 2, 2]
    with pytest.raises(RuntimeError, match="same device"):
        there + here
    with pytest.raises(TypeError, match="float64"):
        there.double()
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(2, device="mps", generator=torch.Generator())
    leaf = here.clone().requires_grad_()
    (leaf.to("mps") * there).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.device == here.device


def test_noise_is_drawn_on_the_device(played: Device) -> None:
    shown = torch.rand(2, 3, 32, 32).to("mps")
    played.drawn.clear()
    views = Views(2)(shown, [1, 2], 0, (32, 32))
    assert played.drawn[True] == 2 * views.numel()  # uniform and normal
    assert played.drawn[False] == 3 * len(views)  # the boxes, which are the same everywhere
    torch.testing.assert_close(views.cpu(), Views(2)(shown, [1, 2], 0, (32, 32)).cpu())
    still = STILL(shown, [1, 2], 0, (32, 32))
    torch.testing.assert_close(still.cpu(), STILL(shown.cpu(), [1, 2], 0, (32, 32)))


def objective(kind: type[Objective], **options: Any) -> Objective:
    options = {"steps_per_epoch": 2, "views": STILL, **options}
    return kind(Backbone(WORLD), ["fc:0", "fc:3"], "layer4", **options)


def test_the_played_device_knows_what_waits(played: Device) -> None:
    there = torch.ones(3).to("mps", non_blocking=True)
    there = there.clone()[1:] * 2
    assert not played.waits
    there.cpu(), float(there[0]), torch.ones(2).to("mps"), torch.tensor([1.0], device="mps")
    there[[0, 1]]
    assert {*played.waits} == {"from there", "_local_scalar_dense", "to there", "tensor", "index"}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (PositiveInversion, {"views": 2}),
        (MaximallyTense, {"attribution": IntGrad(2), "batch_size": 2}),
    ],
)
def test_no_step_waits_for_the_device(
    kind: type[Objective], options: dict[str, Any], played: Device
) -> None:
    data = VetoedShapesPictures(1) if kind.needs_sources else None
    waits = []
    for steps in (3, 9):
        played.waits.clear()
        one = objective(kind, **{"steps_per_epoch": steps, **options})
        render(one, data, epochs=1, accelerator="mps", **QUIET)
        waits.append(played.waits.copy())
    assert waits[1] <= waits[0]  # in more steps


def test_what_no_step_moves_is_told_at_an_epochs_end(played: Device) -> None:
    one = objective(MaximallyTense, steps_per_epoch=3, attribution=ActGrad())
    with pytest.raises(RenderError, match="not finite for image fc-3"):
        render(one, epochs=1, accelerator="mps", callbacks=[_Broken()], **QUIET)


class _Broken(Callback):
    """Spoils an image before the second step."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            module.chunks[0].trained["phase"].data[1, 0, 0, 0] = torch.nan


def test_no_measure_of_a_sweep_waits_for_the_device(played: Device) -> None:
    sweep = Sweep(Backbone(WORLD), ["fc:*"], "layer4", rivals=0).to("mps")
    sweep.prepare()
    shown = sweep.backbone.noise(3).to("mps")
    sweep.measure(shown)
    played.waits.clear()
    sweep.measure(shown)
    assert not played.waits


@pytest.mark.filterwarnings("ignore:.*images cannot be made")
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (MaximallyTense, {}),
        (SignedInversion, {"accentuate": True}),
    ],
)
def test_images_are_made_on_the_device(
    kind: type[Objective], options: dict[str, Any], device: Device
) -> None:
    data = VetoedShapesPictures(2) if kind.needs_sources else None
    made = {}
    for where in ("cpu", device.type):
        one = objective(kind, **options)
        device.ran.clear()
        made[where] = render(one, data, epochs=1, accelerator=where, **QUIET)
        assert set(device.ran) == {where == device.type}
    for here, there in zip(made["cpu"], made[device.type], strict=True):
        assert here.measures == pytest.approx(there.measures, rel=0.02, abs=0.02, nan_ok=True)


def test_a_sweep_calibrates_and_measures_on_the_device(tmp_path: Path, device: Device) -> None:
    stores = {}
    for where in ("cpu", device.type):
        path = tmp_path / f"{where}.zarr"
        sweep = Sweep(Backbone(WORLD), ["fc:*"], "layer4", store=str(path), keep=2)
        device.ran.clear()
        Trainer(accelerator=where, **QUIET).predict(
            sweep, datamodule=pictures(12), return_predictions=False
        )
        assert set(device.ran) == {where == device.type}
        stores[where] = zarr.open_group(path, mode="r")
    for name, values in stores["cpu"].arrays():
        if values.dtype.kind == "f":
            there = stores[device.type][name][:]
            np.testing.assert_allclose(there, values[:], rtol=1e-3, atol=1e-3, err_msg=name)


def test_a_report_is_made_on_the_device(device: Device) -> None:
    module = Validity(Backbone(WORLD), ["fc:3"], "layer4", pictures=6, rendered=1, steps=1)
    device.ran.clear()
    Trainer(accelerator=device.type, **QUIET).validate(module, pictures(6), verbose=False)
    assert set(device.ran) == {True}
    assert module.report is not None


def test_an_atlas_and_its_sweep_are_made_on_the_device(
    tmp_path: Path, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    # UMAP takes seconds, on the CPU.
    monkeypatch.setattr(embedding, "embed", lambda vectors, *_: vectors[:, :2])
    chart = Chart(sweep=str(tmp_path / "sweep.zarr"), size=(2, 2), minimum=1)
    module = AtlasInversion(
        Backbone(WORLD), ["fc:3"], "layer4", chart=chart, keep=12, rivals=8, steps_per_epoch=2
    )
    device.ran.clear()
    assert render(module, pictures(12), epochs=1, accelerator=device.type, **QUIET)
    assert set(device.ran) == {True}


def test_an_explanation_is_made_on_the_device(device: Device) -> None:
    picture = (torch.rand(64, 64, 3) * 255).byte().numpy()
    backbone = Backbone(WORLD)
    device.ran.clear()
    found = explain(picture, backbone, steps=1, progress=False, accelerator=device.type)
    assert set(device.ran) == {True}
    assert backbone.mean.device.type == "cpu"
    assert found.parts
