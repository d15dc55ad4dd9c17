"""The vetoed shapes, its truth and its backbone."""

import os
import socket
import subprocess
import sys
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file
from torch import Tensor, nn
from torchmetrics.classification import BinaryAveragePrecision, MultilabelAveragePrecision

from mti_lightning.errors import InputError
from mti_lightning.vetoed_shapes.backbone import WEIGHTS, VetoedShapesClassifier, disturb
from mti_lightning.vetoed_shapes.world import (
    KINDS,
    PICTURE_SIZE,
    Sample,
    Shape,
    VetoedShapes,
    VetoedShapesData,
    veto_of,
)

SPLITS = ["train", "validation", "test"]
CONTENTS = ["random", "tense", "overlap"]

contents_of = pytest.mark.parametrize("contents", CONTENTS)


def digest(split: str, contents: str, seed: int = 3) -> str:
    world = VetoedShapes(6, seed, split, contents)
    result = sha256()
    for index in (5, 0, 2):  # in any order
        sample = world[index]
        for name in ("picture", "present", "label", "tense"):
            result.update(sample[name].numpy().tobytes())
        result.update(world.masks(index).numpy().tobytes())
    return result.hexdigest()


@cache
def network() -> nn.Module:
    return timm.create_model("vetoed_shapes_resnet", pretrained=True).eval().requires_grad_(False)


def logits(pictures: Tensor) -> Tensor:
    return torch.cat([network()((part - 0.5) / 0.25) for part in pictures.split(64)])


# ------------------------------------------------------------ the pictures


