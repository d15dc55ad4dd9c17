"""The most suppressive surround: what around a patch of a picture lowers a response most."""

from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor

from mti_lightning import Entry, FourierPhase, ImageParameters, Objective, Turn, cut


@final
class PatchAndSurround(ImageParameters):
    """The middle of a source picture, and around it an image that is optimised.

    Args:
        radius: Of the middle, as a share of the picture's side.
    """

    def __init__(self, radius: float = 0.25) -> None:
        super().__init__()
        self.radius, self.around = radius, FourierPhase()

    def start(self, keys: Any, size: tuple[int, int], sources: Tensor | None) -> Any:
        trained, fixed = self.around.start(keys, size, None)
        rows, columns = (torch.linspace(-0.5, 0.5, side) for side in size)
        far = (rows[:, None] ** 2 + columns**2).sqrt()  # [H, W]
        patch = (50 * (self.radius - far)).sigmoid().expand(len(keys), 1, -1, -1).clone()
        return trained, {**fixed, "patch": patch, "source": patch if sources is None else sources}

    def decode(self, values: Any, size: tuple[int, int], box: Any = None) -> Tensor:
        of = (values["patch"], values["source"])
        patch, source = of if box is None else (cut(one, box) for one in of)
        return patch * source + (1 - patch) * self.around.decode(values, size, box)


@final
class SuppressiveSurround(Objective):
    """What around the middle of each source picture lowers the response of each feature most.

    Args:
        raises: Look for what raises it most instead.
    """

    needs_sources, signs, decisive = True, (None,), ("raises",)

    def __init__(self, *args: Any, raises: bool = False, **kwargs: Any) -> None:
        image = kwargs.pop("image", None) or PatchAndSurround()
        super().__init__(*args, image=image, accentuate=True, **kwargs)
        self.raises = raises

    def plan(self) -> list[Entry]:
        return [replace(entry, objective="surround") for entry in super().plan()]

    def losses(self, views: Tensor, turn: Turn, progress: float) -> Tensor:
        features = turn.chunk.within(self.bound_features)
        each = [feature for feature in features for _ in range(self.views.count)]
        tapped = self.backbone.run(views, [*{feature.layer for feature in each}])
        rows = (feature(tapped[feature.layer][i : i + 1]) for i, feature in enumerate(each))
        return torch.cat([*rows]) * (-1 if self.raises else 1)
