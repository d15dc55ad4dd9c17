"""Inhibitors of a class of the vetoed shapes, whose last stage is a linear head."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mti_lightning import (
    Backbone,
    BoundFeature,
    Feature,
    InputError,
    IntGrad,
    Layer,
    Sweep,
    SweepStore,
    VetoedShapes,
    VetoedShapesPictures,
    attribute,
)
from mti_lightning.cli import main
from mti_lightning.inhibitors.causal import CHANCE
from mti_lightning.inhibitors.study import find_inhibitors
from mti_lightning.tables import read_table
from tests.sweep.test_module import WORLD, predict

SIZE, STAR = 160, 3  # pictures of a shape and its veto, and a class that is vetoed in an eighth


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SweepStore:
    path = tmp_path_factory.mktemp("sweep") / "s.zarr"
    options = {"store": str(path), "calibrate": 8, "rivals": 0, "units": True}
    sweep = Sweep(Backbone(WORLD), ["fc:3"], "layer4", **options)
    predict(sweep, VetoedShapesPictures(SIZE, seed=7))
    return SweepStore(path)


@pytest.fixture(scope="module")
def tense(store: SweepStore, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The names of the pictures that hold a star and its veto."""
    path = tmp_path_factory.mktemp("names") / "tense.txt"
    path.write_text("\n".join(store.keys[STAR::8]))
    return str(path)


def test_in_a_linear_head_units_are_named_as_the_weights_say(store: SweepStore) -> None:
    backbone, found = Backbone(WORLD), find_inhibitors(store, "fc:star", most=24)
    weights = backbone.network.get_submodule("fc").weight[STAR].numpy()
    by_hand = store.contributions(0, np.arange(SIZE)).mean(0)
    world, layer = VetoedShapes(SIZE, 7, contents="tense"), Layer("layer4")
    some = torch.stack([world[index]["picture"] for index in range(16)])
    pooled = backbone.run(some, [layer])[layer].mean((2, 3)).numpy()
    contributions = store.contributions(0, np.arange(16))
    np.testing.assert_allclose(contributions, pooled * weights, atol=1e-5)
    lowest = np.argsort(by_hand)[:12].tolist()
    assert all(weights[unit.unit] < 0 and unit.unit in lowest for unit in found.units)
    for unit in found.units:  # exact, as the head is linear
        assert unit.real.mean == pytest.approx(unit.predicted, abs=1e-5)
    assert found.agreement == pytest.approx(1, abs=1e-5)
    assert found.ranking.stability > 0.95
    np.testing.assert_allclose(found.doses[2], found.response, atol=1e-5)
    steps = np.diff(found.doses, axis=0)
    np.testing.assert_allclose(steps, steps[:1].repeat(4, 0), atol=1e-4)


def test_silencing_them_switches_a_vetoed_class_on(store: SweepStore, tense: str) -> None:
    found = find_inhibitors(store, "fc:star", 16, tense)
    assert len(found.response) == SIZE // 16
    assert (found.response <= 0).all()
    assert found.units[-1].with_above.flipped >= 0.9
    assert found.random.flipped <= 0.1
    assert found.ranking.stability >= 0.85
    assert sum(unit.is_confirmed for unit in found.units) >= 14
    assert "switch on, at a scale of" in found.text
    excitors = find_inhibitors(store, "fc:star", 8, tense, "excitors")
    assert all(unit.contribution > 0 > unit.real.high for unit in excitors.units)
    assert not {unit.unit for unit in found.units} & {unit.unit for unit in excitors.units}


def test_eight_of_an_earlier_layer_are_enough() -> None:
    kind, layer, backbone = 1, Layer("layer3"), Backbone(WORLD)
    world = VetoedShapes(8 * 20, 7, contents="tense")
    pictures = torch.stack([world[index]["picture"] for index in range(kind, 8 * 20, 8)])
    feature = BoundFeature(Feature.parse(f"fc:{kind}"), backbone)
    half = pictures[:10]
    attribution = attribute(backbone, half, [feature] * 10, layer, IntGrad(4))[1]
    contribution = attribution.sum((2, 3)).mean(0)
    named = contribution.argsort()[:8].tolist()
    others = [unit for unit in contribution.abs().argsort().tolist()[-100:] if unit not in named]
    switched = []
    for units in (named, others[:8], others[40:48], others[-8:]):
        with backbone.scaled(layer, units):
            response = feature(backbone.run(pictures[10:], [feature.layer])[feature.layer])
        switched.append(float((response > 0).float().mean()))
    assert switched[0] >= 0.9
    assert max(switched[1:]) <= 0.1


