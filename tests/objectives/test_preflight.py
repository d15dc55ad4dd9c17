"""What is found before any work."""

import re

import numpy as np
import pytest
import torch
from lightning import Trainer

from mti_lightning import (
    Attribution,
    Backbone,
    FourierPhase,
    Layer,
    MaximallyTense,
    PositiveInversion,
    VetoedShapesPictures,
)
from mti_lightning.attribution.methods import load_baseline
from mti_lightning.errors import InputError
from mti_lightning.objectives.preflight import check_bank, check_options, read_checkpoint

BANK = {"objective": "MaximallyTense", "batch_size": 16, "image 0": "a of stream 1"}


@pytest.mark.parametrize(
    ("held", "told"),
    [
        (None, "the checkpoint holds no images; give one such as tb_logs/"),
        ({**BANK, "batch_size": 8}, "was written with batch_size 8, not 16; go on with"),
        ({**BANK, "image 0": "b of stream 2"}, "image 0 b of stream 2, not a of stream 1; "),
        ({**BANK, "image 1": "b of stream 2"}, "with image 1 b of stream 2, not missing; "),
        ({"objective": "MaximallyTense", "batch_size": 16}, "image 0 missing, not a of stream 1"),
        (
            {"batch_size": 8, "objective": "SignedInversion"},
            "with objective SignedInversion, not MaximallyTense",
        ),
    ],
)
def test_the_first_difference_of_a_checkpoint_is_named(held, told):
    check_bank(dict(reversed(BANK.items())), BANK)
    with pytest.raises(InputError, match=re.escape(told)):
        check_bank(held, BANK)


@pytest.mark.parametrize("size", [0, 4, 100, 400])
def test_a_checkpoint_that_was_cut_off(tmp_path, size):
    whole = tmp_path / "whole.ckpt"
    torch.save({"state_dict": {"a": torch.zeros(100)}}, whole)
    assert read_checkpoint(whole)["state_dict"]["a"].shape == (100,)
    (tmp_path / "part.ckpt").write_bytes(whole.read_bytes()[:size])
    with pytest.raises(InputError, match=r"part\.ckpt' is no checkpoint; give one such as"):
        read_checkpoint(tmp_path / "part.ckpt")


def test_a_rehearsal_may_be_short():
    check_options(Trainer(fast_dev_run=True, accelerator="cpu"))


class Shifted(Attribution):
    differentiable = True
    needs_baseline = True

    def __init__(self, baseline):
        self.baseline = baseline

    def attribute(self, forward, create_graph):
        return forward.activations


def tense(precision="32-true", **options):
    given = {"backbone": Backbone("vetoed_shapes_resnet"), **options}
    objective = MaximallyTense(given.pop("backbone"), ["fc:3"], "layer4", **given)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(precision=precision, accelerator="cpu", **quiet)
    objective.set_up(trainer, None)
    return objective.provenance


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"backbone": Backbone("vetoed_shapes_resnet", "random")}, "weights"),
        ({"tension": "l2"}, "tension"),
        ({"imbalance": (0.1, 0.2)}, "imbalance"),
        ({"views": 2}, "views"),
        ({"attribution": Shifted("baseline.npy")}, "attribution"),
        ({"precision": "bf16-mixed"}, "precision"),
        ({"optimizer": lambda parameters: torch.optim.Adam(parameters, lr=0.2)}, "optimizer"),
        ({"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1)}, "optimizer"),
    ],
)
def test_a_checkpoint_of_another_making_is_refused(options, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("baseline.npy", np.ones(192, np.float32))
    check_bank(tense(), tense())
    with pytest.raises(InputError, match=f"the checkpoint was written with {told} "):
        check_bank(tense(), tense(**options))


def test_a_baseline_is_told_by_what_is_in_its_file(tmp_path):
    file = tmp_path / "baseline.npy"
    backbone, method = Backbone("vetoed_shapes_resnet"), Shifted(str(file))
    layout = backbone.layout(Layer("layer4"))
    made = []
    for value in (1, 2):
        np.save(file, np.full(192, value, np.float32))
        assert (load_baseline(method, layout) == value).all()
        made.append(tense(attribution=method))
    with pytest.raises(InputError, match="the checkpoint was written with attribution "):
        check_bank(*made)


@pytest.mark.parametrize("objective", [PositiveInversion, MaximallyTense])
def test_a_checkpoint_of_other_pictures_is_refused(objective):
    def made(seed):
        image = FourierPhase(magnitude="measured")
        given = Backbone("vetoed_shapes_resnet"), ["fc:0"], "layer4"
        images = objective(*given, image=image)
        images.build_bank(VetoedShapesPictures(1, seed=seed))
        return images.provenance

    check_bank(made(0), made(0))
    with pytest.raises(InputError, match=r"the checkpoint was written with (image 0|pictures) "):
        check_bank(made(0), made(1))


def test_a_byte_that_changed_in_a_checkpoint_is_noticed(tmp_path):
    whole = tmp_path / "whole.ckpt"
    torch.save({"state_dict": {"a": torch.linspace(0, 1, 500)}, "bank": {"epoch": 3}}, whole)
    held = whole.read_bytes()
    kept = read_checkpoint(whole)["state_dict"]["a"]
    noticed = 0
    for place in range(40, len(held), 97):
        (tmp_path / "part.ckpt").write_bytes(
            held[:place] + bytes([held[place] ^ 16]) + held[place + 1 :]
        )
        try:
            found = read_checkpoint(tmp_path / "part.ckpt")
        except InputError:
            noticed += 1
        else:  # between the parts of the archive
            assert torch.equal(found["state_dict"]["a"], kept)
            assert found["bank"] == {"epoch": 3}
    assert noticed > 20


@pytest.mark.parametrize("batches", [-1, 0, 2])
def test_every_step_moves_an_image(batches):
    trainer = Trainer(accelerator="cpu", logger=False)
    trainer.accumulate_grad_batches = batches
    with pytest.raises(InputError, match=f"accumulate_grad_batches: {batches} will not do"):
        check_options(trainer)
