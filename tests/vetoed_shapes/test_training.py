"""Training on the vetoed shapes."""

from pathlib import Path

import pytest
import timm
import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file

from mti_lightning.vetoed_shapes.backbone import WEIGHTS
from mti_lightning.vetoed_shapes.training import VetoedShapesClassifier, VetoedShapesData, disturb
from mti_lightning.vetoed_shapes.world import Sample, VetoedShapes


def test_data_module_feeds_its_own_splits() -> None:
    data = VetoedShapesData(5, 3, seed=4, batch_size=2, num_workers=0)
    for loader, split, size in (
        (data.train_dataloader(), "train", 5),
        (data.val_dataloader(), "validation", 3),
    ):
        pictures = torch.cat([batch["picture"] for batch in loader])
        world = VetoedShapes(size, 4, split)
        assert torch.equal(pictures, torch.stack([sample["picture"] for sample in world]))


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
