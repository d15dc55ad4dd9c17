"""What every data module gives: pictures by index, batches, and Lightning its loaders."""

import json
import math
import os
import warnings
import zlib

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

import mti_lightning
from mti_lightning.backbone import Preprocessing
from mti_lightning.data.base import PictureData
from mti_lightning.data.datasets import PictureFiles
from mti_lightning.data.decode import decode, prepare
from mti_lightning.data.modules import ImageFolder, PictureFolder, PictureShards
from mti_lightning.data.shapes import VetoedShapesPictures
from mti_lightning.errors import InputError
from mti_lightning.features.feature import Feature
from tests.data.files import WHOLE


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


def test_odd_files_are_unreadable_at_once(tmp_path):
    os.mkfifo(tmp_path / "a_pipe.png")
    (tmp_path / "b_device.png").symlink_to("/dev/zero")
    with (tmp_path / "c_large.png").open("wb") as file:
        file.truncate(10 * 2**30)
    (tmp_path / "d_circle.png").symlink_to("d_circle.png")
    (tmp_path / "e_link.png").symlink_to("nowhere.png")
    (tmp_path / "f.png").mkdir()
    names = sorted(path.name for path in tmp_path.iterdir())
    pictures = PictureFiles(tmp_path, names, WHOLE)
    for index, told in enumerate(
        (
            "it is no regular file",
            "it is no regular file",
            "it has 10,240 MiB, and 1,024 are read at most",
            "Too many levels of symbolic links",
            "No such file or directory",
            "Is a directory",
        )
    ):
        with pytest.raises(InputError) as raised:
            pictures[index]
        assert str(raised.value) == f"{tmp_path / names[index]} cannot be read: {told}"


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
    assert isinstance(data, getattr(mti_lightning, name))
    data.use(WHOLE)
    samples = list(data.samples())
    assert len(samples) == count
    assert all(math.isfinite(sample["picture"].sum()) for sample in samples)
    made = json.loads(json.dumps(data.provenance))
    assert made["class_path"] == f"mti_lightning.{name}"
    again = getattr(mti_lightning, name)(**made["init_args"])
    again.use(WHOLE)
    assert again.pictures.keys == data.pictures.keys == [sample["key"] for sample in samples]
