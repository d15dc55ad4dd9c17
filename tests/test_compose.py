"""Transparency and the contact sheet."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import gaussian_blur

from mti_lightning.compose import composite, contact_sheet, opacity, to_image
from mti_lightning.errors import InputError


def test_a_picture_is_opaque_where_the_objective_looked_and_nowhere_else() -> None:
    saliency = torch.zeros(2, 60, 80)
    saliency[0, 10:30, 20:40] = 5
    saliency[1, 40:50, 60:70] = 1e-6  # its own scale, not the batch's
    alpha = opacity(saliency)
    assert alpha.shape == (2, 1, 60, 80)
    assert alpha[0, 0, 20, 30] == 1
    assert alpha[1, 0, 45, 65] == 1
    assert alpha[0, 0, 50, 70] == 0
    assert alpha[1, 0, 20, 30] == 0
    assert 0 < alpha[0, 0, 9, 30] < 1


def test_opacity_is_saliency_blurred_in_both_directions() -> None:
    saliency = torch.rand(2, 60, 80, generator=torch.Generator().manual_seed(0)) ** 8
    blurred = gaussian_blur(saliency[:, None], [7, 7], [1.2, 1.2])
    top = torch.quantile(blurred.flatten(1), 0.95, dim=1).view(2, 1, 1, 1)
    torch.testing.assert_close(opacity(saliency), (blurred / top).clamp(0, 1))


def test_a_picture_nobody_looked_at_is_transparent_not_nan() -> None:
    assert torch.equal(opacity(torch.zeros(1, 40, 40)), torch.zeros(1, 1, 40, 40))


def test_composite_and_image_keep_values() -> None:
    picture = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    alpha = torch.zeros(1, 5, 7)
    alpha[:, 2] = 1
    image = np.asarray(to_image(picture, alpha))
    assert image.shape == (5, 7, 4)
    assert np.array_equal(image[..., 3], (alpha[0] * 255).numpy())
    assert np.abs(image[..., :3] / 255 - picture.permute(1, 2, 0).numpy()).max() <= 0.5 / 255 + 1e-6
    laid = composite(picture[None], alpha[None])[0]
    assert torch.equal(laid[:, 2], picture[:, 2])
    assert laid[:, 0].unique().numel() == 1


def _run(folder: Path, objective: str, colour: tuple[int, int, int], source: str) -> Path:
    (folder / "pictures").mkdir(parents=True)
    Image.new("RGBA", (40, 40), (*colour, 255)).save(folder / "pictures" / "p.png")
    row = {
        "id": "p", "source": source, "feature": "fc:0", "objective": objective, "seed": "0",
        "response": "1.5", "excitation": "2", "inhibition": "0.5", "file": "pictures/p.png",
    }  # fmt: skip
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow(row)
    return folder


def test_the_sheet_lays_the_latest_versions_side_by_side(tmp_path: Path) -> None:
    _run(tmp_path / "plus" / "version_9", "positive", (90, 0, 9), "a.png")
    _run(tmp_path / "plus" / "version_10", "positive", (255, 0, 0), "a.png")
    _run(tmp_path / "mti" / "version_0", "mti", (0, 0, 255), "")
    sheet = contact_sheet([tmp_path / "plus", tmp_path / "mti"])
    colours = {colour for _, colour in sheet.getcolors(maxcolors=1 << 24) or []}
    assert {(255, 0, 0), (0, 0, 255)} <= colours
    assert (90, 0, 9) not in colours


def test_the_sheet_of_a_folder_without_results_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"holds no results.csv; give the folder of a finished run"
    ):
        contact_sheet([tmp_path])


@pytest.mark.parametrize("file", ["../secret.png", "/etc/hostname", "pictures/link.png"])
def test_the_sheet_shows_nothing_from_outside_a_runs_folder(tmp_path: Path, file: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    run = _run(tmp_path / "run", "positive", (255, 0, 0), "a.png")
    (run / "pictures" / "link.png").symlink_to(tmp_path / "secret.png")
    table = run / "results.csv"
    table.write_text(table.read_text().replace("pictures/p.png", file))
    with pytest.raises(InputError, match="which is outside it"):
        contact_sheet([run])
