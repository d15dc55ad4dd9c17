"""The plan of a bank: which images it has, and which part of a picture each depends on."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, final

from torch import Tensor

from mti_lightning.attribution.methods import PathGradient
from mti_lightning.attribution.module import AttributionModule
from mti_lightning.attribution.signs import Sign
from mti_lightning.errors import InputError
from mti_lightning.features.bound import FeatureGroup
from mti_lightning.features.feature import Feature
from mti_lightning.features.receptive_field import find_window
from mti_lightning.features.window import Window
from mti_lightning.files import file_name
from mti_lightning.images.seeds import derive_seed
from mti_lightning.log import log_info
from mti_lightning.objectives.chunk import Entry

_NAMES: dict[Sign | None, str] = {"+": "positive", "-": "negative", None: "mti"}
Pairing = Literal["all", "matched"]


@final
@dataclass(frozen=True)
class BankPlan:
    """Which images are made.

    Attributes:
        features: What they are made for.
        signs: Made of each pair of source and feature.
        seeds: Of each sign.
        pair: Which pairs there are: every source picture with every feature, or the first with the
            first and so on, features repeating.
    """

    features: Sequence[Feature]
    signs: Sequence[Sign | None]
    seeds: range
    pair: Pairing

    def pairs(self, sources: int) -> list[tuple[int | None, int]]:
        """Return which (source, feature) are rendered, of so many sources; None for no source.

        Raises:
            InputError: If features are left over.
        """
        places, features = range(sources) if sources else [None], len(self.features)
        if self.pair == "all":
            return [(source, feature) for source in places for feature in range(features)]
        if len(places) < features:
            raise InputError(
                f"pair: matched needs a source for each of the {features} features; there are "
                f"{len(places)}"
            )
        return [(source, i % features) for i, source in enumerate(places)]

    def entries(self, pictures: Tensor | None, keys: Sequence[str]) -> list[Entry]:
        """Return the images.

        Args:
            pictures: The sources, [S, 3, h, w] in 0..1; None for images without one.
            keys: What the sources are called.
        """
        # Known by its pixels, not by its name: a picture stays itself in another folder.
        contents: list[int] = []
        if pictures is not None:
            pixels = pictures.mul(255).round().byte().numpy()
            contents = [derive_seed(picture.tobytes().hex()) for picture in pixels]
        entries: dict[str, Entry] = {}
        for source, feature in self.pairs(len(keys)):
            stem = "" if source is None else re.sub(r"\.\w+$", "", keys[source])
            content = "" if source is None else contents[source]
            for seed in self.seeds:
                for sign in self.signs:
                    name = _NAMES[sign]
                    parts = (stem, str(self.features[feature]), name, f"seed{seed}")
                    slug = file_name("_".join(file_name(part) for part in parts if part), 150)
                    slug = f"{slug}_{len(entries)}" if slug in entries else slug
                    key = derive_seed(seed, self.features[feature], content)
                    entries[slug] = Entry(slug, key, feature, name, seed, sign, source)
        return list(entries.values())


def find_windows(module: AttributionModule) -> list[Window | None]:
    """Return the part of a picture that each feature depends on, None for the whole."""
    windows: list[Window | None] = [None] * len(module.features)
    if not isinstance(module.attribution, PathGradient):
        return windows  # it may see more than the gradient does
    for group, places in FeatureGroup.of(module.bound_features).items():
        found = find_window(module.backbone, module.layer, group)
        if isinstance(found, Window):
            windows = [found if i in places else w for i, w in enumerate(windows)]
        elif isinstance(group.position, tuple):
            log_info(f"whole pictures are computed for {group.bound_features[0].shown}: {found}")
    return windows


def in_chunks(
    entries: Sequence[Entry], windows: Sequence[Window | None], size: int
) -> Iterator[tuple[list[Entry], Window | None]]:
    """Yield the images that are optimised together, at most `size`, and their window.

    A chunk has one window, of which its noise is drawn: images of others would change it.
    """
    of_window: dict[Window | None, list[Entry]] = {}
    for entry in entries:
        of_window.setdefault(windows[entry.feature], []).append(entry)
    for window, of in of_window.items():
        for start in range(0, len(of), size):
            yield of[start : start + size], window