def test_units_of_contributions_that_were_permuted_are_not_confirmed(
    store: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, order = SweepStore.contributions, np.random.default_rng(0)
    called = []
    for _ in range(2):
        shuffled = order.permutation(store.units)
        with monkeypatch.context() as patch:
            patch.setattr(
                SweepStore, "contributions", lambda *given, of=shuffled: own(*given)[:, of]
            )
            found = find_inhibitors(store, "fc:star", most=8)
        called += [unit.is_confirmed for unit in found.units]
        assert min(unit.chance for unit in found.units) > CHANCE / 2
    assert np.mean(called) <= 0.05


def test_the_command_writes_what_it_prints(
    store: SweepStore, tense: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, figure = tmp_path / "i.csv", tmp_path / "i.png"
    given = ["inhibitors", str(store.path), "--feature", "fc:star", "--pictures", tense]
    given += ["--count", "3", "--icons", "0", "--examples", "1"]
    given += ["--out", str(out), "--figure", str(figure)]
    main(given)
    said, rows = capsys.readouterr().out, read_table(out)
    assert [row["unit"] for row in rows[3:]] == [
        *(f"all 3 x {scale}" for scale in ("0", "0.5", "1.5", "2")),
        "3 random x 0",
    ]
    for row in rows:
        assert all(value in said for value in row.values())
    assert "fc:3 (star), inhibitors among 192 units of layer4" in said
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert rows[0]["unit"] in out.with_suffix(".html").read_text()
    with pytest.raises(SystemExit):
        main(given)  # they are there


def test_each_unit_is_scaled_alone_too(store: SweepStore, tense: str) -> None:
    found = find_inhibitors(store, "fc:star", 2, tense, most=8)
    for unit in found.units:  # in a linear head
        steps = np.diff(unit.doses, axis=0)
        np.testing.assert_allclose(steps, steps[:1].repeat(4, 0), atol=1e-4)
        assert unit.doses[0].mean() - found.response.mean() == pytest.approx(unit.real.mean)
    together = sum(unit.doses[0] - found.response for unit in found.units)
    np.testing.assert_allclose(found.doses[0] - found.response, together, atol=1e-4)


def test_units_are_shown_where_they_inhibit_and_traced_back(store: SweepStore, tense: str) -> None:
    found = find_inhibitors(store, "fc:star", 1, tense, most=10, examples=2, icons=1, depth=2)
    backbone, layer = Backbone(WORLD), Layer("layer4")
    world = VetoedShapes(SIZE, 7, contents="tense")
    for unit in found.units:
        assert unit.icon is not None
        added = [example.contribution for example in unit.examples]
        assert added == sorted(added)
        index = store.keys.index(unit.examples[0].key)
        names = Path(tense).read_text().splitlines()
        every = store.contributions(0, np.array([store.keys.index(key) for key in names]))
        assert added[0] == pytest.approx(every[:, unit.unit].min(), abs=1e-5)
        active = backbone.run(world[index]["picture"][None], [layer])[layer][0, unit.unit]
        assert unit.examples[0].activation == pytest.approx(float(active.max()), abs=1e-5)
    assert [branch.unit for branch in found.tree] == [unit.unit for unit in found.units]
    (_, *below) = [line for branch in found.tree for line in branch.lines()]
    assert any(line.startswith("    ") and "layer3:" in line for line in below)
    for branch in (one for top in found.tree for one in top.below):
        assert branch.layer == "layer3"
        assert (branch.real.mean > 0) == (branch.kind == "inhibitors")
    with pytest.raises(InputError, match="depth 9"):
        find_inhibitors(store, "fc:star", 2, tense, most=8, depth=9)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"feature": "fc:12"}, "there is no feature 'fc:12'"),
        ({"pictures": "tensset"}, "did you mean 'tensest'"),
        ({"kind": "inhibitor"}, "neither of inhibitors, excitors"),
        ({"count": 0}, "count 0: give 1 or more"),
    ],
)
def test_what_cannot_be_asked_for_is_told(
    store: SweepStore, given: dict[str, object], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        find_inhibitors(store, **{"feature": "fc:star", **given})


def test_too_few_pictures_and_unknown_ones_are_told(store: SweepStore, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(store.keys[:7]))
    with pytest.raises(InputError, match="7 pictures are too few"):
        find_inhibitors(store, "fc:star", pictures=str(names))
    names.write_text("nowhere.png\n")
    with pytest.raises(InputError, match=r"has no picture 'nowhere\.png'"):
        find_inhibitors(store, "fc:star", pictures=str(names))


def test_the_same_again_is_the_same(store: SweepStore, tense: str) -> None:
    first, second = (find_inhibitors(store, "fc:star", 2, tense, most=8).text for _ in "ab")
    assert first == second
