"""The atlas's map: every picture in one cell, and on it the groups that are known to be there."""

from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from lightning import Trainer
from sklearn.neighbors import NearestNeighbors

from mti_lightning import (
    ActivationLayout,
    Backbone,
    InputError,
    Sweep,
    SweepStore,
    VetoedShapes,
    VetoedShapesPictures,
)
from mti_lightning.atlas.columns import COLUMNS, scale
from mti_lightning.atlas.embedding import embed, load, save
from mti_lightning.atlas.layout import Layout, find_cells, lay_out, place, thinned
from mti_lightning.atlas.selection import columns_of, pool, pool_store, read_store, select_pictures
from mti_lightning.sweep.measures import COLUMNS as SWEEP_COLUMNS
from mti_lightning.sweep.writing import SweepWriter
from mti_lightning.vetoed_shapes.world import veto_of
from tests.attribution.layouts import layout_of
from tests.sweep.test_store import MADE

TOKENS = ActivationLayout((3, 4), -1, None)

NUMBERS = st.floats(-1e30, 1e30) | st.sampled_from([0.0, 0.5, 1.0])
POINTS = st.integers(1, 60).flatmap(
    lambda count: st.one_of(
        arrays.arrays(np.float64, (count, 2), elements=NUMBERS),
        arrays.arrays(np.float32, (count, 2), elements=st.floats(-9, 9, width=32)),
        arrays.arrays(np.float64, (1, 2), elements=NUMBERS).map(lambda p: np.repeat(p, count, 0)),
        arrays.arrays(np.float64, (count, 1), elements=NUMBERS).map(
            lambda p: np.concatenate([p, np.full_like(p, 3)], 1)
        ),
    )
)
SIZES = st.tuples(st.integers(1, 31), st.integers(1, 31))


def of(count: int) -> dict[str, np.ndarray]:
    return {name: np.arange(count) + 10.0 * i for i, name in enumerate(COLUMNS)}


@given(POINTS, SIZES, st.floats(0, 49))
@settings(deadline=None)
def test_every_picture_is_in_exactly_one_cell(
    points: np.ndarray, size: tuple[int, int], trim: float
) -> None:
    layout = lay_out(np.arange(len(points)) * 3, points, size, trim)
    assert ((layout.points >= 0) & (layout.points <= 1)).all()
    rows, columns = size
    # The cell by its borders: closed at the left and the top, the last closed on both sides.
    for (x, y), cell in zip(layout.points, layout.cell, strict=True):
        row, column = divmod(int(cell), columns)
        assert 0 <= row < rows
        assert column <= x * columns <= column + 1
        assert row <= (1 - y) * rows <= row + 1
    vectors = np.ones((len(points), 2))
    found = find_cells(layout, vectors, of(len(points)), minimum=1)
    members = np.concatenate([cell.members for cell in found])
    assert sorted(members.tolist()) == list(range(len(points)))
    assert [cell.row * columns + cell.column for cell in found] == sorted({*layout.cell.tolist()})
    for cell in found:
        assert cell.count == len(cell.members)
        assert {*layout.cell[cell.members].tolist()} == {cell.row * columns + cell.column}
        assert {*cell.exemplars.tolist()} <= {*cell.members.tolist()}
    for minimum in (2, 6):
        enough = find_cells(layout, vectors, of(len(points)), minimum)
        assert [c.members.tolist() for c in enough] == [
            c.members.tolist() for c in found if c.count >= minimum
        ]


def test_points_on_borders_and_the_way_up() -> None:
    # 0.05 of margin on both sides: these are cells' borders, x = 0.05, 0.5, 0.95 of 1.1.
    points = np.array([[0, 0], [0.5, 1], [1, 0.5]])
    layout = lay_out(np.arange(3), points, (2, 2), trim=0)
    np.testing.assert_allclose(layout.points, (points + 0.05) / 1.1)
    assert layout.cell.tolist() == [2, 1, 3]  # the highest y is in row 0; borders go right and down


