"""Composites: parts whose place is known, and the same pictures without them."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mti_lightning import CompositePictures, InputError
from mti_lightning.backbone import Preprocessing
from mti_lightning.data.datasets import LostError
from tests.data.files import colours

SEEN = Preprocessing((48, 64), 1.0, "center", "bilinear")


@pytest.fixture
def photographs(tmp_path: Path, rng: np.random.Generator) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name in "abcde":
        Image.fromarray(colours(rng, 60, 80)).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def cut_outs(tmp_path: Path) -> Path:
    """A red disc, a green square and a blue bar, each small on a transparent canvas."""
    folder = tmp_path / "cut-outs"
    folder.mkdir()
    rows, columns = np.mgrid[:40, :40]
    shapes = {
        "disc": (rows - 20) ** 2 + (columns - 20) ** 2 < 100,
        "square": (abs(rows - 15) < 8) & (abs(columns - 25) < 8),
        "bar": (abs(rows - 20) < 3) & (abs(columns - 20) < 15),
    }
    for channel, (name, shape) in enumerate(shapes.items()):
        picture = np.zeros((40, 40, 4), np.uint8)
        picture[shape, channel] = picture[shape, 3] = 255
        Image.fromarray(picture).save(folder / f"{name}.png")
    return folder


def composites(*arguments: object, **options: object):
    data = CompositePictures(*arguments, **options)
    data.use(SEEN)
    return data.pictures


@pytest.mark.parametrize("kind", ["photographs", "cut-outs"])
def test_a_picture_without_a_part_differs_in_its_place_alone(photographs, cut_outs, kind) -> None:
    pictures = composites(photographs, cut_outs if kind == "cut-outs" else None, 12)
    for index in range(12):
        found = pictures[index]
        whole, without, masks = found["picture"], found["without"], found["masks"]
        assert (whole.shape, without.shape, masks.shape) == (
            (3, 48, 64),
            (2, 3, 48, 64),
            (2, 48, 64),
        )
        for part in range(2):
            changed = (whole != without[part]).any(0)
            assert changed.any()
            assert not changed[masks[part] == 0].any()
        assert not (masks[0] * masks[1]).any()  # in a half each
        assert min(whole.min(), without.min()) >= 0
        assert max(whole.max(), without.max()) <= 1


def test_a_part_is_what_its_file_shows(photographs, cut_outs) -> None:
    pictures = composites(photographs, cut_outs, 20)
    channels = {"disc": 0, "square": 1, "bar": 2}
    sides = set()
    for index in range(20):
        found = pictures[index]
        names = found["key"].split(" ")[1:4:2]
        for name, mask in zip(names, found["masks"], strict=True):
            shown = found["picture"][:, mask == 1].mean(1)
            assert shown.argmax() == channels[name.removesuffix(".png")]
            assert shown.max() > 0.99
            sides.add((name, bool(mask[:, :32].any())))
    assert len(sides) == 6  # each on either side


def test_the_seed_and_the_index_decide_alone(photographs, cut_outs) -> None:
    whole = composites(photographs, cut_outs, 9, seed=3)
    few, other = composites(photographs, cut_outs, 4, seed=3), composites(photographs, cut_outs, 4)
    assert whole.keys[:4] == few.keys != other.keys
    for index in (3, 0):
        assert torch.equal(whole[index]["picture"], few[index]["picture"])
    assert not torch.equal(few[0]["picture"], other[0]["picture"])


def test_batches_hold_parts_only_of_what_can_be_read(photographs) -> None:
    (photographs / "a.png").write_text("no picture")
    data = CompositePictures(photographs, size=20, batch_size=20)
    data.use(SEEN)
    (batch,) = data.loader(range(20))
    assert 0 < len(batch.unreadable) < 20
    assert all("a.png is not a picture" in reason for reason in batch.unreadable.values())
    assert (
        len(batch.without) == len(batch.masks) == len(batch.indices) == 20 - len(batch.unreadable)
    )


@pytest.mark.parametrize(
    ("kept", "options", "message"),
    [
        (2, {}, "holds 2 pictures; two parts and what they stand on are to differ"),
        (5, {"size": 0}, "size 0"),
        (5, {"seed": -1}, "seed -1"),
    ],
)
def test_too_little_is_said_at_once(photographs, kept, options, message) -> None:
    for extra in sorted(photographs.iterdir())[kept:]:
        extra.unlink()
    with pytest.raises(InputError, match=message):
        CompositePictures(photographs, **options)


def test_one_cut_out_will_not_do(photographs, cut_outs) -> None:
    for extra in sorted(cut_outs.iterdir())[1:]:
        extra.unlink()
    with pytest.raises(InputError, match="1 cut-outs will not do"):
        composites(photographs, cut_outs)


def test_a_cut_out_that_shows_nothing_is_left_out(photographs, cut_outs) -> None:
    Image.new("RGBA", (8, 8)).save(cut_outs / "bar.png")
    pictures = composites(photographs, cut_outs, 20)
    at = next(i for i, key in enumerate(pictures.keys) if "bar.png" in key)
    with pytest.raises(InputError, match="transparent all over"):
        pictures[at]


@pytest.mark.parametrize("kind", ["photographs", "cut-outs"])
def test_a_picture_that_has_changed_is_noticed(photographs, cut_outs, kind) -> None:
    pictures = composites(photographs, cut_outs if kind == "cut-outs" else None, 6)
    stamp = pictures[0]["stamp"]
    assert not pictures.changed(0, stamp)
    name = pictures.keys[0].split()[1]
    file = (photographs if kind == "photographs" else cut_outs) / name
    held = file.read_bytes()
    os.utime(file, (1, 1))
    assert not pictures.changed(0, stamp)  # the same, copied
    file.write_bytes(held[::-1])
    assert pictures.changed(0, stamp)
    file.unlink()
    assert pictures.changed(0, stamp)


def test_odd_files_neither_hang_nor_hide_a_lost_disk(photographs, cut_outs) -> None:
    for name in ("disc", "square", "bar"):
        (cut_outs / f"{name}.png").unlink()
        os.mkfifo(cut_outs / f"{name}.png")
    pictures = composites(photographs, cut_outs, 1)
    with pytest.raises(InputError, match="it is no regular file"):
        pictures[0]
    shutil.rmtree(cut_outs)
    with pytest.raises(LostError, match="is its disk still there"):
        pictures[0]


def test_there_are_not_too_many(photographs) -> None:
    with pytest.raises(InputError, match="size 1000000000000: give 1 to 1000000"):
        CompositePictures(photographs, size=10**12)
