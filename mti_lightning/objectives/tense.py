"""Maximally tense images: they excite and inhibit a feature at once."""

from collections.abc import Sequence
from typing import Any, final

from torch import Tensor

from mti_lightning.attribution.methods import attribute
from mti_lightning.errors import InputError, check_range
from mti_lightning.features.bound import BoundFeature
from mti_lightning.objectives.base import Objective
from mti_lightning.objectives.turns import Turn


@final
class MaximallyTense(Objective):
    """Images that excite and inhibit each feature at once (maximally tense images, MTIs).

    Maximises the tension of the image's own attribution, minus a price on |E⁺ − E⁻|. The price
    rises over the run: from the start at its last value it keeps both small.

    Args:
        imbalance: The price of a difference between E⁺ and E⁻, at the first and at the last step.
    """

    needs_sources = False
    signs = (None,)
    decisive = ("imbalance",)
    contrast = 1.5  # what excites and what inhibits have to find room on one canvas

    def __init__(
        self, *args: Any, imbalance: tuple[float, float] = (0.1, 0.7), **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        for price in imbalance:
            check_range(0, imbalance=price)
        self.imbalance = imbalance
        if not self.attribution.differentiable:
            raise InputError(
                f"{type(self.attribution).__name__} cannot be differentiated, which "
                "MaximallyTense needs; ActGrad and IntGrad can"
            )

    def attribute(
        self, pictures: Tensor, bound_features: Sequence[BoundFeature], create_graph: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As of any module, but from zeros: things are all over the image, and leave no ground."""
        method = self.from_zeros(self.attribution)
        of_pictures = (self.backbone, pictures, bound_features, self.layer, method)
        return attribute(*of_pictures, create_graph)

    def losses(self, views: Tensor, turn: Turn, progress: float) -> Tensor:
        bound_features = [
            bound_feature
            for bound_feature in turn.chunk.within(self.bound_features)
            for _ in range(self.views.count)
        ]
        _, attribution, _ = self.attribute(views, bound_features, create_graph=True)
        window = turn.chunk.window
        of = (self.layout, window and window.map_box)
        excited, inhibited = self.tension.split(attribution, *of)
        first, last = self.imbalance
        price = first + (last - first) * progress
        tension = self.tension(attribution, *of)
        return price * (excited - inhibited).abs() - tension
