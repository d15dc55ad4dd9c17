"""Tar files: the same pictures as in a folder, and webdataset's layout."""

import io
import multiprocessing
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from webdataset import TarWriter
from webdataset.tariterators import group_by_keys, tar_file_expander

from mti_lightning.data.datasets import LostError
from mti_lightning.data.decode import decode, prepare
from mti_lightning.data.modules import PictureFolder, PictureShards
from mti_lightning.errors import InputError
from tests.data.files import SHARDED, WHOLE, save_cut_off, write_tar


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


@pytest.mark.parametrize("workers", [0, 1])
def test_shard_that_is_gone_says_nothing_of_its_pictures(shards, workers):
    data = PictureShards(shards, num_workers=workers)
    data.use(WHOLE)
    (shards / "shard-001.tar").unlink()
    (batch,) = data.loader([2, 6])
    assert batch.indices.tolist() == [2, 6]
    with pytest.raises(LostError) as raised:
        next(iter(data.loader([2, 3, 6])))
    assert str(raised.value) == (
        f"{shards / 'shard-001.tar'} cannot be read: No such file or directory; is its disk still "
        "there?"
    )


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


def test_hard_links_are_pictures_and_what_is_left_out_is_told(tmp_path, source, caplog):
    data = (source / "0000.png").read_bytes()
    tar_file = write_tar(tmp_path / "s.tar", {"a.png": data, "b.v2.png": data, "c.json": b"{}"})
    with tarfile.open(tar_file, "a") as tar:
        for kind, name in ((tarfile.LNKTYPE, "hard.png"), (tarfile.SYMTYPE, "soft.png")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.png"
            tar.addfile(info)
    with caplog.at_level("INFO", "mti_lightning"):
        shards = PictureShards(tar_file)
    assert shards.keys == ["s.tar/a.png", "s.tar/hard.png"]
    assert "s.tar: left out 2 such as b.v2.png: " in caplog.text
    shards.use(WHOLE)
    first, second = (sample["picture"] for sample in shards.samples())
    torch.testing.assert_close(first, second, atol=0, rtol=0)
