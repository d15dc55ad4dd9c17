"""The pictures of a sweep, again: all of them, or the top ones as an objective's sources."""

from collections.abc import Sequence
from pathlib import Path
from typing import final

import torch
from lightning.pytorch.utilities import rank_zero_warn

from mti_lightning.attribution.methods import IntGrad, PathGradient
from mti_lightning.attribution.steps import as_recorded
from mti_lightning.backbone import Backbone, Layer, Preprocessing
from mti_lightning.data.base import READING, PictureData
from mti_lightning.data.datasets import Picture, Pictures, Stamp
from mti_lightning.errors import InputError, check_range, printable, reason_of
from mti_lightning.features.bound import BoundFeature, FeatureGroup
from mti_lightning.features.feature import Feature
from mti_lightning.registry import known_class
from mti_lightning.superposition.rivals import Rivals
from mti_lightning.sweep.measures import check_measure
from mti_lightning.sweep.store import SweepStore


def reopen(store: SweepStore) -> PictureData:
    """Return the data that a sweep went through.

    Raises:
        InputError: If its class or its files are gone, or its class is none of pictures.
    """
    told = store.provenance["data"]
    try:
        kind: type[PictureData] = known_class(told["class_path"], PictureData)
        given = {name: value for name, value in told["init_args"].items() if name not in READING}
        data = kind(**given)
    except InputError as error:
        raise InputError(
            f"{error}; if the pictures of {store.path} were moved, run its mti predict again with "
            "--data.path where they are now"
        ) from error
    except Exception as error:  # a stranger's arguments may be anything
        raise InputError(
            f"{store.path} was made of {told!r:.200}, which cannot be opened: {reason_of(error)}"
        ) from error
    return data


def pictures_of(store: SweepStore) -> Pictures:
    """Return the pictures of `data_of`."""
    return data_of(store).pictures


def data_of(store: SweepStore) -> PictureData:
    """Return the pictures that a sweep went through, as its network saw them, to be loaded.

    Raises:
        InputError: If they are gone or have changed.
    """
    data = reopen(store)
    height, width = store.provenance["preprocessing"]["size"]
    data.use(Preprocessing(**{**store.provenance["preprocessing"], "size": (height, width)}))
    store.check_keys(data.pictures.keys)
    return data


def rivals_of(store: SweepStore, feature: str, backbone: Backbone) -> tuple[Rivals, int] | None:
    """Return what a sweep knows of a feature's rivals, and the feature's place among them.

    Returns:
        None where it has not measured them, or was made with another network.
    """
    if feature not in store.features or store.provenance["weights"] != backbone.digest():
        return None
    found = store.rivals(store.features.index(feature))
    if found is None:
        return None
    names, box, profiles = found
    method = as_recorded(IntGrad(), store.provenance["attribution"])
    assert isinstance(method, PathGradient)
    group = FeatureGroup([BoundFeature(Feature.parse(name), backbone) for name in names])
    layer, mean = Layer.parse(store.provenance["attribution_layer"]), store.mean_activation
    rivals = Rivals(group, layer, torch.from_numpy(mean), box, profiles, method)
    return rivals, names.index(feature)


def backbone_of(store: SweepStore) -> Backbone:
    """Make the network of a sweep again.

    Raises:
        InputError: If it cannot be made, or its weights are others now.
    """
    made = store.made
    try:
        size = made.get("input_size")
        backbone = Backbone(**{**made, "input_size": size and tuple(size)})
    except InputError as error:
        raise InputError(f"the network of {store.path} cannot be made again: {error}") from error
    except Exception as error:  # a stranger's arguments may be anything
        raise InputError(
            f"{store.path} was made of {made!r:.200}, which makes no network: {reason_of(error)}"
        ) from error
    if store.provenance["weights"] != backbone.digest():
        raise InputError(
            f"{backbone.name} has other weights, or units of it were scaled, when {store.path} was "
            "made; sweep again"
        )
    return backbone


class _Chosen(Pictures):
    """Some of other pictures."""

    def __init__(self, pictures: Pictures, places: list[int]) -> None:
        self.pictures, self.places = pictures, places
        self.keys = [pictures.keys[place] for place in places]

    def __getitem__(self, index: int) -> Picture:
        return self.pictures[self.places[index]]

    def changed(self, index: int, stamp: Stamp) -> bool:
        return self.pictures.changed(self.places[index], stamp)

    def labels(self, feature: Feature) -> list[str] | None:
        every = self.pictures.labels(feature)
        return every and [every[place] for place in self.places]


@final
class SweepPictures(PictureData):
    """The top pictures of a sweep.

    Args:
        sweep: The sweep's folder, such as `tb_logs/NAME/sweep.zarr`.
        measure: By which measure they are top; `-` before it means its low end.
        count: How many.
        feature: Top for which of the sweep's features. Without it, of all its features in turn: the
            first one's first, the second one's first, and so on, as `pair: matched` takes them.
        batch_size: Pictures per batch.
        num_workers: Processes that read pictures; 0 reads them in the main one.

    Raises:
        InputError: If there is no such sweep, feature or measure, or its pictures are gone.
    """

    def __init__(
        self,
        sweep: str | Path,
        measure: str = "tension",
        count: int = 16,
        feature: str | None = None,
        *,
        batch_size: int = 32,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        check_range(1, count=count)
        check_measure(measure)
        self.store = SweepStore(sweep)
        self.measure = measure
        columns = range(len(self.store.features))
        if feature is not None:
            columns = range(column := self.store.feature_index(feature), column + 1)
        self.chosen_for = [self.store.features[column] for column in columns]
        each = -(-count // len(columns))
        tops = [self.store.top(column, measure, each) for column in columns]
        places = [top[rank] for rank in range(each) for top in tops if rank < len(top)]
        if len(places) < count:
            raise InputError(
                f"{self.store.path} has {len(places)} measured pictures to choose from, not {count}"
            )
        self.places = places[:count]
        self.data = reopen(self.store)

    def compare(self, backbone: str, layer: str, features: Sequence[str]) -> None:
        """Warn if the pictures were not chosen for what they are used for, which may be meant.

        Args:
            backbone: Name of the network that they are shown to.
            layer: The attribution layer.
            features: Those of which something is to be made.
        """
        provenance, others = (
            self.store.provenance,
            [f for f in features if f not in self.chosen_for],
        )
        networks = {name.partition(".")[0] for name in (backbone, provenance["backbone"])}
        if others or layer != provenance["attribution_layer"] or len(networks) > 1:
            chosen = ", ".join(self.chosen_for[:3]) + (", ..." if self.chosen_for[3:] else "")
            told = (
                f"the pictures of {self.store.path} are top by {self.measure} for {chosen} at "
                f"{provenance['attribution_layer']} of {provenance['backbone']}, and used for "
                f"{', '.join(others or features)} at {layer} of {backbone}; if that is not meant, "
                "give the same features, attribution_layer and backbone"
            )
            rank_zero_warn(printable(told))

    def _open(self, preprocessing: Preprocessing) -> Pictures:
        self.data.use(preprocessing)
        self.store.check_keys(self.data.pictures.keys)
        self.store.check_contents(self.data.pictures, self.places)
        return _Chosen(self.data.pictures, self.places)