def test_outliers_lie_on_the_border_and_margins_are_equal() -> None:
    points = np.random.default_rng(0).normal(size=(1000, 2))
    points[0], points[1] = (1e6, 0), (0, -1e6)
    layout = lay_out(np.arange(1000), points, (10, 20), trim=1)
    assert layout.points[0, 0] == 1
    assert layout.points[1, 1] == 0
    assert layout.cell[0] % 20 == 19
    assert layout.cell[1] // 20 == 9
    low, high = np.percentile(layout.points, [1, 99], axis=0)
    np.testing.assert_allclose(low, 1 - high, atol=1e-9)
    np.testing.assert_allclose(low, 0.05 / 1.1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": (0, 3)}, "0 rows and 3 columns"),
        ({"trim": 50}, "trim 50"),
        ({"points": np.array([[np.nan, 0]])}, "not finite"),
    ],
)
def test_layouts_that_cannot_be(options: dict[str, object], words: str) -> None:
    arguments = {"pictures": np.arange(1), "points": np.zeros((1, 2)), **options}
    with pytest.raises(InputError, match=words):
        lay_out(**arguments)


@pytest.mark.parametrize("count", [50, 300, 3_000, 100_000])
def test_a_grid_that_suits_the_pictures(count: int) -> None:
    random = np.random.default_rng(0)
    # In clumps, as UMAP lays pictures out.
    points = random.uniform(0, 9, (30, 2))[random.integers(0, 30, count)]
    points += random.normal(scale=0.4, size=points.shape)
    layout = lay_out(np.arange(count), points, None, minimum=None)
    counts = np.unique(layout.cell, return_counts=True)[1]
    assert 30 <= len(counts) <= 400
    assert counts.min() >= layout.minimum
    # Near pictures are in one cell, and the grid is as good as full.
    assert len(counts) > 0.8 * np.prod(layout.size)
    middles = np.array([points[layout.cell == place].mean(0) for place in np.unique(layout.cell)])
    own = middles[np.unique(layout.cell, return_inverse=True)[1]]
    assert np.linalg.norm(points - own, axis=1).mean() < 0.5
    column, row = (layout.points * (1, -1) + (0, 1)).T * np.array(layout.size[::-1])[:, None]
    np.testing.assert_array_equal(
        row.astype(int) * layout.size[1] + column.astype(int), layout.cell
    )
    assert layout.minimum == 6 or count <= 300
    given = lay_out(np.arange(count), points, (20, 20), minimum=None)
    assert given.size == (20, 20)
    assert given.minimum == 6 or count <= 300
    assert (np.unique(given.cell, return_counts=True)[1] >= given.minimum).sum() >= 30
    assert lay_out(np.arange(count), points, None, minimum=2).minimum == 2


def test_few_pictures_have_few_cells() -> None:
    layout = lay_out(np.arange(1), np.zeros((1, 2)), None, minimum=None)
    assert (layout.size, layout.minimum) == ((1, 1), 1)


def test_what_a_cell_tells() -> None:
    # Eight pictures in one cell: six along the first axis, one of them very strong, two askew.
    vectors = np.array([[1, 0.0]] * 3 + [[1e6, 1e5]] + [[1, 0.3]] * 2 + [[0, 1.0], [0, 0]])
    layout = Layout(np.arange(8), np.full((8, 2), 0.5), np.zeros(8, int), (1, 1))
    (cell,) = find_cells(layout, vectors, of(8), exemplars=6)
    assert cell.means == dict(zip(COLUMNS, (3.5, 13.5, 23.5, 33.5, 43.5), strict=True))
    unit = vectors[:7] / np.linalg.norm(vectors[:7], axis=1, keepdims=True)
    likeness = unit @ unit.sum(0)
    assert cell.exemplars.tolist() == np.argsort(-likeness, kind="stable")[:6].tolist()
    (louder,) = find_cells(layout, vectors * np.arange(1, 9)[:, None], of(8), exemplars=6)
    assert louder.exemplars.tolist() == cell.exemplars.tolist()
    assert find_cells(layout, vectors, of(8), minimum=9) == []


