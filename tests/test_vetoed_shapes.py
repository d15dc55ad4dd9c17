"""The embedded world and its backbone."""

import socket

import numpy as np
import pytest
import timm
import torch
from torchmetrics.functional.classification import multilabel_average_precision

from mti_lightning.vetoed_shapes import KINDS, PICTURE_SIZE, Contents, VetoedShapes, VetoedShapesData, veto_of
from mti_lightning.vetoed_shapes_backbone import WEIGHTS


def test_a_picture_is_drawn_from_seed_split_contents_and_index_alone() -> None:
    world = VetoedShapes(50, seed=4)
    first = world[37]["picture"]
    assert torch.equal(first, VetoedShapes(1000, seed=4)[37]["picture"])
    others = [VetoedShapes(50, seed=5), VetoedShapes(50, 4, "train"), VetoedShapes(50, 4, contents="tense")]
    assert all(not torch.equal(first, other[37]["picture"]) for other in others)


def test_workers_draw_the_same_pictures() -> None:
    alone, shared = (
        torch.cat([batch["picture"] for batch in VetoedShapesData(12, 12, batch_size=4, num_workers=n).train_dataloader()])
        for n in (0, 2)
    )
    assert torch.equal(alone, shared)


def test_the_truth_agrees_with_the_scene() -> None:
    world = VetoedShapes(300, seed=1)
    counts = set()
    for index in range(len(world)):
        sample, kinds = world[index], {shape.kind for shape in world.scene(index)}
        counts.add(len(kinds))
        for kind in range(len(KINDS)):
            there, vetoed = kind in kinds, veto_of(kind) in kinds
            assert sample["present"][kind] == there
            assert sample["label"][kind] == (there and not vetoed)
            assert sample["tense"][kind] == (there and vetoed)
    assert counts == {1, 2, 3}


@pytest.mark.parametrize("contents", ["random", "tense", "overlap"])
def test_masks_hold_what_is_visible_in_its_own_colour(contents: Contents) -> None:
    world = VetoedShapes(24, seed=2, contents=contents)
    for index in range(len(world)):
        picture, masks = world[index]["picture"].permute(1, 2, 0), world.masks(index)
        assert (masks.sum(0) <= 1).all()
        for shape in world.scene(index):
            visible = masks[shape.kind].numpy()
            inside = visible & (shape.coverage() > 0.999)
            others = [other.coverage() for other in world.scene(index) if other.kind != shape.kind]
            inside &= np.all([coverage < 0.001 for coverage in others], axis=0) if others else True
            if inside.sum() > 20:
                error = picture[torch.from_numpy(inside)] - torch.tensor(shape.colour)
                assert error.abs().max() < 0.06  # noise of deviation 0.01


@pytest.mark.parametrize("contents", ["tense", "overlap"])
def test_tense_pictures_hold_a_shape_and_its_veto(contents: Contents) -> None:
    world = VetoedShapes(32, contents=contents)
    distances = []
    for index in range(32):
        kind = index % 8
        assert {shape.kind for shape in world.scene(index)} == {kind, veto_of(kind)}
        assert world[index]["tense"].nonzero().flatten().tolist() == [kind]
        one, other = world.scene(index)
        distances.append(np.hypot(one.row - other.row, one.column - other.column) / (one.radius + other.radius))
        assert all(0 < value < PICTURE_SIZE for value in (one.row, one.column, other.row, other.column))
        assert all((world.masks(index)[shape.kind]).any() for shape in (one, other))
    assert (np.median(distances) > 1) == (contents == "tense")
    assert (max(distances) < 0.7) == (contents == "overlap")


def test_every_class_is_about_as_often_there_and_tense() -> None:
    world = VetoedShapes(1500, seed=6)
    samples = [world[index] for index in range(len(world))]
    assert ((torch.stack([s["tense"] for s in samples]).mean(0) - 0.065).abs() < 0.03).all()
    assert ((torch.stack([s["label"] for s in samples]).mean(0) - 0.185).abs() < 0.05).all()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"size": 0}, "a size of 1 or more"), ({"split": "valid"}, "'valid' is none of train, validation, test"), ({"contents": "x"}, "random, tense, overlap")],
)
def test_a_world_that_is_not_there(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        VetoedShapes(**wrong)  # type: ignore[arg-type]


def test_the_shipped_backbone_knows_fresh_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("no network is needed")

    monkeypatch.setattr(socket, "create_connection", refuse)
    network = timm.create_model("vetoed_shapes_resnet", pretrained=True).eval()
    world = VetoedShapes(2048, seed=11, split="test")
    samples = [world[index] for index in range(len(world))]
    pictures = torch.stack([sample["picture"] for sample in samples])
    truth = torch.stack([sample["label"] for sample in samples]).long()
    with torch.no_grad():
        logits = torch.cat([network((part - 0.5) / 0.25) for part in pictures.split(128)])
    assert multilabel_average_precision(logits, truth, len(KINDS)) >= 0.99
    assert WEIGHTS.stat().st_size < 4_000_000


