"""Views and random streams."""

import subprocess
import sys

import pytest
import torch
from torch.nn.functional import interpolate

from mti_lightning import InputError
from mti_lightning.streams import stream, stream_key
from mti_lightning.views import Views, resample, whole


def canvas(height: int = 60, width: int = 80, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(20, 30), (40, 40), (90, 70)])
def test_resampling_a_box_is_an_anti_aliased_crop_and_resize(size: tuple[int, int]) -> None:
    pictures = canvas()
    top, left, height, width = 6, 8, 48, 60
    box = torch.tensor([[top / 60, left / 80, height / 60, width / 80]]).expand(2, 4)
    whole_picture = torch.nn.functional.pad(pictures, (0, 0, 0, 0))[:, :, top : top + height, left : left + width]
    expected = interpolate(whole_picture, size, mode="bilinear", antialias=True)
    got = resample(pictures, box, size)
    inner = (..., slice(3, -3), slice(3, -3))  # at the border the crop's neighbours are seen, too
    torch.testing.assert_close(got[inner], expected[inner], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(whole(pictures, size), interpolate(pictures, size, mode="bilinear", antialias=True), atol=1e-5, rtol=1e-4)


def test_each_picture_has_a_box_of_its_own() -> None:
    pictures = canvas()
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]])
    torch.testing.assert_close(resample(pictures, boxes, (30, 40))[0], pictures[0, :, :30, :40])
    torch.testing.assert_close(resample(pictures, boxes, (30, 40))[1], pictures[1, :, 30:, 40:])


def test_a_view_is_the_keys_and_the_steps_own() -> None:
    pictures = canvas(count=3)
    views = Views(count=2)
    together = views(pictures, [5, 6, 7], 11, (32, 48))
    assert together.shape == (6, 3, 32, 48)
    assert torch.equal(together[2:4], views(pictures[1:2], [6], 11, (32, 48)))
    assert not torch.equal(together[2], together[3])
    assert not torch.equal(together, views(pictures, [5, 6, 7], 12, (32, 48)))


def test_boxes_stay_on_the_canvas_and_keep_their_range() -> None:
    height, width = 200, 200
    rows = torch.arange(height).float()[:, None].expand(height, width)
    columns = torch.arange(width).float()[None].expand(height, width)
    ramp = torch.stack([rows, columns, rows])[None]
    views = Views(count=200, box=(0.5, 0.6), jitter=0.3, noise=0.0)
    seen = views(ramp, [1], 0, (100, 100))
    sides = (seen[:, 0, -2, 50] - seen[:, 0, 1, 50]) / 97 * 100 / height  # of a linear ramp the slope is the scale
    assert sides.min() > 0.49
    assert sides.max() < 0.61
    assert seen.min() >= 0
    assert seen.max() <= height - 1
    assert sides.std() > 0.02


def test_noise_is_uniform_plus_gaussian_of_the_stated_deviation() -> None:
    grey = torch.full((1, 3, 200, 200), 0.5)
    noise = Views(noise=0.02)(grey, [1], 0, (200, 200)) - 0.5
    assert noise.std().item() == pytest.approx(0.02 * 2**0.5, rel=0.02)
    assert noise.mean().abs() < 1e-3


def test_gradients_reach_every_pixel_of_the_box() -> None:
    pictures = canvas(count=1).requires_grad_()
    resample(pictures, torch.tensor([[0.0, 0.0, 0.5, 1.0]]), (10, 10)).sum().backward()
    assert pictures.grad is not None
    assert (pictures.grad[0, 0, :29] > 0).all()
    assert not pictures.grad[0, 0, 35:].any()


@pytest.mark.parametrize("wrong", [{"count": 0}, {"box": (0.9, 0.5)}, {"box": (0.5, 1.5)}, {"noise": -1.0}])
def test_impossible_views_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match="0 < smallest <= largest box <= 1"):
        Views(**wrong)  # type: ignore[arg-type]


def test_streams_are_the_same_in_every_process() -> None:
    code = "from mti_lightning.streams import *; import torch; k = stream_key(0, 'fc:1', 'a'); print(k, torch.rand(3, generator=stream(k, 4)).tolist())"
    outputs = {
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."}).stdout
        for seed in ("0", "1")
    }
    key = stream_key(0, "fc:1", "a")
    assert outputs == {f"{key} {torch.rand(3, generator=stream(key, 4)).tolist()}\n"}
    assert len({stream_key(seed, "fc:1", "a") for seed in range(100)}) == 100
    assert stream_key("ab", "c") != stream_key("a", "bc")
