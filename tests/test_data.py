"""Pictures of every mode and layout, against Pillow, timm and torchvision used directly."""

import math
import struct
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

from mti_lightning import data as data_modules
from mti_lightning.backbone import Preprocessing
from mti_lightning.data import (
    ImageFolder,
    PictureData,
    PictureFile,
    PictureFolder,
    VetoedShapesPictures,
    decode,
    prepare,
)
from mti_lightning.errors import InputError
from mti_lightning.vetoed_shapes import VetoedShapes

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
    assert [name.as_posix() for name in PictureFolder(folder, limit=3).names] == [
        "a.JPG",
        "b.jpg",
        "c.png",
    ]
    deep = PictureFolder(folder, recursive=True)
    assert [name.as_posix() for name in deep.names][-2:] == ["deeper/a.png", "e.webp"]
    assert len(PictureFolder(folder, limit=100).names) == 5
    with pytest.raises(InputError, match="limit 0: give 1 or more"):
        PictureFolder(folder, limit=0)


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


def test_limit_gives_each_class_its_share(classes, rng):
    Image.fromarray(colours(rng)).save(classes / "stray.png")
    names = [name.as_posix() for name in ImageFolder(classes, limit=6).names]
    assert [name.split("/")[0] for name in names] == ["drake"] * 2 + ["duck"] * 2 + ["goose"] * 2
    assert len(set(names)) == 6
    assert len(ImageFolder(classes, limit=99).names) == 12


def test_class_folders_behind_links(classes, tmp_path):
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "bird").symlink_to(classes / "duck")
    assert [name.as_posix() for name in ImageFolder(tmp_path / "linked", limit=1).names] == [
        "bird/0.png"
    ]


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
    for index, sample in enumerate(data.samples()):
        expected = world[index]
        assert sample["key"] == expected["key"]
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


# ------------------------------------------------------------ loader, Lightning


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_gives_what_samples_gives(folder, workers):
    data = PictureFolder(folder, recursive=True, batch_size=2, num_workers=workers)
    data.use(WHOLE)
    with pytest.warns(UserWarning, match="skipped 2 of 6"):
        batches = list(data.predict_dataloader())
    alone = PictureFolder(folder, recursive=True)
    alone.use(WHOLE)
    with pytest.warns(UserWarning, match="skipped 2 of 6"):
        samples = list(alone.samples())
    assert [key for batch in batches for key in batch["key"]] == [s["key"] for s in samples]
    pictures = torch.cat([batch["picture"] for batch in batches])
    torch.testing.assert_close(
        pictures, torch.stack([s["picture"] for s in samples]), atol=0, rtol=0
    )


class Mean(LightningModule):
    """The mean of each picture; trains on numbers of its own."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def setup(self, stage):
        self.trainer.datamodule.use(WHOLE)

    def train_dataloader(self):
        return DataLoader([1.0, 2.0, 3.0])

    def training_step(self, batch, batch_idx):
        self.seen.append(batch.item())
        return self.weight.sum() * batch.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def predict_step(self, batch, batch_idx):
        return batch["key"], batch["picture"].mean((1, 2, 3))


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
    with pytest.warns() as caught:
        predictions = Trainer(**QUIET).predict(Mean(), data)
    assert any("skipped 4 of 7" in str(warning.message) for warning in caught)
    keys = [key for batch, _ in predictions for key in batch]
    assert keys == ["a.JPG", "c.png", "e.webp"]
    means = torch.cat([mean for _, mean in predictions])
    expected = torch.stack([prepare(decode(folder / key), WHOLE).mean() for key in keys])
    torch.testing.assert_close(means, expected)


def test_fit_uses_the_objectives_own_loader(folder):
    module = Mean()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on workers and logging
        Trainer(max_epochs=1, **QUIET).fit(module, datamodule=PictureFolder(folder))
    assert module.seen == [1.0, 2.0, 3.0]
    with pytest.raises(RuntimeError, match="no training data"):
        PictureFolder(folder).train_dataloader()


@pytest.mark.parametrize(
    "name", ["PictureFile", "PictureFolder", "ImageFolder", "VetoedShapesPictures"]
)
def test_every_module_is_made_from_its_short_name(name, classes):
    path = {"PictureFile": classes / "duck" / "0.png", "PictureFolder": classes / "duck"}.get(
        name, classes
    )
    arguments = {"size": 3} if name == "VetoedShapesPictures" else {"path": str(path)}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(PictureData, "data")
    config = parser.parse_object({"data": {"class_path": name, "init_args": arguments}})
    data = parser.instantiate(config).data
    assert isinstance(data, getattr(data_modules, name))
    data.use(WHOLE)
    samples = list(data.samples())
    assert len(samples) == {"PictureFile": 1, "PictureFolder": 4, "ImageFolder": 12}.get(name, 3)
    assert all(math.isfinite(sample["picture"].sum()) for sample in samples)
