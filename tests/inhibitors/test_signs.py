"""Signs of weights, against networks whose signs are known by construction."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mti_lightning import Backbone
from mti_lightning.cli import main
from mti_lightning.inhibitors.signs import find_signs
from mti_lightning.tables import read_table
from tests.sweep.test_module import WORLD


def test_a_network_of_dale_has_units_of_one_sign() -> None:
    backbone = Backbone(WORLD)
    head = backbone.network.get_submodule("fc")
    assert isinstance(head, nn.Linear)
    with torch.no_grad():  # half of the units excite all classes, the first inhibits all
        head.weight.abs_()
        head.weight[:, 0] *= -1
        head.weight[:6, 1] *= -1
        *_, found = find_signs(backbone)
    assert found.layer == "fc"
    np.testing.assert_allclose(np.delete(found.dale.numpy(), 1), 1)
    assert found.dale[1] < 0.95
    assert found.told_head.startswith("0 (100%), 1 (75%), 2 (0%)")
    weight = head.weight.double().numpy()
    assert found.negative == pytest.approx(-weight[weight < 0].sum() / abs(weight).sum())


def test_signs_at_random_have_the_index_that_is_told() -> None:
    found = find_signs(Backbone("resnet18", "random", arguments={"zero_init_last": False}))
    assert len(found) == 21
    for one in found[1:]:  # the first has but three units
        spread = 0.76 / len(one.dale) ** 0.5  # of the mean of so many |normal|, as a share of it
        assert float(one.dale.mean()) == pytest.approx(one.chance, rel=4 * spread)
        assert one.negative == pytest.approx(0.5, abs=0.02)


def test_a_negative_scale_turns_the_signs() -> None:
    backbone = Backbone(WORLD)
    before = next(one for one in find_signs(backbone) if one.layer == "conv1.6")
    with torch.no_grad():
        backbone.network.get_parameter("bn1.weight").neg_()
    after = next(one for one in find_signs(backbone) if one.layer == "conv1.6")
    assert after.negative == pytest.approx(1 - before.negative)


def test_groups_keep_to_themselves() -> None:
    found = {one.layer: one for one in find_signs(Backbone("mobilenetv2_050", "random"))}
    depthwise = found["blocks.1.0.conv_dw"]
    assert len(depthwise.dale) == 48
    assert depthwise.chance > 0.2  # of nine weights each


def test_the_command_compares_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, figure = tmp_path / "signs.csv", tmp_path / "signs.png"
    main(["signs", WORLD, WORLD, "--out", str(out), "--figure", str(figure)])
    said, rows = capsys.readouterr().out, read_table(out)
    assert {row["model"] for row in rows} == {WORLD}
    assert rows[-1]["layer"] == "fc"
    assert f"that inhibit most classes: {rows[-1]['inhibit_most_classes']}" in said
    assert all(0 <= float(row["negative"]) <= 1 for row in rows)
    assert figure.read_bytes().startswith(b"\x89PNG")