def test_other_processes_draw_the_same() -> None:
    code = (
        "import numpy, torch; numpy.random.seed(8); torch.manual_seed(8)\n"
        "from tests.test_vetoed_shapes import CONTENTS, SPLITS, digest\n"
        "print([digest(split, contents) for split in SPLITS for contents in CONTENTS])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    own = [digest(split, contents) for split in SPLITS for contents in CONTENTS]
    assert done.stdout.strip() == str(own)


def test_no_picture_is_drawn_twice() -> None:
    drawn, keys = set(), set()
    for split in SPLITS:
        for contents in CONTENTS:
            for seed in (0, 1):
                world = VetoedShapes(6, seed, split, contents)
                for index in range(6):
                    drawn.add(world[index]["picture"].numpy().tobytes())
                    keys.add(world[index]["key"])
    assert len(drawn) == len(keys) == 3 * 3 * 2 * 6


@contents_of
def test_the_key_draws_the_picture_again(contents: str) -> None:
    sample = VetoedShapes(20, 4, "validation", contents)[13]
    of_key, split, seed, index = sample["key"].split("/")
    again = VetoedShapes(int(index) + 1, int(seed), split, of_key)[int(index)]
    assert torch.equal(again["picture"], sample["picture"])


@contents_of
def test_truth_follows_from_the_scene(contents: str) -> None:
    world = VetoedShapes(64, 2, "test", contents)
    for index, sample in enumerate(world):
        kinds = {shape.kind for shape in world.scene(index)}
        assert len(kinds) == len(world.scene(index))
        for kind in range(len(KINDS)):
            there, vetoed = kind in kinds, (kind + 3) % 8 in kinds
            truth = [sample[name][kind].item() for name in ("present", "label", "tense")]
            assert truth == [there, there and not vetoed, there and vetoed]
        assert 0 <= sample["picture"].min() < sample["picture"].max() <= 1
        assert sample["picture"].shape == (3, PICTURE_SIZE, PICTURE_SIZE)


@pytest.mark.parametrize("contents", ["random", "tense", "overlap"])
def test_kinds_are_known_without_drawing(contents: str) -> None:
    world = VetoedShapes(60, 2, contents=contents)
    for index in range(60):
        assert sorted(world.kinds(index)) == sorted(shape.kind for shape in world.scene(index))


def test_random_contents() -> None:
    world = VetoedShapes(400, 9)
    samples = [world[index] for index in range(400)]
    counts = torch.stack([sample["present"] for sample in samples]).sum(1)
    assert set(counts.tolist()) == {1, 2, 3}
    present = torch.stack([sample["present"] for sample in samples]).mean(0)
    assert present.min() > 0.15
    tense = torch.stack([sample["tense"] for sample in samples])
    assert 0.02 < tense.mean(0).min() < tense.mean(0).max() < 0.15
    # Apart where there is room, which there nearly always is.
    together = [touching(world.scene(index)) for index in range(400)]
    assert np.mean(together) < 0.1


def touching(shapes: list[Shape]) -> bool:
    coverage = sum((shape.coverage() > 0.5).astype(int) for shape in shapes)
    return bool((coverage > 1).any())


@pytest.mark.parametrize("contents", ["tense", "overlap"])
def test_tense_contents(contents: str) -> None:
    world = VetoedShapes(240, 1, "test", contents)
    on_top, touch, visible = [], [], []
    for index in range(240):
        kind, shapes = index % 8, world.scene(index)
        assert {shape.kind for shape in shapes} == {kind, veto_of(kind)}
        assert world[index]["tense"].nonzero().flatten().tolist()[:1] == [kind]
        on_top.append(shapes[-1].kind == kind)
        touch.append(touching(shapes))
        lower = shapes[0]
        covered = torch.from_numpy(lower.coverage() > 0.5).sum()
        visible.append((world.masks(index)[lower.kind].sum() / covered).item())
    if contents == "tense":
        assert sum(touch) <= 2
        assert np.mean(visible) > 0.99
    else:
        assert np.mean(touch) > 0.98
        assert 0.4 < np.mean(on_top) < 0.6
        assert np.mean(np.array(visible) > 0.2) > 0.98
        assert 0.5 < np.median(visible) < 0.8


@contents_of
def test_masks_hold_what_is_visible(contents: str) -> None:
    world = VetoedShapes(48, 6, "test", contents)
    for index in range(48):
        picture, masks = world[index]["picture"], world.masks(index)
        assert masks.sum(0).max() <= 1  # one shape per pixel is on top
        shapes = world.scene(index)
        assert {shape.kind for shape in shapes} >= set(
            masks.any((1, 2)).nonzero().flatten().tolist()
        )
        outside = torch.ones(PICTURE_SIZE, PICTURE_SIZE, dtype=torch.bool)
        for shape in shapes:
            outside &= torch.from_numpy(shape.coverage() == 0)
        for order, shape in enumerate(shapes):
            mask = masks[shape.kind]
            full = torch.from_numpy(shape.coverage() == 1) & mask
            for above in shapes[order + 1 :]:
                full &= torch.from_numpy(above.coverage() == 0)
            colour = torch.tensor(shape.colour)[:, None]
            difference = (picture[:, full] - colour).abs()
            assert difference.numel() == 0 or difference.max() < 0.06  # noise of 0.01
            # The mask is all of it but the rim, which shares its pixels with others.
            assert mask.sum() - full.sum() <= 0.6 * mask.sum() + 20
            assert not (mask & outside).any()
        # Where no shape is, there is the background: no flat colour.
        assert picture[:, outside].std(1).max() > 0.03


@pytest.mark.parametrize("kind", range(8), ids=KINDS)
def test_coverage_is_of_a_turned_and_scaled_shape(kind: int) -> None:
    placed = Shape(kind, 47.5, 47.5, 16.0, 0.0, (1, 1, 1)).coverage()
    assert 0.15 < placed.sum() / (np.pi * 16**2) < 0.9
    rows, columns = np.mgrid[:96, :96] - 47.5
    assert placed[np.hypot(rows, columns) > 1.15 * 16].max() == 0
    turned = Shape(kind, 47.5, 47.5, 16.0, np.pi / 2, (1, 1, 1)).coverage()
    assert any(np.abs(np.rot90(placed, turns) - turned).max() < 1e-6 for turns in (1, 3))
    moved = Shape(kind, 40.5, 52.5, 16.0, 0.0, (1, 1, 1)).coverage()
    np.testing.assert_allclose(np.roll(placed, (-7, 5), (0, 1)), moved, atol=1e-9)
    larger = Shape(kind, 47.5, 47.5, 32.0, 0.0, (1, 1, 1)).coverage()
    assert larger.sum() / placed.sum() == pytest.approx(4, rel=0.03)


def test_no_two_kinds_look_alike() -> None:
    drawn = [Shape(kind, 47.5, 47.5, 16.0, 0.0, (1, 1, 1)).coverage() > 0.5 for kind in range(8)]
    for kind, one in enumerate(drawn):
        for other in drawn[:kind]:
            assert (one ^ other).sum() > 0.15 * (one | other).sum()


def test_a_world_ends() -> None:
    world = VetoedShapes(3)
    assert len(list(world)) == len(world) == 3
    for index in (3, -1):
        with pytest.raises(IndexError, match=f"picture {index} of a world of 3"):
            world[index]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": 0}, "a world of 0 pictures: give a size of 1 or more"),
        ({"seed": -1}, "a world of seed -1: give 0 or more"),
        ({"split": "trian"}, "split 'trian' is none of train, validation, test"),
        ({"contents": "calm"}, "contents 'calm' is none of random, tense, overlap"),
    ],
    ids=str,
)
def test_worlds_that_cannot_be(given: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as error:
        VetoedShapes(**given)
    assert str(error.value) == message


def test_data_module_feeds_its_own_splits() -> None:
    data = VetoedShapesData(5, 3, seed=4, batch_size=2, num_workers=0)
    for loader, split, size in (
        (data.train_dataloader(), "train", 5),
        (data.val_dataloader(), "validation", 3),
    ):
        pictures = torch.cat([batch["picture"] for batch in loader])
        world = VetoedShapes(size, 4, split)
        assert torch.equal(pictures, torch.stack([sample["picture"] for sample in world]))


# ------------------------------------------------------------ the backbone


@pytest.mark.parametrize("model_name", WEIGHTS)
def test_weights_are_small_and_need_no_network(
    model_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("the network was asked for")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    with pytest.raises(AssertionError, match="asked for"):
        socket.create_connection(("localhost", 9))
    model = timm.create_model(model_name, pretrained=True)
    assert WEIGHTS[model_name].stat().st_size < 4e6
    state, shipped = model.state_dict(), load_file(WEIGHTS[model_name])
    assert state.keys() == shipped.keys()
    assert all(torch.equal(state[name], value) for name, value in shipped.items())


def test_mean_average_precision_on_fresh_pictures() -> None:
    world = VetoedShapes(2048, seed=11, split="test")
    samples = list(world)
    scores = logits(torch.stack([sample["picture"] for sample in samples]))
    truth = torch.stack([sample["label"] for sample in samples])
    assert MultilabelAveragePrecision(len(KINDS))(scores, truth.long()) >= 0.99
    # Vetoes are heeded: of the pictures that hold a shape, those without its veto stand out.
    tense = torch.stack([sample["tense"] for sample in samples])
    for kind in range(len(KINDS)):
        held = (truth + tense)[:, kind] == 1
        calm = BinaryAveragePrecision()(scores[held, kind].sigmoid(), truth[held, kind].long())
        vetoed = BinaryAveragePrecision()((-scores[held, kind]).sigmoid(), tense[held, kind].long())
        assert calm > 0.95  # chance is about 0.75
        assert vetoed > 0.8  # chance is about 0.25


def test_disturbed_pictures() -> None:
    world = VetoedShapes(64, 8)
    pictures = torch.stack([sample["picture"] for sample in world])
    kept = pictures.clone()
    torch.manual_seed(4)
    disturbed = disturb(pictures)
    assert torch.equal(pictures, kept)
    assert 0 <= disturbed.min() < disturbed.max() <= 1
    difference = (disturbed - pictures).abs().mean((1, 2, 3))
    assert (difference > 0.02).float().mean() > 0.6  # five respects, half of them each
    assert difference.min() < 0.01
    torch.manual_seed(4)
    assert torch.equal(disturb(pictures), disturbed)


def test_an_attack_raises_the_loss_and_stays_near() -> None:
    classifier = VetoedShapesClassifier(adversarial=0.02).eval()
    classifier.network.load_state_dict(load_file(WEIGHTS["vetoed_shapes_resnet"]))
    samples: list[Sample] = list(VetoedShapes(32, 8, "train"))
    pictures = torch.stack([sample["picture"] for sample in samples])
    truth = torch.stack([sample["label"] for sample in samples])
    attacked = classifier._attack(pictures, truth)
    assert 0.01 < (attacked - pictures).abs().mean() < (attacked - pictures).abs().max() < 0.0201
    assert classifier._loss(attacked, truth) > 1.5 * classifier._loss(pictures, truth)
    assert all(parameter.grad is None for parameter in classifier.parameters())


def test_the_narrow_network_shares_its_first_stages() -> None:
    wide, narrow = (load_file(file) for file in WEIGHTS.values())
    assert narrow["layer4.0.conv2.weight"].shape[0] == 6 < len(KINDS)
    own = ("layer4.", "fc.")
    shared = [name for name in wide if not name.startswith(own)]
    assert len(shared) > 50
    assert all(torch.equal(wide[name], narrow[name]) for name in shared)


def test_only_what_is_asked_for_is_trained(tmp_path: Path) -> None:
    before = load_file(WEIGHTS["vetoed_shapes_resnet"])
    classifier = VetoedShapesClassifier(
        "vetoed_shapes_narrow", start="vetoed_shapes_resnet", trained=("layer4", "fc")
    )
    Trainer(
        max_epochs=1,
        default_root_dir=tmp_path,
        logger=False,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(classifier, VetoedShapesData(32, 16, batch_size=16, num_workers=0))
    after = classifier.network.state_dict()
    for name, value in after.items():
        assert name.startswith(("layer4", "fc")) or torch.equal(value, before[name])
    moved = after["layer4.0.bn1.running_mean"].abs().sum()
    assert moved > 0


@pytest.mark.parametrize("target", ["label", "present"])
def test_training_writes_weights_that_timm_loads(tmp_path: Path, target: str) -> None:
    data = VetoedShapesData(64, 32, batch_size=16, num_workers=0)
    written = []
    for run in range(2):
        seed_everything(3)
        classifier = VetoedShapesClassifier(target=target, adversarial=0.02)
        trainer = Trainer(
            max_epochs=1,
            logger=CSVLogger(tmp_path, str(run)),
            accelerator="cpu",
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(classifier, data)
        assert 0 < trainer.callback_metrics["average_precision/validation"] <= 1
        written.append(Path(trainer.log_dir) / "weights.safetensors")
    model = timm.create_model(
        "vetoed_shapes_resnet", pretrained=True, pretrained_cfg_overlay={"file": str(written[0])}
    )
    trained, again = model.eval(), load_file(written[1])
    assert all(torch.equal(value, again[name]) for name, value in trained.state_dict().items())
    pictures = torch.stack([sample["picture"] for sample in VetoedShapes(2)])
    classifier.eval()
    torch.testing.assert_close(trained((pictures - 0.5) / 0.25), classifier(pictures))
