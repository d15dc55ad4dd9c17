"""Norms folded into convolutions: the same values, and the network as it was."""

import copy

import pytest
import torch
from timm.models import register_model
from torch import Tensor, nn

from mti_lightning import Backbone, Layer
from mti_lightning.backbone.folding import Fold, find_folds
from mti_lightning.backbone.layers import usable_layers
from tests.backbone.networks import liven
from tests.backbone.test_layers import FAMILIES

NORMED = {
    **{name: size for name, size in FAMILIES.items() if "resnet" in name or "net_" in name},
    **{name: FAMILIES[name] for name in ("densenet121", "dla34", "levit_128s", "mobilevit_xxs")},
    **dict.fromkeys(("test_byobnet", "test_efficientnet", "vetoed_shapes_resnet")),
    **dict.fromkeys(("efficientnet_lite0", "inception_v3", "resnet50", "vgg11_bn"), (80, 80)),
}


def both(name: str, size: tuple[int, int] | None = None) -> tuple[Backbone, Backbone]:
    """Return a network folded, and one as timm makes it."""
    made = Backbone(name, "random", input_size=size), Backbone(name, "random", fold=False)
    made[1].preprocessing = made[0].preprocessing
    for backbone in made:
        liven(backbone.network)
    return made


def close(found: Tensor, wanted: Tensor, within: float = 1e-5) -> bool:
    return torch.allclose(found, wanted, 0, within * float(wanted.detach().abs().max()))


def check_every_layer(name: str, size: tuple[int, int] | None = None) -> None:
    """Check all layers in both precisions.

    A deep random network rounds by more than 1e-5 itself: then folding may double that.
    """
    folded, plain = both(name, size)
    pictures = folded.noise(2)
    layers = [one.layer for one in usable_layers(plain)]
    assert [one.layer for one in usable_layers(folded)] == layers
    with torch.no_grad():
        assert close(folded(pictures), plain(pictures))
        assert folded._folds
        wanted = plain.run(pictures, layers)
        singly = {layer: folded.run(pictures, [layer])[layer] for layer in layers}
        exact = plain.double().run(pictures.double(), layers)
        folded.double()
        rounding = max(
            float((wanted[layer] - exact[layer]).abs().max() / exact[layer].abs().max())
            for layer in layers
        )
        for layer, found in singly.items():
            assert close(found, wanted[layer], max(1e-5, 2 * rounding)), layer
            doubly = folded.run(pictures.double(), [layer])[layer]
            assert close(doubly, exact[layer], 1e-12), layer


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_every_layer_gives_what_it_gives_unfolded(name: str) -> None:
    check_every_layer(name, (32, 32))


@pytest.mark.slow
@pytest.mark.parametrize("name", NORMED)
def test_every_layer_of_every_family_gives_what_it_gives_unfolded(name: str) -> None:
    check_every_layer(name, NORMED[name])


