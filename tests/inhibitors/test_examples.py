"""Receptive fields of units, against what a picture's gradient reaches, and crops around them."""

import numpy as np
import torch
from PIL import Image

from mti_lightning import Backbone, Layer
from mti_lightning.inhibitors.examples import Fields, crop
from tests.sweep.test_module import WORLD


def test_a_field_holds_what_reaches_the_unit() -> None:
    backbone, layer = Backbone(WORLD), Layer("layer2")
    rows, columns = backbone.layout(layer).grid or (0, 0)
    fields = Fields(backbone, layer)
    for row, column in ((rows // 2, columns // 2), (0, columns - 1)):
        top, left, height, width = fields.of(5, row * columns + column)
        picture = backbone.noise(1).requires_grad_()
        value = backbone.run(picture, [layer])[layer][0, :, row, column].sum()
        (gradient,) = torch.autograd.grad(value, picture)
        reached = gradient[0].abs().sum(0).nonzero()
        low, high = reached.min(0).values, reached.max(0).values
        assert (low >= torch.tensor([top, left])).all()
        assert (high < torch.tensor([top + height, left + width])).all()
        stride = 4
        assert (low - torch.tensor([top, left]) < 2 * stride).all()
    assert height < picture.shape[2] > width


def test_a_crop_outlines_the_field() -> None:
    image = Image.new("RGB", (200, 150), "teal")
    part = np.asarray(crop(image, (20, 50, 40, 60)))
    assert part.shape == (78, 78, 3)
    black = np.argwhere((part == 0).all(2))  # the field's corners, within what lies around it
    assert black.min(0).tolist() == [20 - 1, 50 - 41]
    assert (np.ptp(black, axis=0) + 1).tolist() == [40, 60]
    assert crop(image, (0, 0, 150, 200)).size == (200, 150)
