"""Truth by intervention in the report: what follows it passes, what does not is told."""

from typing import final

import pytest
import torch
from torch import Tensor

from mti_lightning import ActGrad, Attribution, Backbone, InputError, IntGrad, Pass, Validity
from mti_lightning.validity.composites import CHECK, judge_composites
from tests.validity.test_module import WORLD, Flipped, report


@final
class Negated(Attribution):
    """A wrong method: what excites is said to inhibit."""

    def attribute(self, forward: Pass, create_graph: bool) -> Tensor:
        return -ActGrad().attribute(forward, create_graph)


def checked(attribution: Attribution | None, layer: str):
    options = {"layer": layer, "rendered": 0, "pictures": 2, "composites": 64}
    return report(Backbone(WORLD), attribution, **options)[CHECK]


@pytest.mark.parametrize("layer", ["layer4", "layer2"])
def test_the_default_follows_what_parts_do(layer: str) -> None:
    found = checked(IntGrad(8) if layer == "layer2" else None, layer)
    assert found.values["composites"] == 64
    assert found.values["parts"] > 0.5
    assert found.values["signs right"] > 0.75
    # Tension hardly follows the truth in so few squares of pictures, which is no failed check.
    assert {*found.warnings} <= {"tension is not seen to follow what parts do"}
    assert found.slight == bool(found.warnings)


@pytest.mark.parametrize(
    ("method", "layer"), [(Negated(), "layer4"), (Flipped(), "layer4"), (ActGrad(), "layer2")]
)
def test_what_does_not_follow_it_is_not_to_be_believed(method: Attribution, layer: str) -> None:
    """Activation times gradient is wrong at depth, and no other check says so."""
    found = checked(method, layer)
    assert found.values["parts"] < 0.3
    assert found.decisive
    assert {*found.warnings} >= {
        "attributions hardly follow what parts do",
        "they say nothing of what parts do",
    }


def test_the_figures_are_what_they_are_called() -> None:
    effect = torch.tensor([[4.0, -1.0], [3.0, -2.0], [0.1, -0.1], [5.0, 0.2]] * 4)
    found = judge_composites(effect, effect * 7, torch.arange(16.0)).values
    assert (found["parts"], found["signs right"]) == (pytest.approx(1), 1)
    found = judge_composites(effect, -effect, torch.arange(16.0)).values
    assert (found["parts"], found["signs right"]) == (pytest.approx(-1), 0)
    tense = (effect.clamp(min=0).sum(1) * (-effect).clamp(min=0).sum(1)).sqrt()
    assert judge_composites(effect, effect, tense).values["tension"] == pytest.approx(1)


def test_few_composites_say_nothing() -> None:
    few = torch.ones(15, 2)
    found = judge_composites(few, few, few[:, 0])
    assert not found.values
    assert "only 15 composites" in found.meaning


def test_of_a_channel_it_says_that_tension_hardly_follows() -> None:
    options = {"layer": "layer3", "rendered": 0, "pictures": 3, "composites": 16}
    told = {
        feature: report(Backbone(WORLD), ActGrad(), features=[feature], **options)[CHECK].meaning
        for feature in ("fc:3", "layer4.0.act2/input:5@mean")
    }
    assert ["Of a channel tension hardly" in meaning for meaning in told.values()] == [False, True]


def test_what_parts_never_do_is_not_followed() -> None:
    """A feature that is always the same, and parts of which none inhibits."""
    none = torch.zeros(16, 2)
    found = judge_composites(none, none, none[:, 0])
    assert found.meaning == "Not measured, because no part changes the response at all."
    excited = torch.arange(1.0, 33).view(16, 2)
    found = judge_composites(excited, excited, excited[:, 0])
    assert "tension" not in found.values
    assert not found.warnings


def test_tension_that_is_not_seen_to_follow_the_truth_is_told_of() -> None:
    generator = torch.Generator().manual_seed(0)
    effect = torch.randn(64, 2, generator=generator)
    tense = (effect.clamp(min=0).sum(1) * (-effect).clamp(min=0).sum(1)).sqrt()
    assert not judge_composites(effect, effect, tense).warnings
    found = judge_composites(effect, effect, torch.rand(64, generator=generator))
    assert found.warnings == ("tension is not seen to follow what parts do",)
    assert found.slight  # which is no failed check
    assert judge_composites(effect, effect, torch.ones(64)).slight
    assert judge_composites(effect, torch.ones(64, 2), tense).decisive


def test_one_position_tells_no_parts_apart() -> None:
    """As in front of a classifier, where activations are [N, C, 1, 1]."""
    network = Backbone("test_convnext", "random")
    options = {"layer": "head.norm", "features": ["head.fc:3"], "rendered": 0, "pictures": 3}
    found = report(network, ActGrad(), composites=16, **options)
    for check in (CHECK, "pasting inhibitory patches"):
        assert "no positions" in found[check].meaning
    assert "4 could not be measured" in found["verdict"].check


def test_too_few_composites_are_refused() -> None:
    with pytest.raises(InputError, match="composites 8: give 16 or more, or 0"):
        Validity(Backbone(WORLD), ["fc:3"], "layer4", composites=8)
