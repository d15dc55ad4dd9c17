"""A picture is computed the same, to the last bit, whatever is beside it."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mti_lightning import Backbone, Layer
from mti_lightning.backbone.batch_invariance import BatchInvariance


@pytest.fixture(params=[2, 4])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def of_both_passes(backbone: Backbone, pictures: Tensor, *layers: str) -> list[Tensor]:
    """Return activations, their gradients, and the pictures' gradient by a second pass."""
    shown = pictures.clone().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
        first, last = backbone.run(shown, [Layer(layer) for layer in layers]).values()
        (gradient,) = torch.autograd.grad(last.flatten(1)[:, :5].sum(), first, create_graph=True)
        (moves,) = torch.autograd.grad((first * gradient).sum(), shown)
    return [first.detach(), last.detach(), gradient.detach(), moves]


@pytest.mark.parametrize(
    ("name", "size", "layers"),
    [
        ("vetoed_shapes_resnet", 96, ("layer3", "fc")),
        ("resnet18", 160, ("layer3", "fc")),
        ("vit_tiny_patch16_224", 96, ("blocks.8", "head")),
        ("vgg11", 96, ("features.10", "head.fc")),
        ("densenet121", 64, ("features.denseblock3", "classifier")),
    ],
)
@pytest.mark.usefixtures("threads")
def test_a_picture_does_not_depend_on_others(name: str, size: int, layers: tuple[str, str]) -> None:
    backbone = Backbone(name, "random", input_size=(size, size))
    pictures = torch.rand(8, 3, size, size, generator=torch.Generator().manual_seed(0))
    among = of_both_passes(backbone, pictures, *layers)
    for count in (1, 3):
        alone = of_both_passes(backbone, pictures[:count], *layers)
        for one, all_ in zip(alone, among, strict=True):
            assert torch.equal(one, all_[:count]), count


def test_single_pixels_are_convolved_alike_in_batches_of_any_size() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        conv, alike = nn.Conv2d(1024, 64, 1).requires_grad_(False), BatchInvariance()
        pictures = torch.rand(17, 1024, 14, 14, generator=torch.Generator().manual_seed(0))
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        found = []
        for count in (17, 3, 1):
            with alike(conv, count):
                found.append(conv(pictures[:count]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0][:3], found[1])
    assert torch.equal(found[0][:1], found[2])
    assert conv.dilation == (1, 1)