@pytest.mark.parametrize("channel_dim", [1, -1])
def test_pooling_keeps_what_excites_apart_from_what_inhibits(channel_dim: int) -> None:
    shape = (5, 4, 3, 2) if channel_dim == 1 else (5, 6, 4)
    maps = np.random.default_rng(0).normal(size=shape)
    found = pool(maps, layout_of(shape, channel_dim), 0)
    for picture, vector in zip(maps, found, strict=True):
        columns = picture.reshape(4, -1).T if channel_dim == 1 else picture
        excites = sum((c.clip(min=0) for c in columns if c.sum() > 0), np.zeros(4))
        inhibits = sum(((-c).clip(min=0) for c in columns if c.sum() < 0), np.zeros(4))
        np.testing.assert_allclose(vector, np.concatenate([excites, inhibits]), atol=1e-12)


def test_pooling_without_positions() -> None:
    assert pool(np.array([[2.0, -3.0]]), layout_of((1, 2), 1), 0.1).tolist() == [[2, 0, 0, 3]]


VECTORS = {
    "one": np.ones((1, 3)),
    "two": np.eye(2),
    "three": np.eye(3),
    "all zero": np.zeros((7, 3)),
    "all the same": np.ones((30, 3)),
    "opposite": np.concatenate([np.ones((9, 2)) * np.arange(1, 10)[:, None], -np.ones((9, 2))]),
    "one column": np.random.default_rng(0).normal(size=(30, 1)),
    **{
        f"{n}, one zero, a constant column": np.concatenate(
            [
                np.zeros((1, 5)),
                np.insert(np.random.default_rng(n).normal(size=(n - 1, 4)), 2, 7, axis=1),
            ]
        )
        for n in (4, 5, 11, 12, 40)
    },
}


@pytest.mark.parametrize("name", VECTORS)
def test_any_vectors_can_be_laid_out(name: str) -> None:
    vectors = VECTORS[name]
    points = embed(vectors)
    assert points.shape == (len(vectors), 2)
    assert np.isfinite(points).all()
    assert points.tobytes() == embed(vectors).tobytes()
    unique, back = np.unique(vectors, axis=0, return_inverse=True)
    assert len(np.unique(points, axis=0)) == len(unique)
    for group in range(len(unique)):
        assert len(np.unique(points[back == group], axis=0)) == 1
    turned = np.random.default_rng(0).permutation(len(vectors))
    assert embed(vectors[turned]).tobytes() == points[turned].tobytes()


def test_the_number_of_threads_is_left_alone() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        embed(VECTORS["40, one zero, a constant column"])
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_vectors_that_cannot_be_laid_out() -> None:
    with pytest.raises(InputError, match="not finite"):
        embed(np.array([[np.nan, 1]]))
    with pytest.raises(InputError, match="neighbours 1"):
        embed(np.ones((3, 2)), neighbours=1)


def test_other_pictures_fall_where_their_likes_are() -> None:
    vectors = np.repeat(np.eye(3), 6, 0) * np.arange(1, 19)[:, None]
    points = np.repeat([[0.1, 0.1], [0.9, 0.1], [0.5, 0.9]], 6, 0)
    new = np.array([[0, 50.0, 0], [1e-3, 0, 0], [0, 0, 0]])
    found = place(new, vectors, points)
    np.testing.assert_allclose(found[:2], [[0.9, 0.1], [0.1, 0.1]])
    assert np.isfinite(found).all()  # one that is all zero is somewhere
    assert place(new[:1], vectors, points).tobytes() == found[:1].tobytes()
    assert place(new, vectors[:2], points[:2]).tolist() == [[0.1, 0.1]] * 3


def test_points_on_disk(tmp_path: Path) -> None:
    points = np.array([[0, 1], [2, 3], [4, -9.0]], np.float32)
    for name in ("a.npy", "b.npy"):
        save(points, tmp_path / name)
    again = load(tmp_path / "a.npy", 3)
    assert again.dtype == points.dtype
    assert again.tobytes() == points.tobytes()
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "b.npy"]
    with pytest.raises(InputError, match="holds no map of 4 pictures; delete it"):
        load(tmp_path / "a.npy", 4)
    for content in (b"", b"PK\x03\x04", (tmp_path / "a.npy").read_bytes()[:130]):
        (tmp_path / "a.npy").write_bytes(content)
        with pytest.raises(InputError, match="holds no map of 3 pictures; delete it"):
            load(tmp_path / "a.npy", 3)
    with pytest.raises(InputError, match="holds no map of 3 pictures"):
        load(tmp_path / "none.npy", 3)


