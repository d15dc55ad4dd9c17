"""A network with its feature, and pictures to try interventions on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, Protocol, final

import numpy as np
import torch
from torch import Tensor

from mti_lightning.attribution.methods import ActGrad, Attribution, attribute
from mti_lightning.backbone import Backbone, Layer
from mti_lightning.features.bound import BoundFeature
from mti_lightning.features.feature import Feature
from mti_lightning.inhibitors.interventions import Intervention, respond_to
from mti_lightning.inhibitors.pieces import Pieces
from mti_lightning.registry import known_class
from mti_lightning.sweep.measures import Array
from mti_lightning.sweep.pictures import backbone_of, data_of
from mti_lightning.sweep.store import SweepStore

_PIECE: Final = 32  # pictures


class Loader(Protocol):
    """Loads pictures by their places in the data."""

    def __call__(self, rows: Array, read: list[int]) -> Iterator[Tensor]:
        """Yield pictures, [n, 3, H, W] in 0..1, and note the places of those that can be read."""


@final
class Network:
    """A network, one of its features, the layer whose units are tried, and pictures.

    Args:
        backbone: The network.
        feature: The feature, on the network's device.
        layer: The layer.
        load: Loads pictures.
        donors: Of which pictures activations stand in, [M].
        mean: The mean activation of each unit, [C]; by default the donors'.
        pieces: Keeps what is found.
    """

    def __init__(
        self,
        backbone: Backbone,
        feature: BoundFeature,
        layer: Layer,
        load: Loader,
        donors: Array,
        mean: Tensor | None = None,
        pieces: Pieces | None = None,
    ) -> None:
        self.pieces = pieces or Pieces()
        self.backbone, self.feature, self.layer, self.load = backbone, feature, layer, load
        with torch.no_grad():
            found = [backbone.run(pictures, [layer])[layer] for pictures in load(donors, [])]
        self.donors = torch.cat(found)
        self.layout = backbone.layout(layer)
        self.mean = self.layout.pool_mean(self.donors).mean(0) if mean is None else mean

    @classmethod
    def of(cls, store: SweepStore, place: int, donors: Array, pieces: Pieces) -> "Network":
        """Make the network of a sweep again, with one of the sweep's features.

        Raises:
            InputError: If it cannot be made, or the pictures are gone or have changed.
        """
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.backends.cudnn.allow_tf32 = False  # E⁺ and E⁻ all but cancel
        backbone, data = backbone_of(store).to(device), data_of(store)

        def load(rows: Array, read: list[int]) -> Iterator[Tensor]:
            store.check_contents(data.pictures, rows)
            for batch in data.loader(rows.tolist()):
                if len(batch.indices):
                    read.extend(batch.indices.tolist())
                    yield batch.pictures.to(device)

        feature = BoundFeature(Feature.parse(store.features[place]), backbone).to(device)
        layer = Layer.parse(store.provenance["attribution_layer"])
        mean = torch.from_numpy(store.mean_activation).to(device)
        return cls(backbone, feature, layer, load, donors, mean, pieces)

    def respond(
        self, rows: Array, plans: Mapping[str, Sequence[Intervention]]
    ) -> tuple[dict[str, Array], Array]:
        """Return responses under each plan's interventions, [I, N], and which could be read."""
        every = [intervention for plan in plans.values() for intervention in plan]
        parts = self._in_pieces(partial(self._respond, every), rows)
        responses = np.concatenate([part["responses"] for part in parts], 1)
        ends = np.cumsum([len(plan) for plan in plans.values()])[:-1]
        of_plans = dict(zip(plans, np.split(responses, ends), strict=True))
        return of_plans, np.concatenate([part["read"] for part in parts])

    def _respond(self, interventions: Sequence[Intervention], rows: Array) -> dict[str, Array]:
        read: list[int] = []
        of = (self.backbone, self.layer, self.feature, self.load(rows, read), interventions)
        responses = respond_to(*of, self.mean, self.donors).double().numpy()
        return {"responses": responses, "read": np.array(read, np.int64)}

    def predict(self, rows: Array) -> Array:
        """Return what silencing each unit would change, [N, U]: act×grad, −Σ a · ∂r/∂a."""
        parts = self._in_pieces(self._predict, rows)
        return np.concatenate([part["predicted"] for part in parts])

    def _in_pieces(
        self, find: Callable[[Array], dict[str, Array]], rows: Array
    ) -> list[dict[str, Array]]:
        some = np.split(rows, range(_PIECE, len(rows), _PIECE))
        return [self.pieces.next(partial(find, few)) for few in some]

    def _predict(self, rows: Array) -> dict[str, Array]:
        found = []
        for pictures in self.load(rows, []):
            of = (self.backbone, pictures, [self.feature] * len(pictures), self.layer, ActGrad())
            found.append(-self.layout.pool_sum(attribute(*of)[1].detach()).cpu().double().numpy())
        return {"predicted": np.concatenate(found)}


def method_of(store: SweepStore) -> Attribution:
    """Return the attribution method of a sweep."""
    told = store.provenance["attribution"]
    method: Attribution = known_class(told["class_path"], Attribution)(**told["init_args"])
    return method
