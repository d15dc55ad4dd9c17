"""Measures of pictures as torchmetrics classes: a number each, in the order of the updates."""

from abc import ABC, abstractmethod
from typing import Any, final

from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.utilities import dim_zero_cat

from mti_lightning.attribution import signs
from mti_lightning.attribution.tension import Tension


class PictureMetric(Metric, ABC):
    """A number for each picture; `compute` returns all of them, [N], without the N of a single one.

    Args:
        tension: Says what is summed before signs are split, and which tension is measured.
        channel_dim: Where the attributions' channels are.
    """

    full_state_update = False
    values: list[Tensor]

    def __init__(self, tension: Tension = Tension(), channel_dim: int = 1, **kwargs: Any) -> None:  # noqa: B008  frozen
        super().__init__(**kwargs)
        self.tension, self.channel_dim = tension, channel_dim
        self.add_state("values", [], dist_reduce_fx="cat")

    @abstractmethod
    def measure(
        self, attribution: Tensor, response: Tensor, cosine: Tensor, index: Tensor
    ) -> Tensor:
        """Return one number for each picture, [N]."""

    def update(self, attribution: Tensor, response: Tensor, cosine: Tensor, index: Tensor) -> None:
        """Add pictures.

        Args:
            attribution: A, [N, ...], in units of the response.
            response: r, [N].
            cosine: Of the pictures' activations and their target, [N]; NaN where there is none.
            index: Of interference, [N]; NaN where rivals are not known.
        """
        told = (value.float() for value in (attribution, response, cosine, index))
        values = self.measure(*told)
        self.values.append(values.detach().clone())  # some are what was given

    def compute(self) -> Tensor:
        return dim_zero_cat(self.values)


@final
class Response(PictureMetric):
    """The feature's value."""

    def measure(
        self, attribution: Tensor, response: Tensor, cosine: Tensor, index: Tensor
    ) -> Tensor:
        return response


@final
class Excitation(PictureMetric):
    """E⁺, in units of the response."""

    def measure(
        self, attribution: Tensor, response: Tensor, cosine: Tensor, index: Tensor
    ) -> Tensor:
        return self.tension.split(attribution, self.channel_dim)[0]


@final
class Inhibition(PictureMetric):
    """E⁻, in units of the response, not negative."""

    def measure(
        self, attribution: Tensor, response: Tensor, cosine: Tensor, index: Tensor
    ) -> Tensor:
        return self.tension.split(attribution, self.channel_dim)[1]


@final
class Tenseness(PictureMetric):
    """The tension, by the measure chosen."""

    def measure(
        self, attribution: Tensor, response: Tensor, cosine: Tensor, index: Tensor
    ) -> Tensor:
        return self.tension(attribution, self.channel_dim)


@final
class Balance(PictureMetric):
    """min(E⁺, E⁻) / max(E⁺, E⁻), 0..1."""

    def measure(
        self, attribution: Tensor, response: Tensor, cosine: Tensor, index: Tensor
    ) -> Tensor:
        return signs.balance(*self.tension.split(attribution, self.channel_dim))


@final
class TargetCosine(PictureMetric):
    """Cosine of the picture's activations and its target, -1..1; NaN where there is no target."""

    def measure(
        self, attribution: Tensor, response: Tensor, cosine: Tensor, index: Tensor
    ) -> Tensor:
        return cosine


@final
class Interference(PictureMetric):
    """The interference index, 0..1: near 1 where other features explain the tension as well."""

    def measure(
        self, attribution: Tensor, response: Tensor, cosine: Tensor, index: Tensor
    ) -> Tensor:
        return index


MEASURES: dict[str, type[PictureMetric]] = {
    "response": Response,
    "excitation": Excitation,
    "inhibition": Inhibition,
    "tension": Tenseness,
    "balance": Balance,
    "cosine": TargetCosine,
    "interference": Interference,
}


def picture_metrics(tension: Tension, channel_dim: int) -> MetricCollection:
    """Return every measure of `results.csv`, by its column's name."""
    # Every process holds the whole bank, and only the first may ask.
    alone = {"sync_on_compute": False}
    metrics = {name: metric(tension, channel_dim, **alone) for name, metric in MEASURES.items()}
    return MetricCollection(metrics, compute_groups=False)  # type: ignore[arg-type]