def test_colours_leave_out_a_hundredth_and_put_zero_in_the_middle() -> None:
    values = np.append(np.linspace(-1, 3, 999), np.nan)
    assert scale("response", values) == (
        "coolwarm",
        *np.quantile(abs(values[:-1]), [0.99] * 2) * np.array([-1, 1]),
    )
    assert scale("tension", values) == ("viridis_r", *np.quantile(values[:-1], [0.01, 0.99]))
    for nothing in (np.zeros(0), np.zeros(3), np.full(3, np.nan)):
        assert scale("response", nothing) == ("coolwarm", -1, 1)
        assert scale("tension", nothing) == ("viridis_r", 0, 1)


@pytest.mark.parametrize(("count", "most"), [(0, 5), (1, 5), (5, 5), (6, 5), (99, 10)])
def test_thinning_is_even(count: int, most: int) -> None:
    places = thinned(count, most)
    assert len(places) == min(count, len(places)) <= most
    assert list(places) == list(range(count))[:: places.step]
    assert len(places) * 2 >= min(count, most)


@pytest.fixture
def store(tmp_path: Path) -> SweepStore:
    """Ten pictures, two features; the second picture cannot be read, the maps of six are kept."""
    store = SweepWriter.begin(tmp_path / "s.zarr", MADE, list("abcdefghij"), np.ones(2), 10)
    values = np.arange(20, dtype=np.float32).reshape(10, 2)
    values[1] = np.nan
    names = ("response", "excitation", "inhibition", "tension")
    # A sweep writes every column, NaN where it measures nothing.
    columns = dict.fromkeys(SWEEP_COLUMNS, np.full_like(values, np.nan))
    columns |= dict.fromkeys(names, values) | {"response": -values}
    columns |= {"reason": np.full(10, "", np.dtypes.StringDType()), "stamp": np.zeros((10, 3), int)}
    status = np.ones(10, np.uint8)
    status[1] = 2
    store.write(0, columns, status)
    pairs = [(1, 8), (1, 1), (1, 4), (0, 3), (1, 2), (1, 6), (1, 9)]
    maps = np.random.default_rng(0).normal(size=(len(pairs), 3, 4)).astype(np.float32)
    store.write_candidates(
        0, [(*pair, np.stack([m, m])) for pair, m in zip(pairs, maps, strict=True)]
    )
    store.finish(pairs, TOKENS)
    return SweepStore(store.path)


