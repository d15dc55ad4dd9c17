"""Folders and tar files of pictures."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from webdataset import ShardWriter

from tests.data.files import colours, save_cut_off


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


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


@pytest.fixture
def classes(tmp_path, rng) -> Path:
    root = tmp_path / "classes"
    for name in ("goose", "duck", "drake"):
        (root / name).mkdir(parents=True)
        for index in (1, 10, 2, 0):
            Image.fromarray(colours(rng, 16, 16)).save(root / name / f"{index}.png")
    (root / "duck" / "labels.csv").touch()
    return root


@pytest.fixture
def source(tmp_path, rng) -> Path:
    """Seven pictures of several formats and sizes."""
    root = tmp_path / "source"
    root.mkdir()
    for index in range(7):
        end = ("png", "jpg", "webp")[index % 3]
        Image.fromarray(colours(rng, 30 + index, 50)).save(root / f"{index:04}.{end}")
    return root


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
