"""Pictures of every mode and layout, against Pillow, timm and torchvision used directly."""

import io
import json
import math
import multiprocessing
import os
import struct
import tarfile
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import sklearn
import timm.data
import torch
import torchvision
from jsonargparse import ArgumentParser
from lightning import LightningModule, Trainer
from PIL import Image, ImageCms
from torch.utils.data import DataLoader
from webdataset import ShardWriter, TarWriter
from webdataset.tariterators import group_by_keys, tar_file_expander

from mti_lightning.backbone.network import Preprocessing
from mti_lightning.data import pictures as data_modules
from mti_lightning.data.pictures import (
    ImageFolder,
    PictureData,
    PictureFile,
    PictureFolder,
    PictureShards,
    VetoedShapesPictures,
    decode,
    prepare,
)
from mti_lightning.errors import InputError
from mti_lightning.features.feature import Feature
from mti_lightning.vetoed_shapes.world import VetoedShapes

PHOTOGRAPHS = Path(sklearn.__file__).parent / "datasets" / "images"
WHOLE = Preprocessing((32, 32), 1.0, "center", "bilinear")
GREYS = np.linspace(0, 1, 64)[None].repeat(8, 0)  # [8, 64], a ramp from left to right


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def colours(rng, height=24, width=36) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def levels(path: Path) -> np.ndarray:
    """Return what a file decodes to, [H, W, 3] in 0..1."""
    return np.asarray(decode(path)).astype(float) / 255


