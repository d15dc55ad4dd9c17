"""The store of a sweep: its selection rule and what opens it."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st

from mti_lightning import InputError, SweepStore, VetoedShapesPictures
from mti_lightning.registry import public_path
from mti_lightning.superposition.interference import FeatureProfiles
from mti_lightning.sweep.measures import COLUMNS, select
from mti_lightning.sweep.pictures import reopen
from mti_lightning.sweep.store import holds_sweep
from mti_lightning.sweep.writing import SweepWriter, check_place

MADE = {
    "features": ["fc:0", "fc:1"],
    "version": "0",
    "backbone": "test_resnet",
    "weights": "0f",
    "attribution_layer": "layer4",
    "preprocessing": {"size": [8, 8]},
    "data": {"class_path": "Folder", "init_args": {"path": "/here", "limit": 3}},
}
KEYS = ["a b/ä.png", "b.png", "日本.png"]


@given(
    st.lists(st.one_of(st.integers(-3, 3).map(float), st.just(float("nan")))),
    st.integers(0, 9),
    st.booleans(),
)
def test_selection_takes_the_best_and_of_equals_the_first(
    values: list[float], count: int, low: bool
) -> None:
    there = [(value if low else -value, i) for i, value in enumerate(values) if value == value]
    wanted = [i for _, i in sorted(there)[:count]]
    assert select(np.array(values, np.float32), count, low).tolist() == wanted


def test_a_store_is_read_back_block_by_block(tmp_path: Path) -> None:
    store = SweepWriter.begin(tmp_path / "s.zarr", MADE, KEYS, np.ones(4, np.float32), 2)
    columns = {name: np.full((2, 2), i, np.float32) for i, name in enumerate(COLUMNS)}
    store.write(0, columns, np.array([1, 2], np.uint8))
    again = SweepStore(tmp_path / "s.zarr")
    assert again.keys == KEYS
    assert again.features == ["fc:0", "fc:1"]
    assert again.status.tolist() == [1, 2, 0]
    assert again.values("inhibition", 1)[:2].tolist() == [2, 2]
    assert again.values("balance", 0)[:2].tolist() == [0.5, 0.5]
    assert again.values("harmonic", 0)[0] == pytest.approx(2 / 3)
    assert np.isnan(again.values("tension")[2]).all()
    assert again.top(0, "tension", 5) == [0, 1]
    with pytest.raises(
        InputError, match=r"holds no attribution maps of fc:0; sweep with --model\.keep"
    ):
        again.kept(0)


def test_an_unfinished_beginning_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "s.zarr.new").mkdir()
    with pytest.raises(InputError, match="holds no sweep; give the folder of one"):
        SweepStore(tmp_path / "s.zarr")
    SweepWriter.begin(tmp_path / "s.zarr", MADE, KEYS, np.ones(4, np.float32), 2)
    assert not (tmp_path / "s.zarr.new").exists()


def test_nothing_but_a_sweep_is_replaced(tmp_path: Path) -> None:
    path, half = tmp_path / "s.zarr", tmp_path / "s.zarr.new"
    for folder in (path, half):
        folder.mkdir()
        check_place(path)  # there is nothing in it
        (folder / "thesis.tex").write_text("years of work")
        with pytest.raises(InputError, match=f"{folder} exists and is no sweep; give --model"):
            check_place(path)
        (folder / "thesis.tex").rename(folder / "zarr.0f.partial")
        check_place(path)  # the first thing that is written of a store, cut off
    for _ in range(2):
        SweepWriter.begin(path, MADE, KEYS, np.ones(4, np.float32), 2)
        assert holds_sweep(path)
        check_place(path)
    link = tmp_path / "link.zarr"
    link.symlink_to(path)
    SweepWriter.begin(link, MADE, KEYS[:1], np.ones(4, np.float32), 2)
    assert link.is_symlink()
    assert SweepStore(path).size == 1


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("note.txt", "exists and is no sweep"),
        ("note.txt/s.zarr", r"cannot be made: .*note\.txt: File exists"),
        ("n" * 300, "cannot be made: .*: File name too long"),
        ("/proc/none/s.zarr", "cannot be made: /proc/none: No such file or directory"),
    ],
)
def test_a_place_where_no_store_can_be_is_refused(tmp_path: Path, place: str, told: str) -> None:
    (tmp_path / "note.txt").write_text("note")
    assert not holds_sweep(tmp_path / place)
    with pytest.raises(InputError, match=f"{told}; give --model.store another place"):
        check_place(tmp_path / place)


@pytest.mark.parametrize("what", ["file", "damaged", "array", "other group"])
def test_what_is_no_sweep_is_said_to_be_none(tmp_path: Path, what: str) -> None:
    path = tmp_path / "s.zarr"
    if what == "file":
        path.write_text("note")
    elif what == "array":
        zarr.create_array(path, data=np.ones(3))
    elif what == "other group":
        zarr.create_group(path)
    else:
        path.mkdir()
        (path / "zarr.json").write_text('{"zarr')
    with pytest.raises(InputError, match="holds no sweep; give the folder of one"):
        SweepStore(path)


@pytest.mark.parametrize(
    "name", ["stamp", "interference", "key", "block", "data", "attribution_picture", "rivals/mean"]
)
def test_a_sweep_of_another_version_that_lacks_something_is_refused(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "s.zarr"
    store = SweepWriter.begin(path, MADE, KEYS, np.ones(4, np.float32), 2)
    store.write_candidates(0, [(0, 1, np.ones((2, 4), np.float32))])
    store.finish([(0, 1)], ["channel"])
    looks = FeatureProfiles(*(torch.ones([1] * dims) for dims in (1, 2, 3, 1)))
    store.write_rivals([0], ["fc:0"], None, looks)
    if name in MADE:
        zarr.open_group(path).attrs["sweep"] = {k: v for k, v in MADE.items() if k != name}
    elif name == "block":
        del zarr.open_group(path).attrs[name]
    else:
        del zarr.open_group(path)[name.replace("rivals/", "rivals/0/")]
    with pytest.raises(
        InputError,
        match=rf"^the sweep at {path} lacks {name}: mti_lightning 0 made it without; move it away "
        "and sweep again, or give another$",
    ):
        SweepStore(path).rivals(0)
    check_place(path)  # it may be replaced


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    store = SweepWriter.begin(tmp_path / "s.zarr", MADE, KEYS, np.ones(4, np.float32), 2)
    moved = {**MADE["data"], "init_args": {"path": "/there", "limit": 3}}
    store.check({**MADE, "version": "1", "data": moved}, KEYS)
    with pytest.raises(InputError, match=r"lacks precision: mti_lightning 0 made it without; move"):
        store.check({**MADE, "precision": "32-true"}, KEYS)
    with pytest.raises(InputError, match=r"made with features \['fc:0', 'fc:1'\], not \['fc:0'\]"):
        store.check({**MADE, "features": ["fc:0"]}, KEYS)
    with pytest.raises(
        InputError, match=r"there were 3, there are 3; number 1 was b\.png, is c\.png"
    ):
        store.check(MADE, [KEYS[0], "c.png", KEYS[2]])
    with pytest.raises(InputError, match=r"name a feature of .*; it has fc:0, fc:1"):
        store.feature_index(None)
    with pytest.raises(InputError, match="there is no measure 'tensoin'; there are response, "):
        store.values("tensoin")


RAN = """
from pathlib import Path
Path("ran").touch()
"""


@pytest.mark.parametrize(
    ("class_path", "init_args"),
    [
        ("subprocess.getoutput", {"cmd": "touch ran"}),
        ("os.system", {"command": "touch ran"}),
        ("pathlib.Path.touch", {"self": "ran"}),
        ("hostile.Pictures", {}),
        ("hostile", {}),
        ("mti_lightning.Backbone", {"name": "test_resnet", "weights": "random"}),
        ("mti_lightning.PictureData", {}),
        ("mti_lightning.registry.import_module", {"name": "hostile"}),
        ("mti_lightning.data.modules.os.system", {"command": "touch ran"}),
        ("builtins.exec", {"source": RAN}),
        ("", {}),
        ("mti_lightning.SweepPictures", {"sweep": "store.zarr"}),  # itself
        ("mti_lightning.VetoedShapesPictures", {"size": "many"}),
        ("mti_lightning.VetoedShapesPictures", {"world": 3}),
        (3, {}),
        ("mti_lightning.PictureFolder", [1]),
    ],
)
def test_a_store_runs_nothing_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, class_path: object, init_args: object
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("hostile.py").write_text(RAN)
    path = tmp_path / "store.zarr"
    made = {**MADE, "data": {"class_path": class_path, "init_args": init_args}}
    group = SweepWriter.begin(path, MADE, KEYS, np.ones(4, np.float32), 2)._group
    group.attrs["sweep"] = made
    with pytest.raises(InputError):
        reopen(SweepStore(path))
    assert not Path("ran").exists()
    assert "hostile" not in sys.modules


def test_a_class_of_ones_own_opens_once_it_is_imported(tmp_path: Path) -> None:
    class OwnPictures(VetoedShapesPictures.__mro__[1]):  # type: ignore[misc]
        def _open(self, preprocessing: object) -> None: ...

    path = public_path(OwnPictures)
    made = {**MADE, "data": {"class_path": path, "init_args": {"num_workers": 10**6}}}
    store = SweepWriter.begin(tmp_path / "s.zarr", made, KEYS, np.ones(4, np.float32), 2)
    opened = reopen(store)
    assert type(opened) is OwnPictures
    assert opened.num_workers == 0
