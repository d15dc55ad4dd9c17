"""Other networks as judges of inversions, and how like a photograph these are processed."""

import math

import pytest
import torch

from mti_lightning import Backbone, InputError, Layer, Validity
from mti_lightning.features.bound import BoundFeature
from mti_lightning.features.feature import Feature
from mti_lightning.objectives.chunk import Entry
from mti_lightning.validity.judges import ask_judges, check_judge, make_judges
from mti_lightning.validity.likeness import check_likeness, layers_up_to, likeness
from mti_lightning.vetoed_shapes.world import VetoedShapes

WORLD = "vetoed_shapes_resnet"


class Finished:
    """Inversions that are the sources themselves: there is nothing that could have changed."""

    def __init__(self, backbone: Backbone) -> None:
        world = VetoedShapes(2, seed=31)
        self.sources = [{"picture": world[i]["picture"], "key": str(i)} for i in range(2)]
        self.backbone, self.device = backbone, torch.device("cpu")
        self.entries = [Entry("", 0, 3, "", 0, sign, source) for source in (0, 1) for sign in "+-"]
        pictures = [self.sources[entry.source]["picture"] for entry in self.entries]
        self.chunks = (lambda: torch.stack(pictures),)


def test_a_judge_ranks_the_class_and_what_else_it_sees_in_the_sources():
    backbone = Backbone(WORLD)
    finished = Finished(backbone)
    with torch.no_grad():
        logits = backbone(finished.chunks[0]())[::2]
    first, last = int(logits[0].argmax()), int(logits[0].argmin())
    for label, rank, other in ((first, 1, 2), (last, 8, 1)):
        found = check_judge(backbone, finished, finished.sources, label)
        assert found["+"].tolist() == found["sources"].tolist()
        assert int(found["sources"][0]) == rank
        assert int(found["-"][0]) == other
        assert found["rise"].abs().max() < 1e-4
    (found,) = ask_judges(
        [backbone], finished, finished.sources, BoundFeature(Feature.parse("fc:3"), backbone)
    )
    assert [name.partition(": ")[2] for name in found.values] == [
        "rank in sources",
        "in +",
        "logit's rise",
        "others' rank in -",
    ]


def test_only_of_a_class_judges_are_asked():
    backbone = Backbone(WORLD)
    finished, of = Finished(backbone), BoundFeature(Feature.parse("layer4:3@peak"), backbone)
    assert ask_judges([], finished, finished.sources, of) == []
    (found,) = ask_judges([backbone], finished, finished.sources, of)
    assert found.meaning == "Not measured, because the feature is no class."


def test_judges_have_the_same_classes():
    backbone = Backbone("test_resnet", "random", arguments={"num_classes": 8})
    (judge,) = make_judges([{"name": WORLD}], backbone)
    assert judge.name == WORLD
    with pytest.raises(InputError, match="has to have the same classes"):
        make_judges([{"name": "test_resnet", "weights": "random"}], backbone)
    with pytest.raises(InputError, match="makes no backbone"):
        make_judges([{"nam": WORLD}], backbone)
    assert make_judges([], backbone) == []


def test_a_judge_is_another_network_and_there_is_something_to_judge():
    world = Backbone(WORLD)
    with pytest.raises(InputError, match="has the weights of the network itself"):
        make_judges([WORLD], world)
    other = {"name": "test_resnet", "weights": "random", "arguments": {"num_classes": 8}}
    with pytest.raises(InputError, match="has the weights of another judge"):
        make_judges([other, other], world)
    with pytest.raises(InputError, match="has one class, of which there is no rank"):
        make_judges([WORLD], Backbone("test_resnet", "random", arguments={"num_classes": 1}))
    with pytest.raises(InputError, match="rendered: 0 will not do"):
        Validity(world, ["fc:3"], "layer4", rendered=0, judges=[other])
    with pytest.raises(InputError, match=r"none of the features, layer4.*@peak, is one"):
        Validity(world, ["layer4.0.act2/input:3@peak"], "layer2", judges=[other])


def test_judges_of_one_name_are_told_apart():
    backbone = Backbone(WORLD)
    finished, of = Finished(backbone), BoundFeature(Feature.parse("fc:3"), backbone)
    made = [
        Backbone("test_resnet", "random", seed, arguments={"num_classes": 8}) for seed in (0, 1)
    ]
    (found,) = ask_judges(made, finished, finished.sources, of)
    assert [name.partition(": ")[0] for name in found.values][::4] == [
        "test_resnet",
        "test_resnet (2)",
    ]


def test_likeness_is_one_of_photographs_and_none_of_noise():
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(6, 40, generator=generator)

    def photographs(count: int) -> torch.Tensor:
        of = torch.arange(count) % 6
        return kinds[of] + 0.3 * torch.randn(count, 40, generator=generator) + 9

    def noise(count: int) -> torch.Tensor:
        return torch.randn(count, 40, generator=generator) + 9

    natural, random = photographs(60), noise(32)
    assert likeness(photographs(60), natural, random) == pytest.approx(1, abs=0.05)
    assert likeness(noise(32), natural, random) == pytest.approx(0, abs=0.1)
    between = (photographs(60) + noise(60)) / 2
    assert 0.2 < likeness(between, natural, random) < 0.95
    assert math.isnan(likeness(natural, random, noise(32)))  # nothing lies between noise and noise
    one = torch.arange(20.0)[:, None]  # of a single channel, cosines are 1 or -1
    assert math.isnan(likeness(one, one, one))


def test_few_photographs_say_nothing_of_likeness():
    backbone = Backbone(WORLD)
    photographs = [backbone.noise(1)[0]] * 15
    found = check_likeness(Finished(backbone), photographs, Layer("fc"))
    assert found.meaning.startswith("Not measured, because it takes 16 pictures")


def test_layers_lie_between_the_pictures_and_the_feature():
    layers = layers_up_to(Backbone(WORLD), Layer("fc"))
    assert len(layers) == 6
    assert layers[-1] == Layer("fc")
    assert len({*layers}) == 6
    stages = [layer.module.split(".")[0] for layer in layers[:-1]]
    assert stages == sorted(stages)
    first = layers_up_to(Backbone(WORLD), Layer("layer1.0"))
    assert first[-1] == Layer("layer1.0")
    assert all(layer.module.split(".")[0] <= "layer1" for layer in first)