def save_cut_off(path: Path, rng) -> None:
    """Write a picture whose header is whole and whose end is missing."""
    Image.fromarray(colours(rng, 64, 64)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def save_bomb(path: Path) -> None:
    """Write a small PNG that claims 40,000 x 40,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


@pytest.fixture
def folder(tmp_path, rng) -> Path:
    """Three good pictures among everything else that a folder may hold."""
    root = tmp_path / "pictures"
    (root / "deeper").mkdir(parents=True)
    (root / ".hidden").mkdir()
    Image.fromarray(colours(rng)).save(root / "c.png")
    Image.fromarray(colours(rng, 50, 40)).save(root / "a.JPG", format="JPEG")
    Image.fromarray(colours(rng, 40, 40)).save(root / "e.webp")
    Image.fromarray(colours(rng)).save(root / "deeper" / "a.png")
    Image.fromarray(colours(rng)).save(root / ".hidden" / "a.png")
    (root / "b.jpg").write_text("this is no picture")
    save_cut_off(root / "d.png", rng)
    (root / "._a.JPG").write_bytes(b"\0\5\x16\7")
    (root / "README.txt").write_text("three good pictures")
    return root


# ------------------------------------------------------------ modes


def test_photographs_decode_as_pillow_does():
    for name in ("china.jpg", "flower.jpg"):
        with Image.open(PHOTOGRAPHS / name) as image:
            expected = np.asarray(image)
        assert expected.shape == (427, 640, 3)
        np.testing.assert_array_equal(np.asarray(decode(PHOTOGRAPHS / name)), expected)


@pytest.mark.parametrize(
    ("name", "values", "tolerance"),
    [
        ("8.png", np.round(GREYS * 255).astype(np.uint8), 0.002),
        ("8.jpg", np.round(GREYS * 255).astype(np.uint8), 0.02),
        ("16.png", np.round(GREYS * 65535).astype(np.uint16), 0.002),
        ("16.tif", np.round(GREYS * 65535).astype(np.uint16), 0.002),
        ("16_big_endian.tif", np.round(GREYS * 65535).astype(">u2"), 0.002),
        ("16.pgm", np.round(GREYS * 65535).astype(np.uint16), 0.002),  # read as 32 bit
        ("8_in_32.tif", np.round(GREYS * 255).astype(np.int32), 0.002),
        ("32.tif", np.round((GREYS - 0.5) * 4e9).astype(np.int32), 0.002),
        ("float.tif", GREYS.astype(np.float32), 0.002),
        ("float.pfm", GREYS.astype(np.float32), 0.002),
        ("counts.tif", (GREYS * 3e4 - 70).astype(np.float32), 0.002),
        ("1.png", GREYS > 0.5, 0.5),
    ],
)
def test_grey_pictures_keep_their_gradient(tmp_path, name, values, tolerance):
    Image.fromarray(values).save(tmp_path / name)
    read = levels(tmp_path / name)
    np.testing.assert_allclose(read, GREYS[..., None].repeat(3, -1), atol=tolerance)


def test_dark_16_bit_picture_stays_dark(tmp_path):
    Image.fromarray(np.round(GREYS * 6553.5).astype(np.uint16)).save(tmp_path / "dark.png")
    np.testing.assert_allclose(levels(tmp_path / "dark.png")[..., 0], GREYS / 10, atol=0.002)


def test_values_that_are_not_finite_do_not_spread(tmp_path):
    values = GREYS.astype(np.float32)
    values[0, 10], values[1, 10], values[2, 10] = np.nan, np.inf, -np.inf
    Image.fromarray(values).save(tmp_path / "holes.tif")
    read = levels(tmp_path / "holes.tif")[..., 0]
    assert read[:3, 10].tolist() == [0, 1, 0]
    np.testing.assert_allclose(read[3:], GREYS[3:], atol=0.002)
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(
        InputError, match=r"nan\.tif cannot be read as a picture: .*no finite value"
    ):
        decode(tmp_path / "nan.tif")


def test_flat_pictures_of_any_range_decode(tmp_path):
    for value, expected in ((0.0, 0), (0.5, 128), (1e4, 0)):  # beyond 1 a flat picture has no range
        Image.fromarray(np.full((8, 8), value, np.float32)).save(tmp_path / "flat.tif")
        assert np.unique(decode(tmp_path / "flat.tif")).tolist() == [expected]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_laid_over_mid_grey(tmp_path, mode):
    image = Image.new("RGBA", (30, 8), (255, 255, 255, 255))
    image.paste((255, 255, 255, 0), (10, 0, 20, 8))
    image.paste((0, 0, 0, 51), (20, 0, 30, 8))
    end = "tif" if mode == "PA" else "png"
    converted = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
    if mode == "PA":
        converted.putalpha(image.getchannel("A"))
    converted.save(tmp_path / f"alpha.{end}")
    read = np.asarray(decode(tmp_path / f"alpha.{end}")).astype(int)
    for column, expected in ((5, 255), (15, 128), (25, round(128 * 0.8))):
        assert abs(read[:, column] - expected).max() <= 1


def test_transparent_colour_of_palette_and_grey(tmp_path):
    pixels = np.repeat(np.arange(3, dtype=np.uint8), 10)[None].repeat(8, 0)  # [8, 30]
    palette = Image.fromarray(pixels)
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.save(tmp_path / "plain.png")
    palette.save(tmp_path / "one.gif", transparency=1)
    palette.save(tmp_path / "table.png", transparency=bytes([255, 0, 255]))
    grey = Image.fromarray(pixels * 100)
    grey.save(tmp_path / "grey.png", transparency=100)
    red, green, blue, mid = [255, 0, 0], [0, 255, 0], [0, 0, 255], [128] * 3
    for name, expected in {
        "plain.png": (red, green, blue),
        "one.gif": (red, mid, blue),
        "table.png": (red, mid, blue),
        "grey.png": ([0] * 3, mid, [200] * 3),
    }.items():
        assert np.asarray(decode(tmp_path / name))[4, [5, 15, 25]].tolist() == list(expected), name


@pytest.mark.parametrize(("mode", "end"), [("CMYK", "jpg"), ("CMYK", "tif"), ("LAB", "tif")])
def test_other_colour_spaces_keep_the_colour(tmp_path, mode, end):
    image = Image.new("RGB", (48, 16), (200, 40, 60))
    image.paste((20, 90, 180), (16, 0, 32, 16))
    image.paste((240, 240, 240), (32, 0, 48, 16))
    if mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        converted = ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB")
    else:
        converted = image.convert(mode)
    converted.save(tmp_path / f"colour.{end}")
    with Image.open(tmp_path / f"colour.{end}") as saved:
        assert saved.mode == mode
    difference = np.asarray(decode(tmp_path / f"colour.{end}")).astype(int) - np.asarray(image)
    assert abs(difference)[:, [8, 24, 40]].max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("end", ["jpg", "png", "tif"])
def test_orientation_comes_out_upright(tmp_path, orientation, end):
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :24], upright[:16, 24:], upright[16:, :24] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    # What the sensor stored: the inverse of the turn or flip asked for (EXIF 2.3, section 4.6.4).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{end}"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    read = np.asarray(decode(path)).astype(int)
    assert read.shape == upright.shape
    corners = np.ix_([6, 25], [8, 40])
    assert abs(read[corners] - upright[corners]).max() < 8


@pytest.mark.parametrize("end", ["gif", "png", "webp", "tif"])
def test_first_of_several_frames(tmp_path, end):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if end == "webp" else {}
    frames[0].save(tmp_path / f"f.{end}", save_all=True, append_images=frames[1:], **options)
    assert np.asarray(decode(tmp_path / f"f.{end}"))[8, 8].tolist() == [255, 0, 0]


# ------------------------------------------------------------ geometry


@pytest.mark.parametrize("size", [(224, 224), (96, 160), (161, 97)])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_geometry_is_that_of_timm(size, crop_mode, interpolation):
    path = PHOTOGRAPHS / "china.jpg"
    # timm's own evaluation, normalised; undoing mean and std must give back what `prepare` does.
    transform = timm.data.create_transform(
        (3, *size), crop_pct=0.9, crop_mode=crop_mode, interpolation=interpolation
    )
    mean, std = (
        torch.tensor(timm.data.IMAGENET_DEFAULT_MEAN),
        torch.tensor(timm.data.IMAGENET_DEFAULT_STD),
    )
    with Image.open(path) as image:
        expected = transform(image) * std[:, None, None] + mean[:, None, None]
    read = prepare(decode(path), Preprocessing(size, 0.9, crop_mode, interpolation))
    assert read.dtype == torch.float32
    assert read.shape == (3, *size)
    torch.testing.assert_close(read, expected, atol=1e-6, rtol=0)


def test_crop_takes_the_middle(tmp_path):
    # A centre crop of 0.5 on a picture twice the size takes the middle pixels as they are.
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[16:48, 16:48] = (10, 120, 250)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    read = prepare(decode(tmp_path / "p.png"), Preprocessing((32, 32), 0.5, "center", "bicubic"))
    expected = torch.tensor([10, 120, 250])[:, None, None].expand(3, 32, 32) / 255
    torch.testing.assert_close(read, expected, atol=0, rtol=0)


# ------------------------------------------------------------ file


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


# ------------------------------------------------------------ folder


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


def test_pictures_by_index(folder):
    data = PictureFolder(folder)
    with pytest.raises(RuntimeError, match="no size yet"):
        data.pictures[0]
    data.use(WHOLE)
    assert data.pictures[2]["key"] == "c.png"
    with pytest.raises(InputError, match=r"b\.jpg is not a picture"):
        data.pictures[1]
    data.use(Preprocessing((20, 30), 1.0, "squash", "bilinear"))
    assert data.pictures[2]["picture"].shape == (3, 20, 30)


# ------------------------------------------------------------ folder per class


@pytest.fixture
def classes(tmp_path, rng) -> Path:
    root = tmp_path / "classes"
    for name in ("goose", "duck", "drake"):
        (root / name).mkdir(parents=True)
        for index in (1, 10, 2, 0):
            Image.fromarray(colours(rng, 16, 16)).save(root / name / f"{index}.png")
    (root / "duck" / "labels.csv").touch()
    return root


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


def test_what_is_known_of_pictures(classes, folder, shards):
    """The class of a folder for each class, the truth of the vetoed shapes, else nothing."""
    star = Feature.parse("fc:3")
    data = ImageFolder(classes)
    data.use(WHOLE)
    assert data.pictures.labels(star) == [key.split("/")[0] for key in data.pictures.keys]
    for unknown in (PictureFolder(folder, recursive=True), PictureShards(shards)):
        unknown.use(WHOLE)
        assert unknown.pictures.labels(star) is None
    world = VetoedShapesPictures(40, contents="random")
    world.use(WHOLE)
    labels = world.pictures.labels(star)
    assert set(labels) == {"star", "crescent", "star and crescent", "neither"}
    for label, sample in zip(labels, world.samples(), strict=True):
        truth = world.world[int(sample["key"].split("/")[-1])]["present"]
        assert (label in ("star", "star and crescent"), "crescent" in label) == (
            bool(truth[3]),
            bool(truth[6]),
        )
    assert world.pictures.labels(Feature.parse("layer3.0.act1/input:3")) is None
    assert world.pictures.labels(Feature.parse("fc:[1,0,0,0,0,0,0,0]")) is None


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


# ------------------------------------------------------------ world


def test_world_passes_through_with_its_truth():
    data = VetoedShapesPictures(4, seed=3, contents="tense")
    data.use(Preprocessing((96, 96), 1.0, "center", "bilinear"))
    world = VetoedShapes(4, 3, "test", "tense")
    for index, read in enumerate(data.samples()):
        sample, expected = data.pictures[index], world[index]
        assert sample["key"] == read["key"] == data.pictures.keys[index] == expected["key"]
        torch.testing.assert_close(read["picture"], expected["picture"], atol=0, rtol=0)
        for name in ("picture", "present", "label", "tense"):
            torch.testing.assert_close(sample[name], expected[name], atol=0, rtol=0)


def test_world_is_resized_whole():
    data = VetoedShapesPictures(2)
    data.use(Preprocessing((48, 192), 0.5, "center", "bicubic"))
    (first, second) = data.samples()
    assert first["picture"].shape == second["picture"].shape == (3, 48, 192)
    original = VetoedShapes(2, contents="tense")[0]["picture"]
    # Averaged down to a common size both say the same, border to border: nothing was cropped.
    reduced = torch.nn.functional.adaptive_avg_pool2d(first["picture"], 12)
    expected = torch.nn.functional.adaptive_avg_pool2d(original, 12)
    assert (reduced - expected).abs().max() < 0.05


def test_world_that_cannot_be():
    with pytest.raises(InputError, match="a world of 0 pictures"):
        VetoedShapesPictures(0)
    with pytest.raises(InputError, match="contents 'calm' is none of random, tense, overlap"):
        VetoedShapesPictures(contents="calm")


# ------------------------------------------------------------ tar files


@pytest.fixture
def source(tmp_path, rng) -> Path:
    """Seven pictures of several formats and sizes."""
    root = tmp_path / "source"
    root.mkdir()
    for index in range(7):
        end = ("png", "jpg", "webp")[index % 3]
        Image.fromarray(colours(rng, 30 + index, 50)).save(root / f"{index:04}.{end}")
    return root


def write_tar(path: Path, members: dict[str, bytes], **options) -> Path:
    """Write members under whatever names, as tar does."""
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def shards(source, tmp_path) -> Path:
    """Those pictures in three shards, three, three and one, each with a label and a mask."""
    root = tmp_path / "shards"
    root.mkdir()
    mask = io.BytesIO()
    Image.new("L", (8, 8)).save(mask, "png")
    pattern = str(root / "shard-%03d.tar")
    with ShardWriter(pattern, maxcount=3, encoder=False, verbose=0) as writer:
        for file in sorted(source.iterdir()):
            writer.write(
                {
                    "__key__": file.stem,
                    "cls": b"3",
                    file.suffix[1:]: file.read_bytes(),
                    "mask.png": mask.getvalue(),
                }
            )
    (root / "README.md").write_text("seven pictures")
    (root / "._shard-000.tar").write_bytes(b"\0\5\x16\7")
    return root


SHARDED = [
    "shard-000.tar/0000.png",
    "shard-000.tar/0001.jpg",
    "shard-000.tar/0002.webp",
    "shard-001.tar/0003.png",
    "shard-001.tar/0004.jpg",
    "shard-001.tar/0005.webp",
    "shard-002.tar/0006.png",
]


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_hold_what_the_folder_holds(source, shards, workers):
    data = PictureShards(shards, batch_size=2, num_workers=workers)
    data.use(WHOLE)
    folder = PictureFolder(source)
    folder.use(WHOLE)
    assert data.pictures.keys == SHARDED
    assert [key.split("/")[1] for key in SHARDED] == folder.pictures.keys
    for sample, key, expected in zip(data.samples(), SHARDED, folder.samples(), strict=True):
        assert sample["key"] == key
        torch.testing.assert_close(sample["picture"], expected["picture"], atol=0, rtol=0)
    # In any order, and again from the first.
    for index in (6, 0, 4, 0):
        torch.testing.assert_close(
            data.pictures[index]["picture"], folder.pictures[index]["picture"], atol=0, rtol=0
        )


def test_shards_hold_what_webdataset_reads(shards):
    samples = []
    for path in sorted(shards.glob("shard-*.tar")):
        with path.open("rb") as stream:
            files = tar_file_expander([{"url": str(path), "stream": stream}])
            samples += group_by_keys(files)
    data = PictureShards(shards)
    data.use(WHOLE)
    assert len(samples) == len(data.pictures) == 7
    for index, sample in enumerate(samples):
        key = data.pictures.keys[index]
        name, end = key.split("/")[1].split(".")
        assert name == sample["__key__"]
        expected = prepare(decode(io.BytesIO(sample[end]), Path(key)), WHOLE)
        torch.testing.assert_close(data.pictures[index]["picture"], expected, atol=0, rtol=0)


def _read(pictures, indices, answers) -> None:
    answers.put([pictures[index]["picture"].numpy() for index in indices])


@pytest.mark.slow
def test_shards_are_read_by_spawned_processes(shards):
    data = PictureShards(shards)
    data.use(WHOLE)
    first = data.pictures[3]["picture"]  # read here before, too
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_read, args=(data.pictures, [3, 6], answers))
    process.start()
    read = answers.get(timeout=60)
    process.join()
    np.testing.assert_array_equal(read[0], first.numpy())
    np.testing.assert_array_equal(read[1], data.pictures[6]["picture"].numpy())


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("shard-001.tar", ["001/3", "001/4", "001/5"]),
        ("shard-{002,000}.tar", ["002/6", "000/0", "000/1", "000/2"]),
        ("shard-{001..002}.tar", ["001/3", "001/4", "001/5", "002/6"]),
        ("shard-00{2..2}.tar", ["002/6"]),
        ("shard-{002,002}.tar", ["002/6"]),
    ],
)
def test_pattern_names_shards(shards, pattern, expected):
    data = PictureShards(shards / pattern)
    assert [f"{key[6:9]}/{key[17]}" for key in data.keys] == expected


def test_shards_of_several_folders_keep_them_apart(shards, tmp_path):
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.tar").write_bytes((shards / "shard-002.tar").read_bytes())
    keys = ["train/0.tar/0006.png", "test/0.tar/0006.png"]
    for pattern in ("{train,test}/0.tar", "{train,test}"):  # files or folders
        data = PictureShards(str(tmp_path / pattern))
        data.use(WHOLE)
        assert [sample["key"] for sample in data.samples()] == keys


def test_path_with_braces_in_it_is_taken_as_it_is(shards):
    literal = shards.rename(shards.with_name("{1}"))
    assert PictureShards(literal).keys == SHARDED
    assert PictureShards(literal / "shard-002.tar").keys == SHARDED[6:]


def test_limit_takes_the_first_of_the_shards(shards):
    for limit in (1, 3, 4, 99):
        data = PictureShards(shards, limit=limit)
        data.use(WHOLE)
        assert [sample["key"] for sample in data.samples()] == SHARDED[:limit]
    with pytest.raises(InputError, match="limit 0: give 1 or more"):
        PictureShards(shards, limit=0)


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_members_of_any_name(tmp_path, source, tar_format):
    data = (source / "0000.png").read_bytes()
    long = f"{'deep/' * 15}{'n' * 90}.png"
    taken = ["./first.png", "v1.0/a.PNG", long, "gänse.png"]
    left = ["0001.json", "0001.mask.png", "._a.png", "b/._a.png", "png", ".png", "a.png/readme"]
    members = dict.fromkeys([*left, *taken], data)
    tar_file = write_tar(tmp_path / "names.tar", members, format=tar_format)
    with tarfile.open(tar_file, "a") as tar:
        for kind, name in ((tarfile.DIRTYPE, "folder.png"), (tarfile.SYMTYPE, "link.png")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "v1.0/a.PNG"
            tar.addfile(info)
    shards = PictureShards(tar_file)
    shards.use(WHOLE)
    samples = list(shards.samples())
    names = ["first.png", "v1.0/a.PNG", long, "gänse.png"]
    assert [sample["key"] for sample in samples] == [f"names.tar/{name}" for name in names]
    expected = prepare(decode(source / "0000.png"), WHOLE)
    for sample in samples:
        torch.testing.assert_close(sample["picture"], expected, atol=0, rtol=0)


def test_member_names_that_are_no_unicode_can_be_written(tmp_path, source):
    data = (source / "0000.png").read_bytes()
    options = {"format": tarfile.USTAR_FORMAT, "encoding": "latin-1"}
    (key,) = PictureShards(write_tar(tmp_path / "x.tar", {"gänse.png": data}, **options)).keys
    assert key == "x.tar/g\\xe4nse.png"
    assert key.encode() == rb"x.tar/g\xe4nse.png"


def test_member_that_cannot_be_read_is_one_of_the_unreadable(tmp_path, source, rng):
    save_cut_off(tmp_path / "half.png", rng)
    good = (source / "0000.png").read_bytes()
    half = (tmp_path / "half.png").read_bytes()
    with TarWriter(str(tmp_path / "s.tar"), encoder=False) as writer:
        for key, image in (("a", b"no picture"), ("b", good), ("c", half), ("d", good)):
            writer.write({"__key__": key, "png": image})
    data = PictureShards(tmp_path / "s.tar", num_workers=2, batch_size=2)
    data.use(WHOLE)
    assert data.pictures.keys == [f"s.tar/{key}.png" for key in "abcd"]
    with pytest.raises(InputError, match=r"/s\.tar/c\.png cannot be read as a picture: .*"):
        data.pictures[2]
    message = (
        r"skipped 2 of 4 pictures: .*/s\.tar/a\.png is not a picture.*; .*/s\.tar/c\.png cannot"
    )
    with pytest.warns(UserWarning, match=message):
        assert [sample["key"] for sample in data.samples()] == ["s.tar/b.png", "s.tar/d.png"]


def test_what_is_another_picture_than_before(source, shards):
    inside = (source / "0000.png").read_bytes()
    for data, file in (
        (PictureFolder(source), source / "0000.png"),
        (PictureShards(shards), shards / "shard-000.tar"),
    ):
        data.use(WHOLE)
        pictures = data.pictures
        stamp = pictures[0]["stamp"]
        assert next(iter(data.loader([0]))).stamps == {0: stamp}
        raw = file.read_bytes()
        first = raw.index(inside)
        assert (stamp.size, stamp.checksum) == (len(inside), zlib.crc32(inside))
        os.utime(file, ns=(0, 0))
        assert not pictures.changed(0, stamp)  # a copy
        file.write_bytes(raw[: first + 60] + bytes(4) + raw[first + 64 :])
        assert pictures.changed(0, stamp)
        file.unlink()
        assert pictures.changed(0, stamp)


def test_shard_that_is_gone_leaves_its_pictures_unreadable(shards):
    data = PictureShards(shards)
    data.use(WHOLE)
    (shards / "shard-001.tar").unlink()
    (batch,) = data.loader([2, 3, 6])
    assert batch.indices.tolist() == [2, 6]
    assert batch.unreadable == {
        3: f"{shards / 'shard-001.tar'} cannot be read: No such file or directory"
    }


def test_shard_that_is_cut_off_anywhere(shards):
    path = shards / "shard-000.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        first, *_, end = tar.getmembers()
    last = end.offset_data + -(-end.size // 512) * 512  # where the tar file's end is marked
    for length in [*range(first.offset_data, last + 1, 512), last - 1, end.offset_data + 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"shard-000\.tar is cut off or damaged at byte \d+, "):
            PictureShards(shards)
    damaged = bytearray(whole)
    damaged[end.offset + 5] ^= 1  # in a header, whose checksum then is wrong
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=rf"damaged at byte {end.offset}, after 2 pictures"):
        PictureShards(path)


def test_shards_that_cannot_be_used(shards, tmp_path, source):
    (tmp_path / "words.tar").write_text("this is no tar file" * 100)
    (tmp_path / "empty.tar").touch()
    with tarfile.open(tmp_path / "gzip.tar", "w:gz") as tar:
        tar.add(source / "0000.png", "0000.png")
    for name in ("words.tar", "empty.tar", "gzip.tar"):
        with pytest.raises(InputError, match=f"{name} is not a tar file, or a compressed one"):
            PictureShards(tmp_path / name)
    write_tar(tmp_path / "labels.tar", {"0001.cls": b"3", "0002.json": b"{}"})
    write_tar(tmp_path / "nothing.tar", {})
    for name in ("labels.tar", "nothing.tar"):
        with pytest.raises(InputError, match=f"{name} holds no picture; give one with 0001.jpg"):
            PictureShards(tmp_path / name)
    write_tar(tmp_path / "twice.tar", {"a.png": b"", "b.png": b"", "./b.png": b""})
    with pytest.raises(InputError, match=r"twice\.tar holds b\.png twice"):
        PictureShards(tmp_path / "twice.tar")
    with pytest.raises(InputError, match=r"source holds no \.tar file; PictureFolder reads"):
        PictureShards(source)


def test_patterns_that_cannot_be_used(shards):
    for pattern, message in {
        "shard-{000..003}.tar": r"shard-003\.tar does not exist",
        "shards-000.tar": r"shards-000\.tar does not exist; did you mean 'shard-000\.tar'",
        "shard-{}.tar": r"the braces in .*shard-\{\}\.tar name nothing; give a range",
        "shard-{000..002.tar": r"shard-\{000\.\.002\.tar is no brace pattern: Unbalanced braces",
        "shard-${NONE}.tar": r"is no brace pattern: .*missing environment variable",
    }.items():
        with pytest.raises(InputError, match=message):
            PictureShards(shards / pattern)


# ------------------------------------------------------------ loader, Lightning


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_gives_what_was_asked_for(folder, workers):
    data = PictureFolder(folder, recursive=True, batch_size=2, num_workers=workers)
    data.use(WHOLE)
    assert data.pictures.keys == ["a.JPG", "b.jpg", "c.png", "d.png", "deeper/a.png", "e.webp"]
    asked = [5, 0, 3, 1, 2]
    batches = list(data.loader(asked))
    assert [batch.indices.tolist() for batch in batches] == [[5, 0], [], [2]]
    assert [list(batch.unreadable) for batch in batches] == [[], [3, 1], []]
    assert [len(batch.pictures) for batch in batches] == [2, 0, 1]
    reasons = batches[1].unreadable
    assert reasons[1] == f"{folder / 'b.jpg'} is not a picture in a format that Pillow reads"
    assert reasons[3].startswith(f"{folder / 'd.png'} cannot be read as a picture: ")
    for batch in batches:
        for index, picture in zip(batch.indices.tolist(), batch.pictures, strict=True):
            expected = data.pictures[index]["picture"]
            torch.testing.assert_close(picture, expected, atol=0, rtol=0)


class Mean(LightningModule):
    """The mean of each picture; trains on numbers of its own."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def setup(self, stage):
        data = self.trainer.datamodule
        data.use(WHOLE)
        data.serve("train", DataLoader([1.0, 2.0, 3.0]))
        data.serve("predict", data.loader(range(len(data.pictures))))

    def training_step(self, batch, batch_idx):
        self.seen.append(batch.item())
        return self.weight.sum() * batch.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def predict_step(self, batch, batch_idx):
        return batch.indices, batch.unreadable, batch.pictures.mean((1, 2, 3))


QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def test_predict_with_lightning(folder):
    for name in ("aa.jpg", "ab.jpg"):  # with a.JPG a batch, then one where nothing can be read
        (folder / name).write_text("no")
    data = PictureFolder(folder, batch_size=2)
    predictions = Trainer(**QUIET).predict(Mean(), data)
    read = torch.cat([indices for indices, _, _ in predictions]).tolist()
    keys = [data.pictures.keys[index] for index in read]
    assert keys == ["a.JPG", "c.png", "e.webp"]
    unreadable = [index for _, reasons, _ in predictions for index in reasons]
    assert sorted(read + unreadable) == list(range(7))
    means = torch.cat([mean for _, _, mean in predictions])
    expected = torch.stack([prepare(decode(folder / key), WHOLE).mean() for key in keys])
    torch.testing.assert_close(means, expected)
    with pytest.raises(RuntimeError, match=r"no sweep; read these pictures with samples\(\)"):
        PictureFolder(folder).predict_dataloader()


def test_fit_uses_the_objectives_own_loader(folder):
    module = Mean()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on workers and logging
        Trainer(max_epochs=1, **QUIET).fit(module, datamodule=PictureFolder(folder))
    assert module.seen == [1.0, 2.0, 3.0]
    with pytest.raises(RuntimeError, match="no training data"):
        PictureFolder(folder).train_dataloader()


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("PictureFile", 1),
        ("PictureFolder", 4),
        ("ImageFolder", 12),
        ("PictureShards", 7),
        ("VetoedShapesPictures", 3),
    ],
)
def test_every_module_is_made_from_its_short_name(name, count, classes, shards):
    path = {
        "PictureFile": classes / "duck" / "0.png",
        "PictureFolder": classes / "duck",
        "ImageFolder": classes,
        "PictureShards": shards,
    }.get(name)
    arguments = {"size": 3} if path is None else {"path": str(path)}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(PictureData, "data")
    config = parser.parse_object({"data": {"class_path": name, "init_args": arguments}})
    data = parser.instantiate(config).data
    assert isinstance(data, getattr(data_modules, name))
    data.use(WHOLE)
    samples = list(data.samples())
    assert len(samples) == count
    assert all(math.isfinite(sample["picture"].sum()) for sample in samples)
    made = json.loads(json.dumps(data.provenance))
    assert made["class_path"] == f"mti_lightning.data.pictures.{name}"
    again = getattr(data_modules, name)(**made["init_args"])
    again.use(WHOLE)
    assert again.pictures.keys == data.pictures.keys == [sample["key"] for sample in samples]
