"""The shipped networks."""

import socket
from functools import cache

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchmetrics.classification import BinaryAveragePrecision, MultilabelAveragePrecision

from mti_lightning.vetoed_shapes.backbone import WEIGHTS
from mti_lightning.vetoed_shapes.shapes import KINDS
from mti_lightning.vetoed_shapes.world import VetoedShapes


@cache
def network() -> nn.Module:
    return timm.create_model("vetoed_shapes_resnet", pretrained=True).eval().requires_grad_(False)


def logits(pictures: Tensor) -> Tensor:
    return torch.cat([network()((part - 0.5) / 0.25) for part in pictures.split(64)])


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


def test_the_narrow_network_shares_its_first_stages() -> None:
    wide, narrow = (load_file(file) for file in WEIGHTS.values())
    assert narrow["layer4.0.conv2.weight"].shape[0] == 6 < len(KINDS)
    own = ("layer4.", "fc.")
    shared = [name for name in wide if not name.startswith(own)]
    assert len(shared) > 50
    assert all(torch.equal(wide[name], narrow[name]) for name in shared)
