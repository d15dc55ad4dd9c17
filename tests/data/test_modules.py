"""Files, folders and folders of classes: what is found, and in which order."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from mti_lightning.backbone import Preprocessing
from mti_lightning.data.decode import decode, prepare
from mti_lightning.data.modules import ImageFolder, PictureFile, PictureFolder
from mti_lightning.errors import InputError
from tests.data.files import PHOTOGRAPHS, WHOLE, colours, save_bomb, save_cut_off


def test_file_of_any_name(tmp_path, rng):
    pixels = colours(rng, 32, 32)
    Image.fromarray(pixels).save(tmp_path / "no_ending", format="PNG")
    data = PictureFile(tmp_path / "no_ending")
    data.use(WHOLE)
    (sample,) = data.samples()
    assert sample["key"] == "no_ending"
    expected = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    torch.testing.assert_close(sample["picture"], expected, atol=0, rtol=0)


def test_file_that_is_missing_names_its_neighbour(tmp_path, rng):
    Image.fromarray(colours(rng)).save(tmp_path / "flower.png")
    with pytest.raises(
        InputError, match=r"flowr\.png does not exist; did you mean 'flower\.png'\?"
    ):
        PictureFile(tmp_path / "flowr.png")
    with pytest.raises(InputError, match=r"nowhere/x\.png does not exist$"):
        PictureFile(tmp_path / "nowhere" / "x.png")


def test_file_that_is_no_picture(tmp_path, rng):
    (tmp_path / "words.jpg").write_text("this is no picture")
    (tmp_path / "empty.jpg").touch()
    for name in ("words.jpg", "empty.jpg"):
        with pytest.raises(
            InputError, match=f"{name} is not a picture in a format that Pillow reads"
        ):
            PictureFile(tmp_path / name)
    with pytest.raises(InputError, match="is a folder; PictureFolder reads all its pictures"):
        PictureFile(tmp_path)


@pytest.mark.parametrize("end", ["jpg", "png", "tif", "gif", "bmp", "webp"])
def test_file_that_is_cut_off(tmp_path, rng, end):
    save_cut_off(tmp_path / f"half.{end}", rng)
    with pytest.raises(
        InputError, match=rf"half\.{end} (cannot be read as|is not) a picture"
    ) as caught:
        PictureFile(tmp_path / f"half.{end}")
    assert "\n" not in str(caught.value)


def test_file_that_would_fill_the_memory(tmp_path):
    save_bomb(tmp_path / "bomb.png")
    with pytest.raises(
        InputError, match=r"bomb\.png cannot be read as a picture: .*decompression bomb"
    ):
        PictureFile(tmp_path / "bomb.png")
    Image.new("RGB", (1010, 10)).save(tmp_path / "thread.png")
    with pytest.raises(InputError, match="is 1010x10 pixels; the longer side may be 100 times"):
        PictureFile(tmp_path / "thread.png")


def test_folders_list_in_the_order_of_paths(tmp_path):
    # "-" sorts before "/" as a character; as torchvision has it, folders are compared first.
    names = ["a/z.png", "a-b/a.png", "a.png", "a/b/c.png", "a/B.PNG", "a/b.c/1.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("png", "a/jpg", "a/.png", "a/notes."):
        (tmp_path / name).touch()
    expected = [path.as_posix() for path in sorted(map(Path, names))]
    assert PictureFolder(tmp_path, recursive=True).names == expected


def test_keys_are_known_without_reading(tmp_path):
    names = [f"{index:03}.jpg" for index in range(300)]
    for name in names:
        (tmp_path / name).write_text("no")
    data = PictureFolder(tmp_path)
    data.use(WHOLE)
    assert len(data.pictures) == 300
    assert data.pictures.keys == names
    with pytest.raises(InputError, match=r"017\.jpg is not a picture"):
        data.pictures[17]


def test_folder_in_order_with_a_count_of_the_unreadable(folder):
    data = PictureFolder(folder)
    data.use(WHOLE)
    message = r"skipped 2 of 5 pictures: .*b\.jpg is not a picture.*; .*d\.png cannot be read"
    with pytest.warns(UserWarning, match=message) as caught:
        samples = list(data.samples())
    assert len(caught) == 1
    assert [sample["key"] for sample in samples] == ["a.JPG", "c.png", "e.webp"]
    for sample in samples:
        expected = prepare(decode(folder / sample["key"]), WHOLE)
        torch.testing.assert_close(sample["picture"], expected, atol=0, rtol=0)


def test_folder_names_the_first_few_of_many(tmp_path, rng):
    for index in range(6):
        (tmp_path / f"{index}.jpg").write_text("no")
    Image.fromarray(colours(rng)).save(tmp_path / "good.png")
    data = PictureFolder(tmp_path, batch_size=2)
    data.use(WHOLE)
    with pytest.warns(UserWarning, match=r"skipped 6 of 7 .*0\.jpg.*1\.jpg.*2\.jpg[^.]*; \.\.\.$"):
        assert [sample["key"] for sample in data.samples()] == ["good.png"]


def test_folder_without_unreadable_files_does_not_warn():
    data = PictureFolder(PHOTOGRAPHS)
    data.use(WHOLE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keys = [sample["key"] for sample in data.samples()]
    assert keys == ["china.jpg", "flower.jpg"]  # and not the README.txt beside them


def test_folder_limit_and_depth(folder):
    assert PictureFolder(folder, limit=3).names == ["a.JPG", "b.jpg", "c.png"]
    deep = PictureFolder(folder, recursive=True)
    assert deep.names[-2:] == ["deeper/a.png", "e.webp"]
    assert len(PictureFolder(folder, limit=100).names) == 5
    with pytest.raises(InputError, match="limit 0: give 1 or more"):
        PictureFolder(folder, limit=0)


def test_names_that_are_no_utf8_are_read_and_can_be_written(tmp_path, rng):
    name = os.fsdecode(b"class/bad\xff.png")
    (tmp_path / "class").mkdir()
    Image.fromarray(colours(rng)).save(tmp_path / name)
    expected = prepare(decode(tmp_path / name), WHOLE)
    for data in (PictureFolder(tmp_path / "class"), ImageFolder(tmp_path)):
        data.use(WHOLE)
        (sample,) = data.samples()
        assert sample["key"].encode().endswith(rb"bad\udcff.png")
        assert torch.equal(sample["picture"], expected)


def test_folder_that_cannot_be_used(folder, tmp_path):
    with pytest.raises(InputError, match=r"picture does not exist; did you mean 'pictures'\?"):
        PictureFolder(tmp_path / "picture")
    with pytest.raises(InputError, match=r"a\.JPG is a file, not a folder; PictureFile reads"):
        PictureFolder(folder / "a.JPG")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty is empty; give one with \.jpg.*recursive: true"):
        PictureFolder(tmp_path / "empty")
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(InputError, match=r"empty holds no picture; give one with [^;]*$"):
        PictureFolder(tmp_path / "empty", recursive=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_folder_where_nothing_can_be_read(tmp_path, workers):
    for name in ("a.jpg", "b.png"):
        (tmp_path / name).write_text("no")
    data = PictureFolder(tmp_path, num_workers=workers)
    data.use(WHOLE)
    with pytest.raises(InputError, match=r"none of the 2 pictures can be read: .*a\.jpg.*b\.png"):
        list(data.samples())


def test_classes_are_listed_as_torchvision_does(classes):
    data = ImageFolder(classes)
    data.use(Preprocessing((16, 16), 1.0, "center", "bilinear"))
    reference = torchvision.datasets.ImageFolder(str(classes))
    paths = [Path(path).relative_to(classes).as_posix() for path, _ in reference.samples]
    samples = list(data.samples())
    assert [sample["key"] for sample in samples] == paths
    assert paths[0] == "drake/0.png"
    for sample, (image, _) in zip(samples, reference, strict=True):
        expected = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
        torch.testing.assert_close(sample["picture"], expected, atol=0, rtol=0)


def test_limit_gives_each_class_its_share(classes, rng):
    Image.fromarray(colours(rng)).save(classes / "stray.png")
    names = ImageFolder(classes, limit=6).names
    assert [name.split("/")[0] for name in names] == ["drake"] * 2 + ["duck"] * 2 + ["goose"] * 2
    assert len(set(names)) == 6
    assert len(ImageFolder(classes, limit=99).names) == 12


def test_class_folders_behind_links(classes, tmp_path):
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "bird").symlink_to(classes / "duck")
    assert ImageFolder(tmp_path / "linked", limit=1).names == ["bird/0.png"]


def test_classes_need_folders(classes):
    with pytest.raises(
        InputError, match=r"duck has no folder of pictures in it; .*use PictureFolder"
    ):
        ImageFolder(classes / "duck")


def test_links_that_lead_in_circles_are_followed_once(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "1.png")
        (tmp_path / name / "up").symlink_to(tmp_path)
        (tmp_path / name / "itself").symlink_to(tmp_path / name)
    (tmp_path / "a" / "across").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "across").symlink_to(tmp_path / "a")
    (tmp_path / "0").symlink_to(tmp_path / "b")  # before the folder itself
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    assert PictureFolder(tmp_path, recursive=True).names == ["a/1.png", "b/1.png"]
    assert ImageFolder(tmp_path).names == ["a/1.png", "b/1.png"]


def test_links_to_what_a_folder_lies_in_lead_nowhere(tmp_path):
    """As those in /proc, by which the whole disk was searched."""
    for name in ("own", "beside"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "1.png")
    (tmp_path / "own" / "root").symlink_to("/")
    (tmp_path / "own" / "up").symlink_to(tmp_path)
    assert PictureFolder(tmp_path / "own", recursive=True).names == ["1.png"]
    (tmp_path / "own" / "across").symlink_to(tmp_path / "beside")
    assert PictureFolder(tmp_path / "own", recursive=True).names == ["1.png", "across/1.png"]
