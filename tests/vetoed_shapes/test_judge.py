"""The judge: a network of its own, which names what is in natural pictures."""

import timm
import torch

from mti_lightning.vetoed_shapes.judge import judge_scores, load_judge
from mti_lightning.vetoed_shapes.shapes import KINDS
from mti_lightning.vetoed_shapes.world import VetoedShapes


def test_it_names_the_shapes_of_natural_pictures() -> None:
    world = VetoedShapes(64, seed=31)
    samples = [world[index] for index in range(len(world))]
    scores = judge_scores(torch.stack([sample["picture"] for sample in samples]))
    present = torch.stack([sample["present"] for sample in samples]).bool()
    assert ((scores > 0) == present).float().mean() > 0.99
    assert present[torch.arange(len(world)), scores.argmax(1)].all()


def test_it_takes_pictures_of_any_size() -> None:
    picture = VetoedShapes(1, seed=31)[0]["picture"][None]
    large = torch.nn.functional.interpolate(picture, (300, 200), mode="bilinear")
    assert judge_scores(large).argmax() == judge_scores(picture).argmax()


def test_it_is_another_network_than_the_one_that_makes_pictures() -> None:
    judge = timm.create_model("vetoed_shapes_judge")
    assert judge.num_classes == len(KINDS)
    assert type(judge) is not type(timm.create_model("vetoed_shapes_resnet"))
    assert not any(weight.requires_grad for weight in load_judge().parameters())
    assert not load_judge().training
