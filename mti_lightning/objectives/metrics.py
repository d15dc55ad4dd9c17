"""Measures of pictures: a number each, in the order in which the pictures come."""

from collections.abc import Sequence
from typing import Final, final

from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.aggregation import CatMetric

from mti_lightning.attribution import signs
from mti_lightning.attribution.tension import Tension
from mti_lightning.backbone import ActivationLayout
from mti_lightning.images.boxes import Box
from mti_lightning.log import log_warning
from mti_lightning.objectives.chunk import Entry

MEASURES: Final = (
    "response",
    "excitation",
    "inhibition",
    "tension",
    "balance",
    "cosine",
    "interference",
)
LEAST_COSINE: Final = 0.1  # below it a picture shows nothing of its target
_MOST_NAMED = 8


@final
class PictureMetrics(MetricCollection):
    """Every measure of `results.csv`, by its column's name.

    Args:
        tension: Says what is summed before signs are split, and which tension is measured.
        layout: How the attribution layer's activations lie.
    """

    def __init__(self, tension: Tension, layout: ActivationLayout) -> None:
        # Every process holds the whole bank, and only the first may ask.
        columns = {name: CatMetric("disable", sync_on_compute=False) for name in MEASURES}
        super().__init__(columns, compute_groups=False)  # type: ignore[arg-type]
        self._tension, self._layout = tension, layout

    def update(  # type: ignore[override]
        self,
        attribution: Tensor,
        response: Tensor,
        cosine: Tensor,
        index: Tensor,
        box: Box | None = None,
    ) -> None:
        """Add pictures.

        Args:
            attribution: A, [N, ...], in units of the response.
            response: r, [N].
            cosine: Of the pictures' activations and their target, [N]; NaN where there is none.
            index: Of interference, [N]; NaN where rivals are not known.
            box: The part of the layer's map that the attribution is of; None for all of it.
        """
        attribution = attribution.float()
        excited, inhibited = self._tension.split(attribution, self._layout, box)
        tension = self._tension(attribution, self._layout, box)
        balance = signs.balance(excited, inhibited)
        found = (response, excited, inhibited, tension, balance, cosine, index)
        for name, values in zip(MEASURES, found, strict=True):
            self[name].update(values.detach().float().clone())  # some are what was given

    def columns(self) -> dict[str, Tensor]:
        """Return all numbers so far, on the CPU, [N] by name."""
        computed = self.compute()
        # It comes in alphabetical order, and the one value of a bank of one image is squeezed.
        return {name: computed[name].cpu().reshape(-1) for name in MEASURES}


def warn_of_failures(entries: Sequence[Entry], cosines: Tensor) -> None:
    """Say which finished images have next to nothing of their target.

    Args:
        entries: The images.
        cosines: Of each and its target, [N].
    """
    of = zip(entries, cosines.tolist(), strict=True)
    if failed := [entry.id for entry, cosine in of if cosine < LEAST_COSINE]:
        log_warning(
            f"{len(failed)} of {len(entries)} images did not become what they are for: "
            f"their cosine is below {LEAST_COSINE}, so they show nothing: {listed(failed)}; "
            "more --trainer.max_epochs or another --model.seed may do"
        )


def listed(names: Sequence[str]) -> str:
    """Return the first of some names in a line."""
    return ", ".join(names[:_MOST_NAMED]) + (", ..." if len(names) > _MOST_NAMED else "")
