"""A veto that is removed: the same picture's response, what inhibits in it, and its inversion."""

import torch
from torchvision.utils import save_image

from mti_lightning import Backbone, PictureFile, SignedInversion, VetoedShapes, render
from tests.sweep.test_module import WORLD

VETO = [103, 95, 19, 24, 123, 68, 31, 67]  # of layer3, as docs/inhibitors.md names them
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


def test_a_picture_is_inverted_with_its_veto_and_without(tmp_path) -> None:
    backbone, path = Backbone(WORLD), tmp_path / "tense.png"
    save_image(VetoedShapes(8, seed=1, contents="tense")[3]["picture"], path)

    def look() -> tuple[dict[str, float], list[torch.Tensor]]:
        objective = SignedInversion(backbone, ["fc:3"], "layer2", steps_per_epoch=2)
        render(objective, PictureFile(str(path)), 1, **QUIET)
        (chunk,) = objective.chunks
        found, names = objective.measure_sources()[1], ("response", "excitation", "inhibition")
        numbers = {name: float(found[name]) for name in names}
        return numbers, list(objective.target(chunk)[objective.layer][0])

    vetoed, (positive, negative) = look()
    with backbone.scaled("layer3", VETO, 0):
        free, (still, less) = look()
    assert vetoed["response"] < 0 < free["response"]
    assert free["inhibition"] < 0.6 * vetoed["inhibition"]
    assert abs(free["excitation"] - vetoed["excitation"]) < 0.1 * vetoed["excitation"]
    # The targets, whose sums are what excites and inhibits, are those of the network as it is.
    assert less.norm() < 0.8 * negative.norm()
    assert (still - positive).norm() < 0.5 * positive.norm()
    assert look()[0] == vetoed
