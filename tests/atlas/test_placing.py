"""Where most excites or inhibits, and targets that are brought to one place."""

import pytest
import torch

from mti_lightning import ActivationLayout
from mti_lightning.atlas.placing import aligned, near_strongest, strongest

MAP = ActivationLayout((3, 6, 8), 1, (6, 8))
LAST = ActivationLayout((6, 8, 3), -1, (6, 8))
TOKENS = ActivationLayout((49, 3), -1, (6, 8), prefix_tokens=1)
LAYOUTS = pytest.mark.parametrize("layout", [MAP, LAST, TOKENS], ids=["map", "last", "tokens"])


def lay(maps: torch.Tensor, layout: ActivationLayout) -> torch.Tensor:
    """Lay maps [N, C, H, W] as a layer does; a class token is 7 everywhere."""
    if layout is MAP:
        return maps
    last = maps.movedim(1, -1)
    if layout is LAST:
        return last
    return torch.cat([torch.full((len(maps), 1, 3), 7.0), last.flatten(1, 2)], 1)


def spots(*places: tuple[int, int]) -> torch.Tensor:
    """A map for each place, which is alone not zero there."""
    maps = torch.zeros(len(places), 3, 6, 8)
    for number, (row, column) in enumerate(places):
        maps[number, :, row, column] = torch.tensor([1.0, 2.0, 3.0])
    return maps


@LAYOUTS
def test_each_target_s_strongest_place_comes_to_the_middle(layout: ActivationLayout) -> None:
    maps = spots((0, 0), (5, 7), (3, 4), (2, 6))
    values = lay(maps, layout)
    places = strongest(values, layout, 0.1)
    assert places.tolist() == [[0, 0], [5, 7], [3, 4], [2, 6]]
    moved = aligned(values, places, layout)
    torch.testing.assert_close(moved, lay(spots(*[(3, 4)] * 4), layout))
    left = aligned(values, places, layout, (0.5, 0.25))
    torch.testing.assert_close(left, lay(spots(*[(3, 2)] * 4), layout))


def test_what_is_around_moves_along_and_what_leaves_is_lost() -> None:
    maps = torch.rand(2, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    moved = aligned(maps, torch.tensor([[1, 2], [5, 5]]), MAP)
    torch.testing.assert_close(moved[0, :, 2:, 2:], maps[0, :, :4, :6])
    assert not moved[0, :, :2].any()
    assert not moved[0, :, :, :2].any()
    torch.testing.assert_close(moved[1, :, :4, :7], maps[1, :, 2:, 1:])


@LAYOUTS
@pytest.mark.parametrize("sign", ["+", "-"])
def test_of_two_things_the_stronger_is_taken(layout: ActivationLayout, sign: str) -> None:
    maps = spots((1, 1)) + 0.4 * spots((4, 7)) - 9 * spots((5, 0))
    values = lay(maps if sign == "+" else -maps, layout)
    values = values if layout is not TOKENS else torch.cat([0 * values[:, :1], values[:, 1:]], 1)
    near = near_strongest(values, sign, layout, 0.1)
    assert near.shape == values.shape
    pooled = layout.pool_sum(near)[0]
    torch.testing.assert_close(pooled, torch.tensor([1.0, 2.0, 3.0]), rtol=0.01, atol=0)


def test_without_positions_nothing_is_near() -> None:
    values = torch.tensor([[1.0, -2.0, 3.0]])
    near = near_strongest(values, "+", ActivationLayout((3,), -1, None), 0.1)
    assert near.tolist() == [[1, 0, 3]]