def test_gradients_are_those_of_the_network_as_it_is() -> None:
    gradients = []
    for backbone in both("test_resnet", (64, 64)):
        shown = backbone.noise(2).requires_grad_()
        first, last = backbone.run(shown, [Layer("layer2"), Layer("layer4.0.bn2")]).values()
        (gradient,) = torch.autograd.grad(last[:, 0].sum(), first, create_graph=True)
        gradients += [gradient, *torch.autograd.grad((first * gradient).sum(), shown)]
    assert close(gradients[0], gradients[2])
    assert close(gradients[1], gradients[3])


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Which norms of batches run themselves, by their channels."""
    channels: list[int] = []
    batch_norm = torch.batch_norm

    def counted(values: Tensor, *rest: object) -> Tensor:
        channels.append(values.shape[1])
        return batch_norm(values, *rest)

    monkeypatch.setattr(torch, "batch_norm", counted)
    return channels


def test_what_is_read_or_changed_between_unfolds_that_place(ran: list[int]) -> None:
    folded, plain = both("test_resnet", (64, 64))
    pictures, last = folded.noise(2), Layer("layer4")
    between = [Layer("layer2.0.conv1"), Layer("layer2.0.bn1", "input")]
    folded.run(pictures, [last])
    ran.clear()
    folded.run(pictures, [last])
    assert ran == []
    for layer in between:
        found, wanted = (one.run(pictures, [layer, last]) for one in (folded, plain))
        assert all(close(found[one], wanted[one]) for one in wanted)
    folded.run(pictures, [Layer("layer2.0.conv1", "input"), Layer("layer2.0.bn1"), last])
    width = plain.layout(between[0]).channels
    ran.clear()
    for layer in between:
        with folded.scaled(layer, [0], 3.0), plain.scaled(layer, [0], 3.0):
            ran.clear()
            found = folded.run(pictures, [last])
            assert ran == [width]
            assert close(found[last], plain.run(pictures, [last])[last])


def test_hooks_of_others_see_the_network_as_it_is(ran: list[int]) -> None:
    folded, plain = both("test_resnet", (64, 64))
    pictures, seen = folded.noise(1), []
    for backbone in (folded, plain):
        backbone(pictures)
        for name in ("layer1.0.conv1", "layer1.0.bn2"):
            backbone.network.get_submodule(name).register_forward_hook(
                lambda _, given, output: seen.append((given[0].clone(), output.clone()))
            )
        ran.clear()
        backbone(pictures)
        if backbone is folded:
            assert len(ran) == 2
    for found, wanted in zip(seen[:2], seen[2:], strict=True):
        assert all(map(close, found, wanted))


def test_the_network_stays_as_it_was_and_its_fingerprint_with_it() -> None:
    folded, plain = both("test_resnet", (64, 64))
    assert folded.digest() == plain.digest()
    before = copy.deepcopy(folded.network.state_dict())
    folded(folded.noise(1))
    assert folded._folds
    assert folded.digest() == plain.digest()
    assert all(torch.equal(before[n], v) for n, v in folded.network.state_dict().items())
    assert not any("forward" in vars(module) for module in folded.network.modules())
    bias = folded.network.get_submodule("layer1.0.conv1").bias
    assert bias is None


def test_other_weights_are_folded_anew() -> None:
    folded, plain = both("test_resnet", (64, 64))
    pictures = folded.noise(1)
    folded(pictures)
    copied = copy.deepcopy(folded)
    for backbone in (copied, plain):
        module = backbone.network.get_submodule("layer1.0.bn1")
        with torch.no_grad():
            module.running_var *= 4
        conv = backbone.network.get_submodule("layer2.0.conv1")
        conv.weight.data = conv.weight.data.flip(0)
    assert close(copied(pictures), plain(pictures))
    assert not close(folded(pictures), plain(pictures))
    assert copied.double()(pictures.double()).dtype == torch.float64
    assert close(copied(pictures.double()).float(), plain(pictures))


class Branching(nn.Module):
    """What cannot be folded, and what can."""

    def __init__(self, num_classes: int = 5, **_: object) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.shared, self.twice = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.beside, self.behind = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1, bias=False)
        self.wrapped = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Identity())
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(6))
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(x)
        x = self.norms[0](x).relu() + x  # taken by others
        x = self.norms[1](self.twice(self.norms[2](self.twice(x)))).relu()
        beside = self.beside(x)
        x = self.norms[3](beside).relu() * beside.mean((2, 3), keepdim=True)
        x = self.norms[5](self.wrapped(self.norms[4](self.behind(x)).relu()))
        return self.fc(x.mean((2, 3)))


default_cfgs = {"tests_folding_branching": {"input_size": (3, 16, 16)}}


def test_what_others_take_too_is_not_folded() -> None:
    def tests_folding_branching(pretrained: bool = False, **_: object) -> nn.Module:
        return Branching()

    register_model(tests_folding_branching)
    folded, plain = both("tests_folding_branching")
    pictures = folded.noise(2)
    assert close(folded(pictures), plain(pictures))
    network = folded.network
    places = {fold.conv: fold for fold in folded._folds or ()}
    assert [*places] == [network.behind, network.wrapped[0]]
    assert places[network.wrapped[0]].between == {
        *(Layer("wrapped.0"), Layer("wrapped"), Layer("norms.5", "input")),
        *(Layer("wrapped.1"), Layer("wrapped.1", "input")),
    }


def test_what_rounding_would_spoil_is_not_folded() -> None:
    backbone = Backbone("test_resnet", "random", input_size=(64, 64))
    conv, norm = map(backbone.network.get_submodule, ("layer1.0.conv1", "layer1.0.bn1"))
    conv.bias = nn.Parameter(torch.full((conv.out_channels,), 1e4), False)
    norm.running_mean.fill_(1e4)  # what the bias rounds away is not there where they are one
    backbone(backbone.noise(1))
    assert backbone._folds
    assert norm not in [fold.norm for fold in backbone._folds]


def test_a_network_of_half_precision_stays_as_it_is() -> None:
    backbone = Backbone("test_resnet", "random", input_size=(64, 64)).bfloat16()
    assert find_folds(backbone.network, lambda: backbone.network(backbone.noise(1))) == []
    assert all(isinstance(fold, Fold) for fold in backbone._folds or ())
