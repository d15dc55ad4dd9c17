"""The world: the same pictures everywhere, and a truth that holds."""

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

from mti_lightning.errors import InputError
from mti_lightning.vetoed_shapes.shapes import KINDS, PICTURE_SIZE, Shape
from mti_lightning.vetoed_shapes.world import VetoedShapes, veto_of

SPLITS = ["train", "validation", "test"]
CONTENTS = ["random", "tense", "overlap"]
contents_of = pytest.mark.parametrize("contents", CONTENTS)


def digest(split: str, contents: str, seed: int = 3) -> str:
    world = VetoedShapes(6, seed, split, contents)
    result = sha256()
    for index in (5, 0, 2):  # in any order
        sample = world[index]
        for name in ("picture", "present", "label", "tense"):
            result.update(sample[name].numpy().tobytes())
        result.update(world.masks(index).numpy().tobytes())
    return result.hexdigest()


def test_other_processes_draw_the_same() -> None:
    code = (
        "import numpy, torch; numpy.random.seed(8); torch.manual_seed(8)\n"
        "from tests.vetoed_shapes.test_world import CONTENTS, SPLITS, digest\n"
        "print([digest(split, contents) for split in SPLITS for contents in CONTENTS])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    own = [digest(split, contents) for split in SPLITS for contents in CONTENTS]
    assert done.stdout.strip() == str(own)


def test_no_picture_is_drawn_twice() -> None:
    drawn, keys = set(), set()
    for split in SPLITS:
        for contents in CONTENTS:
            for seed in (0, 1):
                world = VetoedShapes(6, seed, split, contents)
                for index in range(6):
                    drawn.add(world[index]["picture"].numpy().tobytes())
                    keys.add(world[index]["key"])
    assert len(drawn) == len(keys) == 3 * 3 * 2 * 6


@contents_of
def test_the_key_draws_the_picture_again(contents: str) -> None:
    sample = VetoedShapes(20, 4, "validation", contents)[13]
    of_key, split, seed, index = sample["key"].split("/")
    again = VetoedShapes(int(index) + 1, int(seed), split, of_key)[int(index)]
    assert torch.equal(again["picture"], sample["picture"])


@contents_of
def test_truth_follows_from_the_scene(contents: str) -> None:
    world = VetoedShapes(64, 2, "test", contents)
    for index, sample in enumerate(world):
        kinds = {shape.kind for shape in world.scene(index)}
        assert len(kinds) == len(world.scene(index))
        for kind in range(len(KINDS)):
            there, vetoed = kind in kinds, (kind + 3) % 8 in kinds
            truth = [sample[name][kind].item() for name in ("present", "label", "tense")]
            assert truth == [there, there and not vetoed, there and vetoed]
        assert 0 <= sample["picture"].min() < sample["picture"].max() <= 1
        assert sample["picture"].shape == (3, PICTURE_SIZE, PICTURE_SIZE)


@pytest.mark.parametrize("contents", ["random", "tense", "overlap"])
def test_kinds_are_known_without_drawing(contents: str) -> None:
    world = VetoedShapes(60, 2, contents=contents)
    for index in range(60):
        assert sorted(world.kinds(index)) == sorted(shape.kind for shape in world.scene(index))


def test_random_contents() -> None:
    world = VetoedShapes(400, 9)
    samples = [world[index] for index in range(400)]
    counts = torch.stack([sample["present"] for sample in samples]).sum(1)
    assert set(counts.tolist()) == {1, 2, 3}
    present = torch.stack([sample["present"] for sample in samples]).mean(0)
    assert present.min() > 0.15
    tense = torch.stack([sample["tense"] for sample in samples])
    assert 0.02 < tense.mean(0).min() < tense.mean(0).max() < 0.15
    # Apart where there is room, which there nearly always is.
    together = [touching(world.scene(index)) for index in range(400)]
    assert np.mean(together) < 0.1


def touching(shapes: list[Shape]) -> bool:
    coverage = sum((shape.coverage() > 0.5).astype(int) for shape in shapes)
    return bool((coverage > 1).any())


@pytest.mark.parametrize("contents", ["tense", "overlap"])
def test_tense_contents(contents: str) -> None:
    world = VetoedShapes(240, 1, "test", contents)
    on_top, touch, visible = [], [], []
    for index in range(240):
        kind, shapes = index % 8, world.scene(index)
        assert {shape.kind for shape in shapes} == {kind, veto_of(kind)}
        assert world[index]["tense"].nonzero().flatten().tolist()[:1] == [kind]
        on_top.append(shapes[-1].kind == kind)
        touch.append(touching(shapes))
        lower = shapes[0]
        covered = torch.from_numpy(lower.coverage() > 0.5).sum()
        visible.append((world.masks(index)[lower.kind].sum() / covered).item())
    if contents == "tense":
        assert sum(touch) <= 2
        assert np.mean(visible) > 0.99
    else:
        assert np.mean(touch) > 0.98
        assert 0.4 < np.mean(on_top) < 0.6
        assert np.mean(np.array(visible) > 0.2) > 0.98
        assert 0.5 < np.median(visible) < 0.8


@contents_of
def test_masks_hold_what_is_visible(contents: str) -> None:
    world = VetoedShapes(48, 6, "test", contents)
    for index in range(48):
        picture, masks = world[index]["picture"], world.masks(index)
        assert masks.sum(0).max() <= 1  # one shape per pixel is on top
        shapes = world.scene(index)
        assert {shape.kind for shape in shapes} >= set(
            masks.any((1, 2)).nonzero().flatten().tolist()
        )
        outside = torch.ones(PICTURE_SIZE, PICTURE_SIZE, dtype=torch.bool)
        for shape in shapes:
            outside &= torch.from_numpy(shape.coverage() == 0)
        for order, shape in enumerate(shapes):
            mask = masks[shape.kind]
            full = torch.from_numpy(shape.coverage() == 1) & mask
            for above in shapes[order + 1 :]:
                full &= torch.from_numpy(above.coverage() == 0)
            colour = torch.tensor(shape.colour)[:, None]
            difference = (picture[:, full] - colour).abs()
            assert difference.numel() == 0 or difference.max() < 0.06  # noise of 0.01
            # The mask is all of it but the rim, which shares its pixels with others.
            assert mask.sum() - full.sum() <= 0.6 * mask.sum() + 20
            assert not (mask & outside).any()
        # Where no shape is, there is the background: no flat colour.
        assert picture[:, outside].std(1).max() > 0.03


def test_a_world_ends() -> None:
    world = VetoedShapes(3)
    assert len(list(world)) == len(world) == 3
    for index in (3, -1):
        with pytest.raises(IndexError, match=f"picture {index} of a world of 3"):
            world[index]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": 0}, "a world of 0 pictures: give a size of 1 or more, 1000000 at most"),
        ({"seed": -1}, "a world of seed -1: give 0 or more"),
        ({"split": "trian"}, "split 'trian' is none of train, validation, test"),
        ({"contents": "calm"}, "contents 'calm' is none of random, tense, overlap"),
    ],
    ids=str,
)
def test_worlds_that_cannot_be(given: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as error:
        VetoedShapes(**given)
    assert str(error.value) == message
