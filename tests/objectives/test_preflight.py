"""What is found before any work."""

import re

import pytest
import torch
from lightning import Trainer

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
