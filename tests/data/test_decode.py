"""Pictures are decoded as other libraries do, and prepared as timm does."""

import subprocess
from zlib import crc32

import numpy as np
import pytest
import timm.data
import torch
from PIL import EpsImagePlugin, Image, ImageCms, PngImagePlugin

from mti_lightning.backbone import Preprocessing
from mti_lightning.data import decode as decoding
from mti_lightning.data.decode import MOST_MEGAPIXELS, decode, least_side, prepare, suffixes
from mti_lightning.errors import InputError
from tests.data.files import GREYS, PHOTOGRAPHS, levels


def test_photographs_decode_as_pillow_does():
    for name in ("china.jpg", "flower.jpg"):
        with Image.open(PHOTOGRAPHS / name) as image:
            expected = np.asarray(image)
        assert expected.shape == (427, 640, 3)
        np.testing.assert_array_equal(np.asarray(decode(PHOTOGRAPHS / name)), expected)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_large_jpegs_come_out_the_same_at_a_reduced_scale(tmp_path, crop_mode):
    preprocessing = Preprocessing((32, 32), 0.9, crop_mode, "bicubic")
    least = least_side(preprocessing)
    assert least == 89
    for name in ("china.jpg", "flower.jpg"):
        reduced = decode(PHOTOGRAPHS / name, least=least)
        assert reduced.size == (160, 107)
        found, wanted = (
            prepare(image, preprocessing) for image in (reduced, decode(PHOTOGRAPHS / name))
        )
        assert (found - wanted).abs().mean() < 1 / 255
    Image.open(PHOTOGRAPHS / "china.jpg").save(tmp_path / "china.png")
    for path, at_least in ((PHOTOGRAPHS / "china.jpg", 214), (tmp_path / "china.png", 32)):
        assert decode(path, least=at_least).size == (640, 427)  # not large enough, or no JPEG
    assert least_side(Preprocessing((32, 32), 0.9, crop_mode, "nearest")) is None


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


@pytest.mark.parametrize("white", [255, 4095, 65535])
def test_fewer_bits_in_16_keep_their_range(tmp_path, white):
    Image.fromarray(np.round(GREYS * white).astype(np.uint16)).save(tmp_path / "grey.png")
    np.testing.assert_allclose(levels(tmp_path / "grey.png")[..., 0], GREYS, atol=0.003)


def test_a_file_that_says_what_is_white_is_believed(tmp_path):
    dark = Image.fromarray(np.round(GREYS * 4095).astype(np.uint16))
    dark.save(tmp_path / "plain.png")
    held = (tmp_path / "plain.png").read_bytes()
    chunk = b"sBIT\x0c"
    sbit = len(chunk[4:]).to_bytes(4, "big") + chunk + crc32(chunk).to_bytes(4, "big")
    (tmp_path / "told.png").write_bytes(held[:33] + sbit + held[33:])  # behind IHDR
    dark.save(tmp_path / "told.tif", tiffinfo={281: 65535})
    dark.save(tmp_path / "twelve.tif", tiffinfo={281: 4095})
    dark.save(tmp_path / "told.pgm")
    for name, share in (("told.png", 16), ("told.tif", 16), ("told.pgm", 16), ("twelve.tif", 1)):
        read = levels(tmp_path / name)[..., 0]
        np.testing.assert_allclose(read, GREYS / share, atol=0.003, err_msg=name)


def test_what_is_assumed_of_16_bits_is_said_once(tmp_path, caplog):
    caplog.set_level("INFO")
    decoding._say_assumed.cache_clear()
    for white in (4095, 4000, 65535):
        Image.fromarray(np.round(GREYS * white).astype(np.uint16)).save(tmp_path / "grey.png")
        levels(tmp_path / "grey.png")
    assert len(caplog.messages) == 1
    assert "nothing above 4095" in caplog.text


def test_no_program_is_run_to_decode(tmp_path, monkeypatch):
    """Pillow gives PostScript to gs, whatever the file is called."""
    ran = []
    monkeypatch.setattr(subprocess, "check_call", lambda *given, **_: ran.append(given))
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    for end in ("jpg", "png", "tif"):
        picture = (tmp_path / "a.eps").rename(tmp_path / f"a.{end}")
        with pytest.raises(InputError, match="is not a picture in a format that"):
            decode(picture)
        picture.rename(tmp_path / "a.eps")
    assert not ran
    assert {".eps", ".ps", ".wmf"}.isdisjoint(suffixes())
    assert {".jpg", ".png", ".tif", ".webp", ".bmp", ".gif"} <= suffixes()


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


def test_a_picture_of_very_many_pixels_is_refused_unless_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv(MOST_MEGAPIXELS, "0.5")
    Image.new("RGB", (1000, 500)).save(tmp_path / "small.png")
    Image.new("L", (1000, 501)).save(tmp_path / "large.png")
    assert decode(tmp_path / "small.png").size == (1000, 500)
    with pytest.raises(InputError, match=rf"has 1 megapixels, and 0.5 .*{MOST_MEGAPIXELS} in"):
        decode(tmp_path / "large.png")
    monkeypatch.delenv(MOST_MEGAPIXELS)
    assert decode(tmp_path / "large.png").size == (1000, 501)


@pytest.mark.parametrize("compressed", [False, True])
def test_megabytes_of_text_beside_the_pixels_are_no_damage(tmp_path, compressed):
    text = PngImagePlugin.PngInfo()
    for name in ("prompt", "workflow"):
        text.add_text(name, "a" * 3_000_000, zip=compressed)
    Image.new("RGB", (40, 40), "red").save(tmp_path / "drawn.png", pnginfo=text)
    assert decode(tmp_path / "drawn.png").getpixel((20, 20)) == (255, 0, 0)


def test_pictures_of_two_cameras_are_found(tmp_path):
    Image.new("RGB", (40, 40), "red").save(tmp_path / "stereo.mpo", format="MPO")
    assert ".mpo" in suffixes()
    assert decode(tmp_path / "stereo.mpo").size == (40, 40)