def test_selection(store: SweepStore, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, pictures = select_pictures(store, 1)
    assert pictures.tolist() == [2, 4, 6, 8, 9]
    assert rows.tolist() == [4, 2, 5, 0, 6]
    columns = columns_of(store, 1, pictures)
    assert list(columns) == ["response", "excitation", "inhibition", "tension"]
    assert columns["tension"].tolist() == [5, 9, 13, 17, 19]
    # The two tensest, and the highest response.
    assert select_pictures(store, 1, 2)[1].tolist() == [2, 4, 8, 9]
    assert select_pictures(store, 1, 1, ["tension"])[1].tolist() == [9]
    assert select_pictures(store, 0)[1].tolist() == [3]
    assert pool_store(store, rows).tobytes() == pool(store.maps(rows), TOKENS, 0).tobytes()
    # E⁺ and E⁻ are at most 19, of which 5 is a quarter; the number of picture 8 is 17.
    assert select_pictures(store, 1, quiet=0.3)[1].tolist() == [2, 4, 6, 8, 9]  # so few stay
    monkeypatch.setattr("mti_lightning.atlas.selection._LOUDEST", 1)
    assert select_pictures(store, 1, quiet=0.3)[1].tolist() == [4, 6, 8, 9]
    assert select_pictures(store, 1, quiet=0.95)[1].tolist() == [9]


def test_of_one_sign_what_all_pictures_share_counts_less(store: SweepStore) -> None:
    rows, _ = select_pictures(store, 1)
    maps = np.ones((7, 3, 4), np.float32)
    maps[..., 0] = 5  # in all alike
    maps[rows[0], :, 1] = 9
    maps[rows[1], :, 2] = 3
    zarr.open_group(store.path)["attribution"][:] = maps
    of = pool(store.maps(rows), TOKENS, 0, "+")
    vectors = read_store(store, rows, "+").vectors
    spread = of.std(0)
    np.testing.assert_allclose(vectors, of / (spread + 0.1 * spread.mean()), rtol=1e-5)
    zarr.open_group(store.path)["attribution"][:] = 1.0  # in which nothing differs
    assert np.isfinite(read_store(store, rows, "+").vectors).all()


def test_a_further_column_of_a_sweep_is_one_of_the_map(
    store: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(COLUMNS, "tension_l2", "Another one.")
    zarr.open_group(store.path)["tension_l2"][:] = 1.0
    rows, pictures = select_pictures(store, 1)
    assert pictures.tolist() == [2, 4, 6, 8, 9]
    columns = columns_of(store, 1, pictures)
    layout = Layout(pictures, np.full((5, 2), 0.5), np.zeros(5, int), (1, 1))
    (cell,) = find_cells(layout, pool_store(store, rows), columns, minimum=1)
    assert list(cell.means)[-1] == "tension_l2"
    assert "interference" not in cell.means  # it was not measured
    assert cell.means["tension"] == np.mean(columns["tension"])


def test_selections_that_cannot_be(store: SweepStore) -> None:
    for words, options in (("top 0", {"top": 0}), ("no measure", {"top": 1, "measures": ["mood"]})):
        with pytest.raises(InputError, match=words):
            select_pictures(store, 1, **options)
    del zarr.open_group(store.path)["attribution"]
    with pytest.raises(InputError, match="keep N"):
        select_pictures(store, 1)


@pytest.mark.slow
def test_a_hundred_thousand_pictures() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(6, 16))
    group = rng.integers(0, 6, 100_000)
    vectors = centres[group] + 0.3 * rng.normal(size=(100_000, 16))
    vectors[:100] = 0
    layout = lay_out(np.arange(100_000), embed(vectors), (30, 30))
    found = find_cells(layout, vectors, of(100_000), minimum=1)
    assert sum(cell.count for cell in found) == 100_000
    own = [np.bincount(group[cell.members]).max() for cell in found]
    assert sum(own) > 95_000


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        ("layer4", 3),
        *(pytest.param("layer4", kind, marks=SLOW) for kind in range(8) if kind != 3),
        *(pytest.param("layer3", kind, marks=SLOW) for kind in range(8)),
    ],
)
def test_the_groups_of_the_embedded_world_lie_apart(layer: str, kind: int, tmp_path: Path) -> None:
    path = tmp_path / "sweep.zarr"
    sweep = Sweep(
        Backbone("vetoed_shapes_resnet"), [f"fc:{kind}"], layer, store=str(path), keep=2000
    )
    Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    ).predict(
        sweep, datamodule=VetoedShapesPictures(2000, contents="random"), return_predictions=False
    )
    store = SweepStore(path)
    rows, pictures = select_pictures(store, 0)
    assert pictures.tolist() == list(range(2000))
    vectors = pool_store(store, rows)
    points = embed(vectors)
    world = VetoedShapes(2000)
    present = [world.kinds(index) for index in range(2000)]
    # Neither, only the shape, only its veto, both.
    group = np.array([(kind in kinds) + 2 * (veto_of(kind) in kinds) for kinds in present])
    nearest = NearestNeighbors(n_neighbors=10).fit(points).kneighbors(return_distance=False)
    own = (group[nearest] == group[:, None]).mean(1)
    assert min(own[group == which].mean() for which in range(4)) >= 0.96
    # Held-out pictures fall among their own; of a quarter, each group has twenty at least.
    held = np.arange(2000) % 4 == 0
    placed = place(vectors[held], vectors[~held], points[~held])
    among = NearestNeighbors(n_neighbors=10).fit(points[~held])
    likes = (group[~held][among.kneighbors(placed)[1]] == group[held][:, None]).mean(1)
    assert min(likes[group[held] == which].mean() for which in range(4)) >= 0.9
