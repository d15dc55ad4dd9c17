"""The sweep: its numbers against plain autograd, and its store after stops of every kind."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import zarr
from lightning import Trainer
from PIL import Image
from torch import Tensor, nn

from mti_lightning import (
    ActGrad,
    Backbone,
    InputError,
    PictureFolder,
    Sweep,
    SweepPictures,
    SweepStore,
    Tension,
    VetoedShapesPictures,
)
from mti_lightning.attribution.methods import Attribution, Pass
from mti_lightning.attribution.signs import signed_map
from mti_lightning.errors import RunError
from mti_lightning.features.bound import expand
from mti_lightning.features.feature import Feature
from mti_lightning.sweep import writing
from mti_lightning.sweep.measures import COLUMNS, MEASURES
from mti_lightning.sweep.writing import SweepWriter

WORLD = "vetoed_shapes_resnet"


def sweep(store: Path | None = None, **options: object) -> Sweep:
    settings = {"block": 16, "calibrate": 20, "keep": 3, **options}
    return Sweep(Backbone(WORLD), ["fc:*"], "layer4", store=store and str(store), **settings)


def predict(module: Sweep, data: object, **options: object) -> None:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    Trainer(accelerator="cpu", **quiet, **options).predict(
        module, datamodule=data, return_predictions=False
    )


def world(size: int = 72) -> VetoedShapesPictures:
    return VetoedShapesPictures(size, seed=9, contents="random", batch_size=12)


def arrays(store: Path) -> dict[str, np.ndarray]:
    group = zarr.open_group(store, mode="r")
    return {name: array[:] for name, array in group.arrays()}


def assert_same(first: Path, second: Path) -> None:
    one, other = arrays(first), arrays(second)
    assert one.keys() == other.keys()
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name], err_msg=name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted sweep of 72 pictures."""
    store = tmp_path_factory.mktemp("whole") / "sweep.zarr"
    with pytest.MonkeyPatch.context():
        predict(sweep(store), world())
    return store


