"""The pictures of the data set that a map is of, and what is known of each."""

from collections.abc import Callable

from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image

from mti_lightning.atlas.map import Map
from mti_lightning.compose import to_image
from mti_lightning.data.datasets import Pictures
from mti_lightning.errors import InputError
from mti_lightning.features.feature import Feature
from mti_lightning.sweep.pictures import pictures_of


def data_set_of(found: Map) -> Pictures | None:
    """Open the pictures of a map; None, with a warning, where they are gone."""
    try:
        return pictures_of(found.store)
    except InputError as error:
        rank_zero_warn(f"the atlas shows no pictures of the data set: {error}")
        return None


def labels_of(found: Map, pictures: Pictures | None) -> list[str] | None:
    """Return what is known of each picture of a map; None where nothing tells them apart."""
    names = found.store.features
    every = {
        of: pictures.labels(Feature.parse(names[of])) if pictures else None for of in found.features
    }
    places = zip(found.of.tolist(), found.layout.pictures.tolist(), strict=True)
    labels = [known[place] for of, place in places if (known := every[of])]
    return labels if len(set(labels)) > 1 and len(labels) == len(found.of) else None


def thumbnails_of(found: Map, pictures: Pictures) -> Callable[[int], Image.Image]:
    """Return what gives a picture of the data set by its place in the map's layout."""
    return lambda place: to_image(pictures[int(found.layout.pictures[place])]["picture"])
