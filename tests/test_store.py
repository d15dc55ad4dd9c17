"""The store of a sweep: its selection rule and what opens it."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mti_lightning import InputError, SweepStore
from mti_lightning.store import COLUMNS, select

MADE = {"features": ["fc:0", "fc:1"], "version": "0"}
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
    store = SweepStore.begin(tmp_path / "s.zarr", MADE, KEYS, np.ones(4, np.float32), 2)
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
    SweepStore.begin(tmp_path / "s.zarr", MADE, KEYS, np.ones(4, np.float32), 2)
    assert not (tmp_path / "s.zarr.new").exists()


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    store = SweepStore.begin(tmp_path / "s.zarr", MADE, KEYS, np.ones(4, np.float32), 2)
    store.check({**MADE, "version": "1"}, KEYS)
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