def plain(
    network: nn.Module, names: Sequence[str], feature: Feature, picture: Tensor
) -> list[Tensor]:
    """Activations, gradient and response by hooks and autograd alone, one picture, one feature."""
    taken: dict[str, Tensor] = {}
    modules = dict(network.named_modules())

    def keep(name: str, value: Tensor) -> Tensor:
        if not value.requires_grad:
            value = value.detach().requires_grad_()
        taken[name] = value
        return value.clone()

    handles = []
    for name in names:
        module, _, side = name.partition("/")
        if side:
            handles.append(
                modules[module].register_forward_pre_hook(
                    lambda _, inputs, name=name: (keep(name, inputs[0]),)
                )
            )
        else:
            handles.append(
                modules[module].register_forward_hook(
                    lambda _m, _i, output, name=name: keep(name, output)
                )
            )
    network(picture)
    for handle in handles:
        handle.remove()
    layer, target = names
    values = taken[target]
    values = values[0] if values.ndim < 4 else values[0].permute(1, 2, 0)  # [..., C]
    if feature.direction is not None:
        values = values @ torch.tensor(feature.direction)
    else:
        values = values[..., feature.channel]
    position = feature.position
    if position == "centre":
        response = values[values.shape[0] // 2, values.shape[1] // 2]
    elif position == "peak":
        response = values.max()
    elif position == "mean":
        response = values.mean()
    else:
        response = values if position is None else values[position]
    (gradient,) = torch.autograd.grad(response, taken[layer])
    return [taken[layer].detach(), gradient, response.detach()]


CASES = [
    (
        "resnet18",
        {"zero_init_last": False},
        "layer1",
        "layer2.1.act2/input",
        ["3@centre", "7@0,0", "5@4,27"],
    ),
    ("resnet18", {"zero_init_last": False}, "layer1", "layer2.1.act2/input", ["3@mean", "9@peak"]),
    ("convnext_atto", {}, "stages.0", "stages.1", ["3@centre", "[" + "1,-1," * 39 + "1,1]@centre"]),
    ("vit_tiny_patch16_224", {}, "blocks.1", "blocks.3.mlp.act/input", ["4@7", "6@0", "6@peak"]),
    (WORLD, {}, "layer3", "fc", ["0", "5"]),
    ("inception_v3", {}, "Mixed_5b", "Mixed_5c", ["100@centre", "3@2,30"]),
]


@pytest.mark.parametrize(("name", "arguments", "layer", "target", "whats"), CASES)
@pytest.mark.filterwarnings("ignore:feature .* is read after its activation function")
def test_numbers_are_those_of_a_plain_gradient(
    name: str, arguments: dict[str, object], layer: str, target: str, whats: list[str]
) -> None:
    backbone = Backbone(name, "pretrained" if name == WORLD else "random", arguments=arguments)
    features = [f"{target}:{what}" for what in whats]
    plainly = {"attribution": ActGrad(), "tension": Tension(scale=0, norm=1)}
    module = Sweep(backbone, features, layer, **plainly)
    mean = torch.linspace(0, 1, backbone.layout(module.layer).channels)
    module.prepare(mean)
    pictures = torch.rand(2, 3, *backbone.preprocessing.size, generator=torch.manual_seed(0))
    measured = module.measure(pictures)
    network = timm.create_model(name, pretrained=name == WORLD, **arguments).eval()
    network.load_state_dict(backbone.network.state_dict())
    shown = (pictures - backbone.mean) / backbone.std
    dim = module.layout.channel_dim
    shape = [1] * (len(backbone.layout(module.layer).shape) + 1)
    shape[dim] = -1
    for column, feature in enumerate(expand(features, backbone)):
        for row in range(2):
            values, gradient, response = plain(
                network, [layer, target], feature, shown[row : row + 1]
            )
            attribution = values * gradient
            summed = signed_map(attribution, dim)
            plus, minus = summed.clamp(min=0).sum(), summed.clamp(max=0).sum().neg()
            centred = signed_map((values - mean.view(shape)) * gradient, dim)
            wanted = {
                "response": response,
                "excitation": plus,
                "inhibition": minus,
                "tension": (plus * minus).sqrt(),
                "tension_centred": (
                    centred.clamp(min=0).sum() * -centred.clamp(max=0).sum()
                ).sqrt(),
                "tension_l2": attribution.norm(dim=dim).sum(),
            }
            scale = attribution.abs().sum()
            for measure, value in wanted.items():
                off = (measured[measure][row, column] - value).abs()
                assert off <= 1e-5 * torch.maximum(value.abs(), scale) + 1e-9, (feature, measure)


def test_all_channels_at_once_equal_one_by_one() -> None:
    backbone = Backbone("resnet18", "random", arguments={"zero_init_last": False})
    pictures = torch.rand(3, 3, 224, 224, generator=torch.manual_seed(1))
    target = "layer2.0.act2/input"
    found = []
    for features in ([f"{target}:*@centre"], [f"{target}:{i}@centre" for i in (0, 77, 127)]):
        module = Sweep(backbone, features, "layer1")
        module.prepare()
        found.append(module.measure(pictures))
    for name, values in found[0].items():
        if name != "tension_centred":
            torch.testing.assert_close(
                values[:, [0, 77, 127]], found[1][name], rtol=1e-5, atol=1e-6, equal_nan=True
            )


def test_without_a_mean_activation_what_needs_it_is_left_out() -> None:
    module = sweep()
    module.prepare()
    measured = module.measure(torch.rand(2, 3, 96, 96, generator=torch.manual_seed(0)))
    for name, values in measured.items():
        left_out = name in ("tension_centred", "interference")
        assert values.isnan().all() if left_out else values.isfinite().all(), name


def test_the_store_holds_what_measure_gives_and_opens_without_us(whole: Path) -> None:
    group = zarr.open_group(whole, mode="r")
    assert group["tension"].metadata.dimension_names == ("picture", "feature")
    data = world()
    module = sweep()
    data.use(module.backbone.preprocessing)
    module.prepare(torch.from_numpy(group["mean_activation"][:]))
    _, _, profiles = SweepStore(whole).rivals(0)
    module.measurement = replace(module.measurement, profiles={0: profiles})
    pictures = torch.stack([data.pictures[i]["picture"] for i in range(72)])
    measured = module.measure(pictures)
    for name in COLUMNS:
        np.testing.assert_array_equal(group[name][:], measured[name].numpy())
    assert group["key"][5] == data.pictures.keys[5]
    assert (group["status"][:] == 1).all()
    store = SweepStore(whole)
    assert store.complete
    for feature in range(8):
        rows, kept = store.kept(feature)
        maps = store.maps(rows)
        ends = [store.top(feature, measure, 3) for measure in ("tension", "response", "-response")]
        assert kept.tolist() == sorted({i for end in ends for i in end})
        np.testing.assert_allclose(
            Tension().split(torch.from_numpy(maps), store.map_layout)[0],
            store.values("excitation", feature)[kept],
            rtol=1e-5,
        )


@pytest.mark.parametrize("batches", [1, 2, 4, 5])
def test_a_stopped_sweep_goes_on_and_ends_the_same(
    whole: Path, tmp_path: Path, batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "sweep.zarr"
    begun = sweep(store)
    step, seen = begun.predict_step, []

    def stop(batch: object, batch_idx: int) -> int:
        seen.append(batch_idx)
        if len(seen) > batches:
            raise KeyError("stop")
        return step(batch, batch_idx)

    monkeypatch.setattr(begun, "predict_step", stop)
    with pytest.raises(KeyError):
        predict(begun, world())
    assert not SweepStore(store).complete
    predict(sweep(store), world())
    assert_same(store, whole)


def test_numbers_that_a_stop_left_without_a_status_count_for_nothing(
    whole: Path, tmp_path: Path
) -> None:
    store = tmp_path / "sweep.zarr"
    shutil.copytree(whole, store)
    SweepWriter(store).tell(complete=False)
    zarr.open_group(store)["status"][:] = 0
    predict(sweep(store), world())
    assert_same(store, whole)


@pytest.mark.parametrize("stopped_in", ["_keep", "_remove"])
def test_a_stop_at_the_very_end_is_made_good(
    whole: Path, tmp_path: Path, stopped_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sweep.zarr"

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        if stopped_in == "_keep":
            patch.setattr(SweepWriter, "_keep", full)
        else:
            remove = writing._remove
            patch.setattr(
                writing,
                "_remove",
                lambda path: full() if path.name == "candidates" else remove(path),
            )
        with pytest.raises(RunError, match="is full; every block before is safe: make room"):
            predict(sweep(path), world())
    assert (path / "candidates").exists()
    assert SweepStore(path).status.all()
    predict(sweep(path), world())
    assert SweepStore(path).complete
    assert not (path / "candidates").exists()
    assert_same(path, whole)


SCRIPT = """
import sys, warnings
sys.path.insert(0, {root!r})
warnings.filterwarnings("ignore")
from tests.sweep.test_module import *
if __name__ == "__main__":
    {before}
    predict(sweep(Path({store!r}), block={block}), {data}, **{options!r})
"""
CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")


def die(store: str, phase: str, changes: int) -> None:
    """Let SIGKILL strike this process at a change on the disk, so many after a phase has begun.

    Args:
        store: The store.
        phase: The method of the store that it begins with.
        changes: How many changes go well.
    """
    begun, left = False, changes
    method = getattr(SweepWriter, phase)

    def begin(*args: object, **options: object) -> object:
        nonlocal begun
        begun = True
        return method(*args, **options)

    def strike(event: str, args: tuple[object, ...]) -> None:
        nonlocal left
        if not begun or event not in CHANGES:
            return
        reading = event == "open" and not set(str(args[1])) & set("wax+")
        inside = str(args[0]).startswith(store) or not isinstance(args[-1], int) or args[-1] >= 0
        if inside and not reading:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    setattr(SweepWriter, phase, begin)
    sys.addaudithook(strike)


def run(
    tmp_path: Path,
    store: Path,
    block: int = 16,
    before: str = "",
    data: str = "world()",
    **options: object,
) -> int:
    """Sweep in a process of its own, and return how it ended."""
    script = tmp_path / "run.py"
    root = str(Path(__file__).parents[2])
    told = {"before": before, "block": block, "data": data, "options": options}
    script.write_text(SCRIPT.format(root=root, store=str(store), **told))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, check=False)
    return done.returncode


@pytest.mark.parametrize(
    ("phases", "block"),
    [
        (["begin", "finish"], 16),
        pytest.param(["begin"] * 2 + ["write"] * 5 + ["finish"] * 3, 4, marks=pytest.mark.slow),
    ],
)
def test_a_killed_sweep_goes_on_and_ends_the_same(
    tmp_path: Path, phases: list[str], block: int
) -> None:
    store, whole = tmp_path / "sweep.zarr", tmp_path / "whole.zarr"
    predict(sweep(whole, block=block), world())
    random = np.random.default_rng(0)
    for phase in phases:
        before = f"die({str(store)!r}, {phase!r}, {random.integers(60)})"
        assert run(tmp_path, store, block, before) == -signal.SIGKILL
        assert phase != "finish" or SweepStore(store).status.all()
    predict(sweep(store, block=block), world())
    assert_same(store, whole)
    assert {path.name for path in store.iterdir()} == {path.name for path in whole.iterdir()}


@pytest.mark.slow
def test_two_processes_equal_one(whole: Path, tmp_path: Path) -> None:
    store = tmp_path / "sweep.zarr"
    assert run(tmp_path, store, devices=2, strategy="ddp") == 0
    assert_same(store, whole)


def save_pictures(folder: Path, count: int, ending: str = "png") -> None:
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(count):
        values = random.integers(0, 256, (96, 96, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{i}.{ending}")


@pytest.mark.slow
def test_a_process_with_nothing_left_to_do_waits_for_the_other(tmp_path: Path) -> None:
    pictures, path = tmp_path / "pictures", tmp_path / "sweep.zarr"
    save_pictures(pictures, 6)
    for name in ("1.png", "5.png"):
        (pictures / name).write_bytes(b"no picture")
    data = f"PictureFolder({str(pictures)!r}, batch_size=2)"
    for batches in (1, None):  # three blocks for two processes, then one
        options = {"devices": 2, "strategy": "ddp", "limit_predict_batches": batches}
        assert run(tmp_path, path, 2, data=data, **options) == 0
    store = SweepStore(path)
    assert store.complete
    assert store.status.tolist() == [1, 2, 1, 1, 1, 2]
    assert list(store.unreadable) == ["1.png", "5.png"]
    with pytest.warns(UserWarning, match="2 of 6 pictures could not be read"):
        predict(sweep(tmp_path / "one.zarr", block=2), PictureFolder(pictures, batch_size=2))
    assert_same(path, tmp_path / "one.zarr")


def test_what_cannot_be_read_is_counted_and_the_rest_is_right(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    save_pictures(folder, 6)
    told = (
        r"1 of 6 pictures could not be read: .*2\.png is not a picture.*`reason` of .* has all\. "
        "Going on does not read them again: where they were repaired, begin anew by --model.overw"
    )
    for content in (b"no picture", (folder / "3.png").read_bytes()):  # now, and as it is known
        (folder / "2.png").write_bytes(content)
        with pytest.warns(UserWarning, match=told):
            predict(sweep(tmp_path / "s.zarr"), PictureFolder(folder))
    store = SweepStore(tmp_path / "s.zarr")
    assert store.status.tolist() == [1, 1, 2, 1, 1, 1]
    assert list(store.unreadable) == ["2.png"]
    assert "is not a picture" in store.unreadable["2.png"]
    assert np.isnan(store.values("tension")[2]).all()
    assert np.isfinite(np.delete(store.values("tension"), 2, 0)).all()
    assert 2 not in store.kept(0)[1]
    predict(sweep(tmp_path / "anew.zarr"), PictureFolder(folder))
    np.testing.assert_array_equal(*SweepStore(tmp_path / "anew.zarr").values("response")[2:4])
    (folder / "9.png").write_bytes((folder / "5.png").read_bytes())
    with pytest.raises(
        InputError, match=r"there were 6, there are 7; number 6 was no picture, is 9"
    ):
        predict(sweep(tmp_path / "s.zarr"), PictureFolder(folder))


def test_a_disk_that_is_gone_leaves_its_pictures_to_be_done(tmp_path: Path) -> None:
    folder, store = tmp_path / "pictures", tmp_path / "s.zarr"
    save_pictures(folder, 6)
    predict(sweep(tmp_path / "whole.zarr", block=2), PictureFolder(folder, batch_size=2))
    begun = sweep(store, block=2)
    step = begun.predict_step

    def unmount(batch: object, batch_idx: int) -> int:
        folder.rename(tmp_path / "away")
        folder.mkdir()
        return step(batch, batch_idx)

    begun.predict_step = unmount
    with pytest.raises(RunError, match=r"2\.png cannot be read: No such file .*disk still there"):
        predict(begun, PictureFolder(folder, batch_size=2))
    assert SweepStore(store).status.tolist() == [1, 1, 0, 0, 0, 0]
    folder.rmdir()
    (tmp_path / "away").rename(folder)
    predict(sweep(store, block=2), PictureFolder(folder, batch_size=2))
    assert_same(store, tmp_path / "whole.zarr")


def test_a_picture_that_changed_is_not_mixed_in(tmp_path: Path) -> None:
    folder, path = tmp_path / "pictures", tmp_path / "s.zarr"
    save_pictures(folder, 6, "bmp")
    first, last = folder / "1.bmp", folder / "4.bmp"

    def go_on(where: Path, reduced: bool = True, **options: object) -> None:
        data = PictureFolder(where, batch_size=2, reduced=reduced)
        predict(sweep(path, block=2, calibrate=1), data, **options)

    go_on(folder, limit_predict_batches=1)
    good = first.read_bytes()
    for other in (good[:-1] + b"x", good + b"x"):  # of the same size, and of another
        first.write_bytes(other)
        with pytest.raises(InputError, match=r"^1\.bmp has changed since .*s\.zarr was made of it"):
            go_on(folder)
    first.write_bytes(good)  # the same again, only newer
    with pytest.raises(InputError, match=r"was made with data\.init_args\.reduced True, not False"):
        go_on(folder, reduced=False)
    last.write_bytes(good)  # was not looked at yet
    moved = folder.rename(tmp_path / "moved")
    go_on(moved)
    store = SweepStore(path)
    assert store.complete
    assert store.provenance["data"]["init_args"]["path"] == str(moved)
    np.testing.assert_array_equal(*store.values("response", pictures=[1, 4]))
    (moved / "3.bmp").write_bytes(good)
    with pytest.raises(InputError, match=r"^3\.bmp has changed"):
        SweepPictures(path, count=6, feature="fc:0").use(Backbone(WORLD).preprocessing)


def test_the_same_module_does_not_mix_other_data_in(tmp_path: Path) -> None:
    module = sweep(tmp_path / "s.zarr", overwrite=True)
    predict(module, world(4))
    with pytest.raises(InputError, match="was made with data"):
        predict(module, world(5))
    assert SweepStore(tmp_path / "s.zarr").complete


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_any_precision_is_stored_in_single(tmp_path: Path, precision: str) -> None:
    path, exact = tmp_path / "s.zarr", tmp_path / "exact.zarr"
    predict(sweep(path), world(24), precision=precision)
    predict(sweep(exact), world(24))
    for name in COLUMNS:
        values = arrays(path)[name]
        assert values.dtype == np.float32
        wanted = arrays(exact)[name]
        if name.startswith("tension"):  # the root of a strength that is nearly 0 tells any of it
            values, wanted = values**2, wanted**2
        np.testing.assert_allclose(values, wanted, rtol=0.04, atol=0.1)
    store = SweepStore(path)
    rows, kept = store.kept(0)
    np.testing.assert_allclose(
        Tension().split(torch.from_numpy(store.maps(rows)), store.map_layout)[0],
        store.values("excitation", 0)[kept],
        rtol=1e-5,
    )
    with pytest.raises(InputError, match=f"made with precision '{precision}', not '32-true'"):
        predict(sweep(path), world(24))


def test_maps_are_kept_by_any_measure(tmp_path: Path) -> None:
    measures = ("-balance", *MEASURES)
    predict(sweep(tmp_path / "s.zarr", keep=2, keep_by=measures, block=4), world(20))
    store = SweepStore(tmp_path / "s.zarr")
    for feature in range(8):
        tops = {i for measure in measures for i in store.top(feature, measure, 2)}
        assert store.kept(feature)[1].tolist() == sorted(tops)


class Drawn(Attribution):
    """Act×grad that keeps what no JSON tells, and not what it was given."""

    needs_baseline = True

    def __init__(self, seed: int = 0, given: object = None, baseline: str | None = None) -> None:
        self.generator, self.baseline = torch.Generator().manual_seed(seed), baseline

    def attribute(self, forward: Pass, create_graph: bool) -> Tensor:
        (gradient,) = torch.autograd.grad(forward.responses.sum(), forward.activations)
        return forward.activations * gradient


def test_a_sweep_knows_its_method_again(tmp_path: Path) -> None:
    mean, data = tmp_path / "mean.npy", world()
    np.save(mean, np.zeros(192, np.float32))

    def made(**arguments: object) -> object:
        return sweep(attribution=Drawn(**arguments)).provenance(data)["attribution"]

    data.use(Backbone(WORLD).preprocessing)
    assert made(seed=1, given=object()) == made(seed=1, given=object())
    assert made(seed=1) != made(seed=2)
    before = made(baseline=str(mean))
    assert before == made(baseline=str(mean))
    np.save(mean, np.ones(192, np.float32))
    assert before != made(baseline=str(mean))


def test_another_sweep_is_not_mixed_in(whole: Path) -> None:
    with pytest.raises(
        InputError, match=r"was made with tension.measure .*minimum.*; give another --model"
    ):
        predict(sweep(whole, tension=Tension("minimum")), world())
    with pytest.raises(InputError, match="was made with data"):
        predict(sweep(whole), world(71))
    assert SweepStore(whole).complete


def test_a_full_disk_loses_nothing(whole: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk can be mounted by root only")
    try:
        with pytest.raises(RunError, match="is full; every block before is safe: make room"):
            predict(sweep(disk / "sweep.zarr"), world())
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        predict(sweep(disk / "sweep.zarr"), world())
        assert_same(disk / "sweep.zarr", whole)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_top_pictures_become_sources(whole: Path) -> None:
    store = SweepStore(whole)
    for feature, options in ((3, {"feature": "fc:3"}), (None, {})):
        data = SweepPictures(whole, count=8, **options)
        data.use(Backbone(WORLD).preprocessing)
        keys = [sample["key"] for sample in data.samples()]
        tops = [store.top(k, "tension", 1)[0] for k in range(8)]
        wanted = tops if feature is None else store.top(feature, "tension", 8)
        assert keys == [store.keys[i] for i in wanted]
    with pytest.raises(InputError, match="has 72 measured pictures to choose from, not 73"):
        SweepPictures(whole, count=73, feature="fc:0")


def test_what_a_sweep_refuses() -> None:
    backbone = Backbone(WORLD)
    with pytest.raises(InputError, match="keep 3 of 192 features would fill the disk"):
        Sweep(backbone, ["layer4.0.act2/input:*@centre"], "layer3", keep=3)
    with pytest.raises(InputError, match="there is no measure 'tensoin'"):
        Sweep(backbone, ["fc:0"], "layer4", keep=1, keep_by=["tensoin"])
    with pytest.raises(InputError, match="block 0: give 1 or more"):
        Sweep(backbone, ["fc:0"], "layer4", block=0)
    with pytest.raises(InputError, match="needs a place"):
        predict(Sweep(backbone, ["fc:0"], "layer4"), world(2))
