"""The image bank: the images of an objective, where they come from and what they show."""

import math
from abc import ABC
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from mti_lightning.attribution.module import AttributionModule
from mti_lightning.attribution.signs import Sign
from mti_lightning.attribution.steps import CHOSEN_ON, is_open, recorded
from mti_lightning.backbone import Layer
from mti_lightning.errors import check_memory, check_range
from mti_lightning.features.window import Window
from mti_lightning.images.parameters import FourierPhase, ImageParameters
from mti_lightning.images.seeds import derive_seed
from mti_lightning.images.views import Views, whole
from mti_lightning.objectives.chunk import Entry, ImageChunk, Size
from mti_lightning.objectives.interference import KnownRivals, find_rivals, index_by
from mti_lightning.objectives.metrics import PictureMetrics
from mti_lightning.objectives.plan import BankPlan, Pairing, find_windows, in_chunks
from mti_lightning.objectives.sources import (
    Pair,
    SourceAttributions,
    check_source_data,
    digest,
    measure_spectrum,
    measures_spectrum,
    read_sources,
    warn_of_other_use,
)

MOST_SEEDS: Final = 10_000


class ImageBank(AttributionModule, ABC):
    """Images for features of a frozen backbone, in chunks.

    Args:
        image: The image parameters; by default a pyramid for inversions, phases for all else.
        views: Crops and noise against adversarial patterns, or how many of each picture and step.
        batch_size: Images per chunk: it bounds memory, and has no say in what the images become.
        seed: Seed of the run; `seeds` images are made for each, of seeds seed, seed + 1, ...
        seeds: Images for each feature (and source).
        accentuate: Start from the source pictures instead of noise.
        pair: `all`: every source picture with every feature. `matched`: the first picture with the
            first feature, and so on, features repeating.
    """

    takes_every_channel = False
    needs_sources: ClassVar[bool]
    signs: ClassVar[tuple[Sign | None, ...]]  # of the images of each source and feature
    contrast: ClassVar[float] = 1.25  # of its image parameters, where none are given
    noise: ClassVar[float] = 0.02  # of its views, where none are given

    def __init__(
        self,
        *args: Any,
        image: ImageParameters | None = None,
        views: Views | int | None = None,
        batch_size: int = 16,
        seed: int = 0,
        seeds: int = 1,
        accentuate: bool = False,
        pair: Pairing = "all",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_range(1, batch_size=batch_size, seeds=seeds)
        check_range(1, MOST_SEEDS, seeds=seeds)
        self.image = image or self.default_image()
        of = 1 if views is None else views
        self.views = Views(of, noise=self.noise) if isinstance(of, int) else of
        self.batch_size, self.seed, self.seeds = batch_size, seed, seeds
        self.accentuate, self.pair = accentuate, pair
        self.sources: Tensor | None = None  # [S, 3, h, w], as the backbone sees them
        self.source_keys: list[str] = []
        self.pictures_digest: str | None = None  # of those that were read, for whatever
        self.known_rivals: KnownRivals = {}
        self.bank = nn.ModuleList()
        self._attributions: dict[tuple[Layer, bool], SourceAttributions] = {}

    def default_image(self) -> ImageParameters:
        """Return the image parameters, where none are given."""
        return FourierPhase(contrast=self.contrast)

    @property
    def input_size(self) -> Size:
        return self.backbone.preprocessing.size

    @property
    def canvas(self) -> Size:
        """Height and width of the pictures."""
        return self.image.canvas or self.input_size

    @property
    def chunks(self) -> list[ImageChunk]:
        return list(self.bank)  # type: ignore[arg-type]

    @property
    def entries(self) -> list[Entry]:
        return [entry for chunk in self.chunks for entry in chunk.entries]

    def build_bank(self, data: object) -> None:
        """Read the source pictures and make the images.

        Args:
            data: The data module; None where there is none.

        Raises:
            InputError: If source pictures are needed and there are none.
        """
        reads, measured = self.needs_sources or self.accentuate, measures_spectrum(self.image)
        pictures = check_source_data(data, type(self).__name__ if reads or measured else None)
        self.known_rivals |= find_rivals(data, self)
        fine = [math.ceil(side / self.views.box[0]) for side in self.input_size]
        grid, detailed = self.image.grid(self.canvas, (fine[0], fine[1])), torch.empty(0)
        if pictures is not None and (reads or measured):
            fully = self.accentuate or measured
            read = read_sources(pictures, self.backbone.preprocessing, self.canvas, fully)
            detailed = read.detailed
            self.pictures_digest = digest(detailed)
            measure_spectrum(self.image, detailed, grid)
            if reads:
                self.sources, self.source_keys = read.pictures, read.keys
                self.settle([read.pictures])
                self._attributions = {}
                warn_of_other_use(pictures, self)
        self._check_memory(len(plan := self.plan()))
        if is_open(self.attribution):  # without sources, by how images start
            keys = [derive_seed("steps", number) for number in range(CHOSEN_ON)]
            entries = [Entry("", key, 0, "", 0) for key in keys]
            with torch.no_grad():
                of_noise = ImageChunk(entries, self.image, self.canvas, grid, None)
                self.settle([of_noise(self.input_size)])
        for entries, window in in_chunks(plan, self.windows(), self.batch_size):
            start = None
            if self.accentuate:
                start = whole(detailed[[entry.source for entry in entries]], self.canvas)
            of = (self.canvas, self.canvas if self.accentuate else grid, start, window)
            self.bank.append(ImageChunk(entries, self.image, *of).to(self.device))

    def _check_memory(self, images: int) -> None:
        """Make sure that the images fit into memory, and the views of those made together.

        Raises:
            InputError: If they do not.
        """
        at_once = min(images, self.batch_size)
        pixels = math.prod(self.canvas) * (at_once + images)
        seen = math.prod(self.input_size) * at_once * self.views.count
        # Three colours of four bytes; a value with its gradient and what an optimizer keeps of it,
        # and a third more of them where there are planes of all sizes.
        check_memory(
            64 * pixels + 24 * seen,
            f"canvas {[*self.canvas]}: {images} images, {at_once} at once with "
            f"{self.views.count} views of each,",
        )

    def plan(self) -> list[Entry]:
        """Return the images to make."""
        seeds = range(self.seed, self.seed + self.seeds)
        plan = BankPlan(self.features, self.signs, seeds, self.pair)
        return plan.entries(self.sources, self.source_keys)

    def windows(self) -> list[Window | None]:
        """Return the part of a picture that each feature depends on, None for the whole."""
        return find_windows(self)

    def attribute_sources(
        self, pairs: list[Pair], layer: Layer | None = None, rendered: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `SourceAttributions` returns, of some (source, feature).

        Args:
            pairs: Which.
            layer: As `SourceAttributions` takes it.
            rendered: Likewise.
        """
        assert self.sources is not None
        differs = self.from_zeros(self.attribution) is not self.attribution
        key = layer or self.layer, rendered and differs
        if key not in self._attributions:
            self._attributions[key] = SourceAttributions(self, self.sources, *key)
        return self._attributions[key](pairs, self.batch_size)

    def take_steps(self, told: Mapping[str, Any]) -> None:
        before = self.attribution
        super().take_steps(told)
        if recorded(before) != recorded(self.attribution):
            self._attributions = {}

    def cosine_to_target(self, activations: Tensor, chunk: ImageChunk) -> Tensor:
        """Return the cosine of activations and the chunk's target, [N]; NaN where there is none.

        Args:
            activations: Of the chunk's images, at the attribution layer, of its window.
            chunk: The images.
        """
        return activations.new_full((len(activations),), torch.nan)

    @torch.no_grad()
    def measure(self) -> dict[str, Tensor]:
        """Measure the clean pictures, without views.

        Returns:
            For each column of `results.csv` from `response` on, one number for each entry.
        """
        metrics = PictureMetrics(self.tension, self.layout).to(self.device)
        for chunk in self.chunks:
            shown, features = whole(chunk(), self.input_size), [e.feature for e in chunk.entries]
            activations, attribution, response = self.attribute(
                chunk.seen(shown), chunk.within(self.bound_features)
            )
            cosine = self.cosine_to_target(activations, chunk)
            index = index_by(self.known_rivals, self.backbone, shown, features)
            box = chunk.window and chunk.window.map_box
            metrics.update(attribution, response, cosine, index, box)
        return metrics.columns()

    @torch.no_grad()
    def measure_sources(self) -> tuple[list[Pair], dict[str, Tensor]]:
        """Measure the sources.

        Returns:
            Each (source, feature) that there are images of, and their columns, as of `measure`.
        """
        assert self.sources is not None
        metrics = PictureMetrics(self.tension, self.layout).to(self.device)
        pairs = list(dict.fromkeys((entry.source or 0, entry.feature) for entry in self.entries))
        for start in range(0, len(pairs), self.batch_size):
            part = pairs[start : start + self.batch_size]
            attribution, _, response = self.attribute_sources(part, rendered=False)
            shown = self.sources[[source for source, _ in part]].to(self.device)
            index = index_by(self.known_rivals, self.backbone, shown, [f for _, f in part])
            nowhere = torch.full_like(index, torch.nan)
            metrics.update(attribution.to(index), response.to(index), nowhere, index)
        return pairs, metrics.columns()
