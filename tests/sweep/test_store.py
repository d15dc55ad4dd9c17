"""The store of a sweep: its selection rule and what opens it."""

import json
import sys
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st

from mti_lightning import ActivationLayout, InputError, SweepStore, VetoedShapesPictures
from mti_lightning.registry import public_path
from mti_lightning.superposition.interference import FeatureProfiles
from mti_lightning.sweep.blocks import pending_blocks
from mti_lightning.sweep.intact import sealed
from mti_lightning.sweep.measures import COLUMNS, arrays_of, select
from mti_lightning.sweep.opening import holds_sweep
from mti_lightning.sweep.pictures import reopen
from mti_lightning.sweep.store import shard_of
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


def test_blocks_become_shards_and_are_read_before_and_after(tmp_path: Path) -> None:
    rows, rng = 131, np.random.default_rng(0)
    path, made = tmp_path / "s.zarr", {**MADE, "features": ["fc:0", "fc:1", "fc:2"]}
    store = SweepWriter.begin(path, made, [f"{i}.png" for i in range(rows)], np.ones(4), 2)
    assert store.shard == 2 * 64
    written = {name: rng.random((rows, 3), np.float32) for name in COLUMNS}
    written["stamp"] = rng.integers(1, 9, (rows, 3))
    written["reason"] = np.array([f"lost {i}" for i in range(rows)], np.dtypes.StringDType())
    status = rng.integers(1, 3, rows).astype(np.uint8)
    order = rng.permutation(range(0, rows, 2))
    store.makes_shards = False  # as a second process
    for number, start in enumerate(order):
        stop = start + 2
        columns = {name: values[start:stop] for name, values in written.items()}
        store.makes_shards |= number == len(order) - 2
        store.write(start, columns, status[start:stop])
        if number % 30 and not store.makes_shards:
            continue
        again, there = SweepStore(path), np.concatenate([np.arange(s, s + 2) for s in order])
        there = np.sort(there[: 2 * number + 2])
        there = there[there < rows]
        done = np.isin(np.arange(rows), there)
        assert again.status.tolist() == np.where(done, status, 0).tolist()
        np.testing.assert_array_equal(again.values("tension")[done], written["tension"][done])
        assert np.isnan(again.values("tension")[~done]).all()
        chosen = rng.permutation(there)[:7]
        for features in (1, [2, 0]):
            np.testing.assert_array_equal(
                again.values("response", features, chosen), written["response"][chosen][:, features]
            )
        span = again.values("inhibition", 2, slice(9, 77))
        np.testing.assert_array_equal(span[done[9:77]], written["inhibition"][9:77, 2][done[9:77]])
        bad = [f"lost {i}" for i in range(rows) if done[i] and status[i] == 2]
        assert list(again.unreadable.values()) == bad
    assert not list((path / "blocks").glob("*.npz"))
    store.finish([], ActivationLayout((3,), -1, None))
    np.testing.assert_array_equal(zarr.open_group(path)["stamp"][:], written["stamp"])
    assert sum(file.name[0] not in ".z" for file in path.rglob("*") if file.is_file()) == 23


def test_a_million_pictures_are_not_as_many_files() -> None:
    for features, parts in ((500, 0), (500, 3), (8, 0), (1000, 0)):
        shards = -(-1_000_000 // shard_of(1_000_000, 256, features))
        of_shards = (*arrays_of(features, parts, 0), "status", "reason", "stamp")
        assert len(of_shards) * shards + 100 <= 2000


def test_a_block_that_was_half_written_is_done_again(tmp_path: Path) -> None:
    path, columns = tmp_path / "s.zarr", {name: np.ones((1, 2), np.float32) for name in COLUMNS}
    store = SweepWriter.begin(path, MADE, KEYS, np.ones(4, np.float32), 1)
    store.write(0, columns, np.ones(1, np.uint8))
    (block,) = (path / "blocks").glob("*.npz")
    half = block.with_name(".0000000001.part.npz")
    half.write_bytes(block.read_bytes()[:99])
    assert pending_blocks(SweepStore(path)) == [1, 2]
    block.write_bytes(block.read_bytes()[:-9])  # other than what is whole, and is no more
    with pytest.raises(InputError, match="is damaged"):
        pending_blocks(SweepStore(path))


def test_an_unfinished_beginning_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / ".s.part.zarr").mkdir()
    with pytest.raises(InputError, match="holds no sweep; give the folder of one"):
        SweepStore(tmp_path / "s.zarr")
    SweepWriter.begin(tmp_path / "s.zarr", MADE, KEYS, np.ones(4, np.float32), 2)
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.zarr"]


