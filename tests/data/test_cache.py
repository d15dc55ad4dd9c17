"""Resized pictures that are kept: the same, and never another picture's."""

import os

import pytest
import torch
from PIL import Image

from mti_lightning.backbone import Preprocessing
from mti_lightning.data import datasets
from mti_lightning.data.base import READING
from mti_lightning.data.modules import PictureFolder, PictureShards
from mti_lightning.errors import InputError, RunError
from tests.data.files import WHOLE, colours


@pytest.fixture
def decoded(monkeypatch):
    """The names of what is decoded."""
    names, decode = [], datasets.decode
    monkeypatch.setattr(
        datasets, "decode", lambda raw, path, least: names.append(path.name) or decode(raw, path)
    )
    return names


def all_of(data, preprocessing=WHOLE):
    data.use(preprocessing)
    return {key: data.pictures[index] for index, key in enumerate(data.pictures.keys)}


def same(some, others):
    return [*some] == [*others] and all(
        torch.equal(some[key]["picture"], others[key]["picture"])
        and some[key]["stamp"] == others[key]["stamp"]
        for key in some
    )


def test_a_second_sweep_decodes_nothing(source, shards, tmp_path, decoded):
    for kind, path in ((PictureFolder, source), (PictureShards, shards)):
        plain = all_of(kind(path))
        decoded.clear()
        first = all_of(kind(path, cache=tmp_path / "cache"))
        assert len(decoded) == len(first) == 7
        decoded.clear()
        assert same(all_of(kind(path, cache=tmp_path / "cache")), first)
        assert same(first, plain)
        assert not decoded
    other = Preprocessing((16, 16), 1.0, "center", "bilinear")
    assert all_of(PictureFolder(source, cache=tmp_path / "cache"), other)
    assert len(decoded) == 7
    assert "cache" in READING


def test_what_has_changed_or_is_damaged_is_decoded_again(source, tmp_path, rng, decoded):
    data = PictureFolder(source, cache=tmp_path / "cache")
    all_of(data)
    Image.fromarray(colours(rng, 40, 40)).save(source / "0003.png")
    moment = (source / "0004.jpg").stat().st_mtime_ns + 10**9
    os.utime(source / "0004.jpg", ns=(moment, moment))
    kept = sorted(path for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert len(kept) == 7
    decoded.clear()
    now = all_of(data)
    assert decoded == ["0003.png", "0004.jpg"]
    assert same(now, all_of(PictureFolder(source)))
    kept[0].write_bytes(kept[0].read_bytes()[:-1])
    kept[1].write_bytes(kept[1].read_bytes()[:-1] + b"?")
    kept[2].write_bytes(b"")
    decoded.clear()
    assert same(all_of(data), now)
    assert len(decoded) == 3


def test_a_cache_that_cannot_be_written(source, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cache .*file is no folder"):
        PictureFolder(source, cache=tmp_path / "file")
    data = PictureFolder(source, cache=tmp_path / "file" / "cache")
    data.use(WHOLE)
    with pytest.raises(RunError, match=r"the cache .* cannot be written"):
        data.pictures[0]


def test_processes_read_where_it_is_worth_it(source, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(9), raising=False)
    monkeypatch.setattr("mti_lightning.data.base._FEW", 4)
    data = PictureFolder(source)
    data.use(WHOLE)
    assert data.loader(range(3)).num_workers == 0
    assert data.loader(range(7)).num_workers == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert data.loader(range(7)).num_workers == 1
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(os, "cpu_count", lambda: 40)
    assert data.loader(range(7)).num_workers == 8
    data = PictureFolder(source, num_workers=0)
    data.use(WHOLE)
    assert data.loader(range(7)).num_workers == 0
