"""The patch test: it finds true signs and opposite ones, and keeps its level where neither are."""

import pytest
import torch
from torch import Tensor

from mti_lightning import Backbone, Layer, Tension
from mti_lightning.attribution.methods import ActGrad, attribute
from mti_lightning.backbone import ActivationLayout
from mti_lightning.features.bound import BoundFeature
from mti_lightning.features.feature import Feature
from mti_lightning.validity.limits import OPPOSITE
from mti_lightning.validity.patches import (
    Pasted,
    check_patches,
    choose_pairs,
    holm,
    interval,
    judge_pasted,
    p_value,
    paste,
    patch_sums,
    strongest_places,
)
from mti_lightning.vetoed_shapes.world import VetoedShapes

WORLD = "vetoed_shapes_resnet"
MAP = ActivationLayout((4, 12, 12), 1, (12, 12))


def drawn(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def test_the_strongest_patch_holds_what_excites():
    attribution = torch.zeros(2, 4, 12, 12)
    attribution[0, :, 3, 8] = 1
    attribution[1, :, 9, 2] = 1
    sums = patch_sums(attribution, Tension(), MAP)
    assert sums.shape == (2, 17, 17)
    places = strongest_places(sums)
    for (row, column), seen in zip(places.tolist(), ((7, 17), (19, 5)), strict=True):
        assert row <= seen[0] < row + 8
        assert column <= seen[1] < column + 8
    tokens = ActivationLayout((145, 4), -1, (12, 12), prefix_tokens=1)
    rows = torch.cat([torch.full((2, 1, 4), 9.0), attribution.flatten(2).mT], 1)
    assert torch.allclose(patch_sums(rows, Tension(), tokens), sums, atol=1e-6)
    last = ActivationLayout((12, 12, 4), -1, (12, 12))
    assert torch.allclose(patch_sums(attribution.movedim(1, -1), Tension(), last), sums, atol=1e-6)
    assert patch_sums(torch.ones(2, 4), Tension(), ActivationLayout((4,), -1, None)) is None


@pytest.mark.parametrize("sign", ["+", "-"])
def test_patches_are_chosen_on_one_half_and_tried_on_the_other(sign):
    sums, response = drawn(64, 17, 17), drawn(64, seed=1)
    pairs = choose_pairs(sums, response, sign, 3)
    again = choose_pairs(sums, response, sign, 3)
    assert all(torch.equal(getattr(pairs, name), getattr(again, name)) for name in vars(pairs))
    assert not {*pairs.sources.tolist()} & {*pairs.into.flatten().tolist()}
    assert len({*pairs.sources.tolist()}) == 16
    way = 1 if sign == "+" else -1
    for row, place in zip(pairs.sources, pairs.own, strict=True):
        assert way * sums[row][tuple(place)] == (way * sums[row]).max()
    assert sorted(pairs.random.tolist()) == sorted(pairs.own.tolist())  # each once
    assert (way * response[pairs.into]).mean() < -0.5
    far = (pairs.own - pairs.random).abs()
    assert ((8 - far).clamp(min=0).prod(1) <= 16).all()
    assert choose_pairs(sums[:31], response[:31], sign, 3) is None


def test_a_patch_is_pasted_at_its_place():
    into, source = torch.zeros(3, 48, 24), torch.arange(48.0 * 24).view(1, 48, 24).expand(3, 48, 24)
    pasted = paste(into, torch.tensor([2, 16]), source, torch.tensor([0, 3]))
    assert torch.equal(pasted[:, 4:20, 16:24], source[:, :16, 3:11])
    assert pasted.count_nonzero() == 3 * 16 * 8
    assert not into.any()


def test_p_values_are_corrected_and_means_have_their_interval():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9]) == [0.9]
    assert p_value(torch.zeros(9)) == 1
    assert p_value(torch.arange(1.0, 9.0)) == pytest.approx(1 / 256)
    mean, low, high = interval(drawn(32))
    assert mean == pytest.approx(float(drawn(32).mean()))
    assert low < mean < high
    assert high - low == pytest.approx(3.92 * float(drawn(32).std()) / 32**0.5, rel=0.2)


@pytest.mark.parametrize("sign", ["+", "-"])
def test_chance_raises_no_more_false_alarms_than_its_level(sign):
    """Of runs of two features: that a true effect is claimed of any, or its opposite."""
    claimed, opposite, runs = 0, 0, 100
    for run in range(runs):
        skewed = drawn(2, 2, 12, seed=run) ** 3
        differences = skewed[:, 0] - skewed[:, 1]
        found = judge_pasted([Pasted(one, one, one, None) for one in differences], sign)
        claimed += any(one.values["p"] <= 0.05 for one in found)
        opposite += any(one.decisive for one in found)
    assert claimed <= 0.05 * runs + 3
    assert opposite <= 0.05 * runs + 3


def test_features_that_cannot_be_tried_do_not_count():
    some = Pasted(drawn(12) - 2, drawn(12) - 2, drawn(12) - 2, None)
    absent, found = judge_pasted(["there are too few", some], "-")
    assert absent.meaning == "Not measured, because there are too few."
    assert found.warnings == ()
    assert found.values["p"] == p_value(2 - drawn(12))
    assert "beside another feature's" not in found.values
    (seen,) = judge_pasted([Pasted(drawn(12) - 2, drawn(12) - 2, drawn(12), None)], "-")
    assert seen.values["p"] == p_value(-drawn(12))
    assert seen.warnings


def test_true_signs_pass_and_opposite_ones_fail_decisively():
    world, backbone, layer = VetoedShapes(64, seed=7), Backbone(WORLD), Layer("layer4")
    pictures = torch.stack([world[index]["picture"] for index in range(64)])
    bound_features = [BoundFeature(Feature.parse(f"fc:{kind}"), backbone) for kind in (2, 4)]
    columns = []
    for bound_feature in bound_features:
        of = (backbone, pictures, [bound_feature] * 64, layer, ActGrad())
        _, attribution, response = attribute(*of)
        sums = patch_sums(attribution.detach(), Tension(), backbone.layout(layer))
        columns.append({"response": response.detach(), "patches": sums})
    for way in (1, -1):
        signed = [one | {"patches": way * one["patches"]} for one in columns]
        of = (pictures.__getitem__, layer, ActGrad(), Tension(), 0)
        for found in check_patches(backbone, bound_features, signed, *of):
            inhibitory, excitatory = found
            assert way * inhibitory.values["effect"] < 0 < way * excitatory.values["effect"]
            for one in found:
                assert (one.values["p"] <= 0.05) == (way == 1)
                assert one.decisive == (way == -1)
                assert one.values[OPPOSITE] > 0.05 or way == -1


@pytest.mark.parametrize(
    ("response", "patches", "why"),
    [
        (torch.full((64,), 0.3) + 1e-7 * drawn(64), drawn(64, 17, 17), "the same in all pictures"),
        (torch.zeros(64), drawn(64, 17, 17), "the same in all pictures"),
        (drawn(31), drawn(31, 17, 17), "fewer than 32 pictures"),
        (drawn(64), None, "no positions"),
    ],
)
def test_what_cannot_be_tried_is_told_of(response, patches, why):
    """Of a feature that is always the same rounding would be many standard deviations."""
    backbone = Backbone(WORLD)
    bound_feature = BoundFeature(Feature.parse("fc:2"), backbone)
    columns = [{"response": response} | ({} if patches is None else {"patches": patches})]
    of = (lambda row: None, Layer("layer4"), ActGrad(), Tension(), 0)
    for found in check_patches(backbone, [bound_feature], columns, *of)[0]:
        assert why in found.meaning
        assert not found.values