def test_a_sweep_of_a_name_like_that_of_a_beginning_stays(tmp_path: Path) -> None:
    other = tmp_path / "s.zarr.new"
    for path in (other, tmp_path / "s.zarr"):
        check_place(path)
        SweepWriter.begin(path, MADE, KEYS, np.ones(4, np.float32), 2)
    assert SweepStore(other).keys == KEYS


def test_what_others_leave_unfinished_stays(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    path.mkdir()
    (path / "film.partial").write_text("half a film")
    with pytest.raises(InputError, match="exists and is no sweep"):
        check_place(path)
    (path / "film.partial").rename(tmp_path / "film.partial")
    writer = SweepWriter.begin(path, MADE, KEYS, np.ones(4, np.float32), 2)
    (tmp_path / "film.partial").rename(path / "film.partial")
    writer.finish([], [])
    assert (path / "film.partial").read_text() == "half a film"


def test_nothing_but_a_sweep_is_replaced(tmp_path: Path) -> None:
    path, half = tmp_path / "s.zarr", tmp_path / ".s.part.zarr"
    for folder in (path, half):
        folder.mkdir()
        check_place(path)  # there is nothing in it
        (folder / "thesis.tex").write_text("years of work")
        with pytest.raises(InputError, match=f"{folder} exists and is no sweep; give --model"):
            check_place(path)
        (folder / "thesis.tex").rename(folder / f"zarr.{uuid4().hex}.partial")
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
    store.finish([(0, 1)], ActivationLayout((3,), -1, None))
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


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """A complete store of two features, of which one column has no numbers."""
    path = tmp_path / "s.zarr"
    keys, rng = [f"{number}.png" for number in range(8)], np.random.default_rng(0)
    store = SweepWriter.begin(path, MADE, keys, np.ones(4, np.float32), 4)
    for start in (0, 4):
        columns = {name: rng.random((4, 2), np.float32) for name in COLUMNS}
        columns["interference"][:] = np.nan
        columns["reason"] = np.zeros(4, np.dtypes.StringDType())
        columns["stamp"] = np.zeros((4, 3), np.int64)
        store.write_candidates(start, [(0, start, np.zeros((2, 3, 3), np.float32))])
        store.write(start, columns, np.ones(4, np.uint8))
    store.finish([(0, 0), (0, 4)], ActivationLayout((3, 3), -1, None))
    return path


def read(path: Path) -> list[object]:
    store = SweepStore(path)
    everything = [store.values(name) for name in COLUMNS]
    everything += [store.status, store.mean_activation, store.keys, store.features]
    rows, pictures = store.kept(0)
    return [*everything, rows, pictures, store.maps(rows), store.maps(rows, "activation_sign")]


def same(one: list[object], other: list[object]) -> bool:
    return all(
        np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f")
        for a, b in zip(one, other, strict=True)
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["removed", "cut off", "changed"])
def test_what_is_lost_or_changed_in_a_store_is_noticed(measured: Path, how: str) -> None:
    whole = read(measured)
    noticed = 0
    for file in sorted(path for path in measured.rglob("*") if path.is_file()):
        held = file.read_bytes()
        if how == "removed":
            file.unlink()
        elif how == "cut off":
            file.write_bytes(held[: len(held) // 2])
        else:
            place = len(held) // 2
            file.write_bytes(held[:place] + bytes([held[place] ^ 16]) + held[place + 1 :])
        try:
            assert same(read(measured), whole), file
        except InputError:
            noticed += 1
        else:
            assert file.name == "zarr.json" or "stamp" in file.parts or "reason" in file.parts, file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(held)
    assert noticed > 20
    assert same(read(measured), whole)


@pytest.mark.parametrize("name", ["tension", "key", "status"])
def test_an_array_that_has_lost_its_description_is_damage(measured: Path, name: str) -> None:
    (measured / name / "zarr.json").unlink()
    with pytest.raises(InputError, match=rf"is damaged \({name} is lost in part\)"):
        SweepStore(measured)


def test_a_byte_that_changed_in_what_a_store_says_of_itself_is_noticed(measured: Path) -> None:
    looks = FeatureProfiles(*(torch.ones([1] * dims) for dims in (1, 2, 3, 1)))
    SweepWriter(measured).write_rivals([0], ["fc:0"], None, looks)

    def told() -> object:
        store = SweepStore(measured)
        attributes = dict(store._group.attrs.items())
        attributes.pop("checksum", None)
        return attributes, store.rivals(0)[:2]

    whole, noticed = told(), 0
    for file in (measured / "zarr.json", measured / "rivals" / "0" / "zarr.json"):
        held = file.read_bytes()
        for place in range(0, len(held), 41):
            file.write_bytes(held[:place] + bytes([held[place] ^ 1]) + held[place + 1 :])
            try:
                assert told() == whole
            except (InputError, TypeError):  # of rivals that are not found
                noticed += 1
        file.write_bytes(held)
    assert noticed > 20
    assert told() == whole


def test_what_is_left_of_a_stopped_write_is_no_damage(measured: Path) -> None:
    whole = read(measured)
    looks = FeatureProfiles(*(torch.ones([1] * dims) for dims in (1, 2, 3, 1)))
    SweepWriter(measured).write_rivals([0], ["fc:0"], None, looks)
    for folder in [measured, *(path for path in measured.rglob("*") if path.is_dir())]:
        (folder / f"zarr.{uuid4().hex}.partial").write_text("{")
    assert same(read(measured), whole)
    assert SweepStore(measured).rivals(0)[0] == ["fc:0"]


def test_what_a_store_says_of_itself_changes_in_one_step(
    measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    move = Path.replace

    def moved(self: Path, target: Path) -> Path:
        found = move(self, target)
        told = json.loads(found.read_text())["attributes"]
        assert told in ({}, sealed(told))  # a kill comes at any moment
        written.append(found.name)
        return found

    store = SweepWriter(measured)
    looks = FeatureProfiles(*(torch.ones([1] * dims) for dims in (1, 2, 3, 1)))
    store.write_rivals([0], ["fc:0"], None, looks)
    monkeypatch.setattr(Path, "replace", moved)
    monkeypatch.setattr("mti_lightning.sweep.rivals.PROFILES", {})
    store.tell(complete=False, config="name: x")
    store.write_rivals([0], ["fc:0"], None, looks)
    assert {*written} == {"zarr.json"}


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
    SweepWriter.begin(path, MADE, KEYS, np.ones(4, np.float32), 2).tell(sweep=made)
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


def test_a_continued_store_keeps_the_version_it_was_begun_with(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    SweepWriter.begin(path, MADE, KEYS, np.ones(4, np.float32), 2)
    for version in ("0", "1", "1", "2"):
        SweepWriter(path).note_version(version)
    store = SweepStore(path)
    assert store.provenance["version"] == "0"
    assert store.provenance["continued_by"] == ["1", "2"]
    store.check({**MADE, "version": "3"}, KEYS)
