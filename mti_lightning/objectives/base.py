"""Objectives: banks of images optimised against a frozen backbone."""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, final

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from mti_lightning.attribution import signs
from mti_lightning.attribution.methods import (
    ActGrad,
    Attribution,
    attribute,
    check_method,
    check_path,
)
from mti_lightning.attribution.signs import Sign
from mti_lightning.attribution.tension import Measure, Tension
from mti_lightning.backbone.network import Backbone, Layer
from mti_lightning.data.pictures import PictureData
from mti_lightning.errors import InputError, RenderError, check_range
from mti_lightning.features.bound import BoundFeature, FeatureGroup, activation_warning
from mti_lightning.features.feature import Feature
from mti_lightning.features.receptive_field import Window, find_window
from mti_lightning.images import spectrum
from mti_lightning.images.boxes import Box, cut
from mti_lightning.images.parameters import FourierPhase, ImageParameters
from mti_lightning.images.seeds import derive_seed
from mti_lightning.images.views import Views, whole
from mti_lightning.log import log_info, log_warning
from mti_lightning.objectives.bank import (
    Entry,
    ImageBankStrategy,
    ImageChunk,
    Step,
    Steps,
    file_name,
)
from mti_lightning.objectives.metrics import MEASURES, picture_metrics
from mti_lightning.objectives.preflight import check_bank, check_options
from mti_lightning.superposition.rivals import Rivals
from mti_lightning.sweep.pictures import SweepPictures, rivals_of
from mti_lightning.sweep.store import SweepStore

_SPECTRUM_PICTURES = 256
_LEAST_COSINE = 0.1
_TRIAL = 20  # steps after which an image that is stuck starts anew
_MOST_NAMED = 8


class Objective(LightningModule, ABC):
    """A bank of images, each optimised for a feature of a frozen backbone.

    Args:
        backbone: The frozen network.
        features: What to visualise: each `LAYER[/input]:CHANNEL[@POSITION]` or the same in
            structured form.
        attribution_layer: The earlier layer that responses are attributed to, such as `layer3` or
            `layer3.0.act2/input`.
        attribution: The attribution method; activation times gradient by default.
        tension: The tension measure, or its name.
        image: The image parameters; phases of contrast 1.25, of 1.5 for MTIs, by default.
        views: Crops and noise against adversarial patterns, or how many of each picture and step.
        optimizer: Moves the image parameters; Adam, lr 0.1, by default. Its rate falls to 0 along
            half a cosine.
        batch_size: Images per chunk: it bounds memory, and has no say in what the images become.
        steps_per_epoch: Steps for each image between two looks at the pictures.
        seed: Seed of the run; `seeds` images are made for each, of seeds seed, seed + 1, ...
        seeds: Images for each feature (and source).
        accentuate: Start from the source pictures instead of noise.
        pair: `all`: every source picture with every feature. `matched`: the first picture with the
            first feature, and so on, features repeating.

    Raises:
        InputError: If a layer or feature does not exist, or the attribution layer does not feed a
            feature.
    """

    needs_sources: ClassVar[bool]
    signs: ClassVar[tuple[Sign | None, ...]]
    contrast: ClassVar[float] = 1.25  # of its image parameters, where none are given

    def __init__(
        self,
        backbone: Backbone,
        features: Sequence[str | dict[str, Any]],
        attribution_layer: str,
        attribution: Attribution | None = None,
        tension: Tension | Measure | None = None,
        image: ImageParameters | None = None,
        views: Views | int | None = None,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.Adam(
            parameters, lr=0.1, fused=True
        ),
        batch_size: int = 16,
        steps_per_epoch: int = 20,
        seed: int = 0,
        seeds: int = 1,
        accentuate: bool = False,
        pair: Literal["all", "matched"] = "all",
    ) -> None:
        super().__init__()
        check_range(1, batch_size=batch_size, steps_per_epoch=steps_per_epoch, seeds=seeds)
        if not features:
            raise InputError("features: name at least one")
        self.backbone = backbone
        self.features = [Feature.parse(feature) for feature in features]
        self.layer = Layer.parse(attribution_layer)
        self.channel_dim = backbone.layout(self.layer).channel_dim
        self.bound_features = nn.ModuleList(
            BoundFeature(feature, backbone) for feature in self.features
        )
        for bound_feature in self.bound_features:
            check_path(backbone, bound_feature, self.layer)  # type: ignore[arg-type]
            if warning := activation_warning(bound_feature.feature, backbone):  # type: ignore[arg-type]
                rank_zero_warn(warning)
        self.attribution, self.tension = attribution or ActGrad(), Tension.of(tension)
        check_method(self.attribution, backbone, self.layer, self.bound_features[0])  # type: ignore[arg-type]
        self.image = image or FourierPhase(contrast=self.contrast)
        self.views = Views(views) if isinstance(views, int) else views or Views()
        self.optimizer = optimizer
        self.batch_size, self.steps_per_epoch = batch_size, steps_per_epoch
        self.seed, self.seeds, self.accentuate, self.pair = seed, seeds, accentuate, pair
        self.sources: Tensor | None = None  # [S, 3, h, w], as the backbone sees them
        self.source_keys: list[str] = []
        self.bank = nn.ModuleList()
        self._rivals: dict[int, tuple[Rivals, int]] = {}  # by feature, with its place among them
        self.progress = 0.0  # of the images whose turn it is, from 0 to 1
        self._target: tuple[int, Any] = (-1, None)  # of the chunk whose turn it is
        # By the step under way: the pictures, or a box of each.
        self._rendered: tuple[ImageChunk, Tensor, Box | None] | None = None

    # --- what an objective is ---

    @abstractmethod
    def losses(self, views: Tensor, chunk: ImageChunk, target: Any) -> Tensor:
        """Return one loss for each view, [N], none of which depends on another picture."""

    def target(self, chunk: ImageChunk) -> Any:
        """Return what the chunk's images shall become; asked for when the chunk's turn comes."""
        return None

    def restart_stuck(self, chunk: ImageChunk, target: Any) -> None:
        """Give those of a chunk's images that are stuck on the way to its target a fresh start."""

    # --- the bank ---

    @property
    def input_size(self) -> tuple[int, int]:
        return self.backbone.preprocessing.size

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        return self.image.canvas or self.input_size

    @property
    def _grid(self) -> tuple[int, int]:
        """Height and width of pictures that start from noise, while they are optimised."""
        finest = (math.ceil(side / self.views.box[0]) for side in self.input_size)
        return self.image.grid(self.canvas, (next(finest), next(finest)))

    @property
    def chunks(self) -> list[ImageChunk]:
        return list(self.bank)  # type: ignore[arg-type]

    @property
    def entries(self) -> list[Entry]:
        return [entry for chunk in self.chunks for entry in chunk.entries]

    def check_devices(self, trainer: Trainer) -> None:
        """Make sure that several devices can share out the bank.

        Raises:
            InputError: If they cannot.
        """
        if trainer.world_size == 1:
            return
        if not isinstance(trainer.strategy, ImageBankStrategy):
            raise InputError(
                f"{type(trainer.strategy).__name__} cannot share out an image bank among "
                f"{trainer.world_size} devices; give --trainer.strategy auto, in Python "
                "strategy=ImageBankStrategy()"
            )
        if 0 < len(self.bank) < trainer.world_size:
            raise InputError(
                f"{trainer.world_size} devices for a bank of {len(self.entries)} images, "
                f"{self.batch_size} at once; give fewer devices or a smaller --model.batch_size"
            )

    def setup(self, stage: str) -> None:
        check_options(self.trainer)
        if not len(self.bank):
            self.check_devices(self.trainer)
            self.build_bank(getattr(self.trainer, "datamodule", None))
        self.check_devices(self.trainer)

    def build_bank(self, data: PictureData | None) -> None:
        """Read the source pictures and make the images.

        Raises:
            InputError: If source pictures are needed and there are none.
        """
        if data is not None and not isinstance(data, PictureData):
            raise InputError(
                f"--data {type(data).__name__} gives no source pictures; PictureFile, "
                "PictureFolder, ImageFolder, PictureShards or VetoedShapesPictures do"
            )
        reads = self.needs_sources or self.accentuate
        measures = isinstance(self.image, FourierPhase) and self.image.magnitude == "measured"
        if (reads or measures) and data is None:
            raise InputError(
                f"{type(self).__name__} needs source pictures; give --data PictureFolder "
                "--data.path FOLDER, for example"
            )
        self.find_rivals(data)
        detailed: Tensor | None = None
        if data is not None and (reads or measures):
            detailed = self._read_sources(data, reads, measures)
        # A chunk has one window, of which its noise is drawn: images of others would change it.
        windows = self._find_windows()
        of_window: dict[Window | None, list[Entry]] = {}
        for entry in self._plan():
            of_window.setdefault(windows[entry.feature], []).append(entry)
        for window, entries in of_window.items():
            for start in range(0, len(entries), self.batch_size):
                part = entries[start : start + self.batch_size]
                sources, grid = None, self._grid
                if self.accentuate and detailed is not None:
                    sources = whole(detailed[[entry.source for entry in part]], self.canvas)
                    grid = self.canvas
                self.bank.append(ImageChunk(part, self.image, self.canvas, grid, sources, window))

    def _read_sources(self, data: PictureData, reads: bool, measures: bool) -> Tensor:
        """Read the pictures, and return them as detailed as the canvas, [S, 3, H, W]."""
        sides = zip(self.canvas, self.input_size, strict=True)
        larger = max(canvas / own for canvas, own in sides)
        detailed: Tensor | None = None
        if larger > 1 and (self.accentuate or measures):
            detailed, _ = self._read(data, larger)
        pictures, keys = self._read(data)
        detailed = pictures if detailed is None else detailed
        if measures:
            chosen = whole(detailed[:_SPECTRUM_PICTURES], self._grid)
            self.image.measured = spectrum.mean_magnitude(chosen)  # type: ignore[attr-defined]
        if reads:
            self.sources, self.source_keys = pictures, keys
            if isinstance(data, SweepPictures):
                data.compare(self.backbone.name, str(self.layer), [*map(str, self.features)])
        return detailed

    def _read(self, data: PictureData, larger: float = 1.0) -> tuple[Tensor, list[str]]:
        """Return the pictures as the backbone sees them, or that much larger, and their keys."""
        height, width = (round(side * larger) for side in self.input_size)
        data.use(replace(self.backbone.preprocessing, size=(height, width)))
        samples = list(data.samples())
        return torch.stack([s["picture"] for s in samples]), [s["key"] for s in samples]

    def find_rivals(self, sweep: PictureData | SweepStore | None) -> None:
        """Take from a sweep what the features' rivals look like, for the interference index."""
        store = sweep.store if isinstance(sweep, SweepPictures) else sweep
        if not isinstance(store, SweepStore) or store.provenance["attribution_layer"] != str(
            self.layer
        ):
            return
        for place, feature in enumerate(self.features):
            if (found := rivals_of(store, str(feature), self.backbone)) is not None:
                self._rivals[place] = found

    def _find_windows(self) -> list[Window | None]:
        """Return the part of a picture that each feature depends on, None for the whole."""
        windows: list[Window | None] = [None] * len(self.features)
        if not isinstance(self.attribution, ActGrad):
            return windows  # it may see more than the gradient does
        for group, places in FeatureGroup.of(list(self.bound_features)).items():  # type: ignore[arg-type]
            found = find_window(self.backbone, self.layer, group)
            if isinstance(found, Window):
                windows = [found if i in places else w for i, w in enumerate(windows)]
            elif isinstance(group.position, tuple):
                log_info(
                    f"whole pictures are computed for {group.bound_features[0].feature}: {found}"
                )
        return windows

    def pairs(self) -> list[tuple[int | None, int]]:
        """Return which (source, feature) are rendered."""
        sources = range(len(self.source_keys)) if self.source_keys else [None]
        if self.pair == "matched":
            if len(sources) < len(self.features):
                raise InputError(
                    f"pair: matched needs a source for each of the {len(self.features)} "
                    f"features; there are {len(sources)}"
                )
            return [(source, i % len(self.features)) for i, source in enumerate(sources)]
        return [(source, feature) for source in sources for feature in range(len(self.features))]

    def _plan(self) -> list[Entry]:
        # Known by its pixels, not by its name: a picture stays itself in another folder.
        contents: list[int] = []
        if self.sources is not None:
            pixels = self.sources.mul(255).round().byte().numpy()
            contents = [derive_seed(picture.tobytes().hex()) for picture in pixels]
        entries: dict[str, Entry] = {}
        for source, feature in self.pairs():
            stem = "" if source is None else re.sub(r"\.\w+$", "", self.source_keys[source])
            content = "" if source is None else contents[source]
            for seed in range(self.seed, self.seed + self.seeds):
                for sign in self.signs:
                    name = "mti" if sign is None else {"+": "positive", "-": "negative"}[sign]
                    parts = (stem, str(self.features[feature]), name, f"seed{seed}")
                    slug = "_".join(file_name(part) for part in parts if part)[-150:]
                    slug = f"{slug}_{len(entries)}" if slug in entries else slug
                    key = derive_seed(seed, self.features[feature], content)
                    entries[slug] = Entry(slug, key, feature, name, seed, sign, source)
        return list(entries.values())

    def features_of(self, chunk: ImageChunk) -> list[BoundFeature]:
        return [self.bound_features[entry.feature] for entry in chunk.entries]  # type: ignore[misc]

    def features_within(self, chunk: ImageChunk) -> list[BoundFeature]:
        """Return each image's feature, where it is in the chunk's window."""
        bound_features = self.features_of(chunk)
        if chunk.window is None:
            return bound_features
        moved = {
            bound_feature: bound_feature.moved(chunk.window.group.position)
            for bound_feature in set(bound_features)
        }
        return [moved[bound_feature] for bound_feature in bound_features]

    def sources_of(self, chunk: ImageChunk) -> Tensor:
        """Return each image's source picture, [N, 3, h, w]."""
        assert self.sources is not None
        return self.sources[[entry.source for entry in chunk.entries]].to(self.device)

    # --- training ---

    @property
    def provenance(self) -> dict[str, Any]:
        """What the images are and how they come to be, as a checkpoint holds it."""
        given = [f"{k}={v}" for k, v in vars(self.image).items() if isinstance(v, str | float)]
        return {
            "objective": type(self).__name__,
            "backbone": self.backbone.name,
            "attribution_layer": str(self.layer),
            "image": f"{type(self.image).__name__}({', '.join(given)})",
            "canvas": list(self.canvas),
            "accentuate": self.accentuate,
            "batch_size": self.batch_size,
            "steps_per_epoch": self.steps_per_epoch,
        } | {
            f"image {place}": f"{entry.id} of stream {entry.key & 0xFFFF_FFFF:08x}"
            for place, entry in enumerate(self.entries)
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["bank"] = self.provenance

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the checkpoint's images.

        Raises:
            InputError: If they are not those of this run.
        """
        check_bank(checkpoint.get("bank"), self.provenance)

    def train_dataloader(self) -> Steps:
        trainer = self.trainer
        return Steps(len(self.bank), self.steps_per_epoch, trainer.global_rank, trainer.world_size)

    def on_train_batch_end(self, outputs: Any, batch: Step, batch_idx: int) -> None:
        trainer, strategy = self.trainer, self.trainer.strategy
        last = trainer.is_last_batch or trainer.should_stop
        if last and isinstance(strategy, ImageBankStrategy):
            strategy.share(self.chunks, trainer.optimizers[0])  # before callbacks look

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.bank.parameters())

    def training_step(self, batch: Step, batch_idx: int) -> Tensor:
        if batch.chunk is None:
            self._rendered = None
            return torch.zeros((), device=self.device, requires_grad=True)
        chunk: ImageChunk = self.bank[batch.chunk]  # type: ignore[assignment]
        if self._target[0] != batch.chunk:
            self._target = (batch.chunk, self.target(chunk))
        step = self.current_epoch * self.steps_per_epoch + batch.step
        epochs = self.trainer.max_epochs or -1
        self.progress = min(step / (epochs * self.steps_per_epoch), 1.0) if epochs > 0 else 0.0
        self._anneal()
        if step == _TRIAL and self.progress <= 0.25:  # else there is no time for it
            self.restart_stuck(chunk, self._target[1])
        part = chunk.window and chunk.window.box
        box = self.views.reach(part, self.input_size, chunk.grid) if part else None
        pictures = chunk.optimised(box)
        pictures.retain_grad()
        self._rendered = (chunk, pictures, box)
        with torch.autocast(self.device.type, enabled=False):
            keys = [entry.key for entry in chunk.entries]
            views = self.views(
                pictures, keys, step, self.input_size, part, box and (box, chunk.grid)
            )
        losses = self.losses(views, chunk, self._target[1]) / self.views.count
        self.log("loss", losses.detach().sum() / len(chunk.entries), prog_bar=True, batch_size=1)
        # The sum, never the mean: an image's path must not depend on how many neighbours it has.
        return losses.sum()

    def _anneal(self) -> None:
        """Lower the learning rate to 0 along half a cosine, by the images' own progress."""
        for group in self.optimizers().param_groups:  # type: ignore[union-attr]
            group.setdefault("initial_lr", group["lr"])
            group["lr"] = group["initial_lr"] * (1 + math.cos(math.pi * self.progress)) / 2

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._rendered is None:
            return
        chunk, pictures, box = self._rendered
        assert pictures.grad is not None
        moves = pictures.grad.abs().mean(1)  # [N, H, W]
        plugin = self.trainer.precision_plugin
        if isinstance(plugin, MixedPrecision) and plugin.scaler is not None:
            # In 16-mixed the gradient of pictures keeps the loss's scale. Where that is too large
            # for it, the scaler leaves the step out and lowers the scale.
            scale = plugin.scaler.get_scale()
            moves = moves / scale
            if scale > 1 and pictures.isfinite().all() and not moves.isfinite().all():
                return
        strength = moves.flatten(1).amax(1)  # [N]
        sound = strength.isfinite() & (strength > 0)
        if not sound.all():
            bad = int((~sound).nonzero()[0])
            entry = chunk.entries[bad]
            dead = strength[bad] == 0 and pictures[bad].isfinite().all()
            what = "nothing moves" if dead else "picture or gradient is not finite for"
            raise RenderError(
                f"{what} image {entry.id} (feature {self.features[entry.feature]}); try a "
                "feature before its activation function, "
                "a lower learning rate, another attribution layer or --trainer.precision 32"
            )
        cut(chunk.moved, box or (0, 0, *chunk.grid)).add_(moves)

    # --- what the pictures show ---

    @torch.no_grad()
    def measure(self, of_sources: bool = False) -> dict[str, Tensor]:
        """Measure the clean pictures, without views; or the sources in their place.

        Returns:
            For each column of `results.csv` from `response` on, one number for each entry.
        """
        metrics = picture_metrics(self.tension, self.channel_dim).to(self.device)
        for chunk in self.chunks:
            shown = self.sources_of(chunk) if of_sources else whole(chunk(), self.input_size)
            activations, attribution, response = attribute(
                self.backbone,
                chunk.seen(shown),
                self.features_within(chunk),
                self.layer,
                self.attribution,
            )
            cosine, index = self.cosine_to_target(activations, chunk), self._index(shown, chunk)
            metrics.update(attribution, response, cosine, index)
        computed = metrics.compute()
        # It comes in alphabetical order, and the one value of a bank of one image is squeezed.
        return {name: computed[name].cpu().reshape(-1) for name in MEASURES}

    def warn_of_failures(self, measures: Mapping[str, Tensor]) -> None:
        """Say which finished images have next to nothing of their target, as `measure` tells."""
        cosines = zip(self.entries, measures["cosine"].tolist(), strict=True)
        if failed := [entry.id for entry, cosine in cosines if cosine < _LEAST_COSINE]:
            log_warning(
                f"{len(failed)} of {len(self.entries)} images did not become what they are for: "
                f"their cosine is below {_LEAST_COSINE}, so they show nothing: {_listed(failed)}; "
                "more --trainer.max_epochs or another --model.seed may do"
            )

    def _index(self, shown: Tensor, chunk: ImageChunk) -> Tensor:
        """Return the interference index of each picture, [N]; NaN where rivals are not known."""
        index = shown.new_full((len(shown),), torch.nan)
        for place in {entry.feature for entry in chunk.entries} & self._rivals.keys():
            rivals, column = self._rivals[place]
            rows = [i for i, entry in enumerate(chunk.entries) if entry.feature == place]
            index[rows] = rivals.index(self.backbone, shown[rows])[:, column]
        return index

    def cosine_to_target(self, activations: Tensor, chunk: ImageChunk) -> Tensor:
        """Return the cosine of activations and the chunk's target, [N]; NaN where there is none.

        Args:
            activations: At the attribution layer, of the chunk's window.
            chunk: Of the images, or their sources.
        """
        return activations.new_full((len(activations),), torch.nan)


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
                "MaximallyTense needs; ActGrad can"
            )

    def losses(self, views: Tensor, chunk: ImageChunk, target: Any) -> Tensor:
        bound_features = [
            bound_feature
            for bound_feature in self.features_within(chunk)
            for _ in range(self.views.count)
        ]
        _, attribution, _ = attribute(
            self.backbone, views, bound_features, self.layer, self.attribution, create_graph=True
        )
        excited, inhibited = self.tension.split(attribution, self.channel_dim)
        first, last = self.imbalance
        price = first + (last - first) * self.progress
        tension = self.tension(attribution, self.channel_dim)
        return price * (excited - inhibited).abs() - tension


class Inversion(Objective):
    """Images whose activations match T⁺ or T⁻ of a source picture.

    Maximises ⟨z, T⟩/‖T‖ · max(cos(z, T), 0.1)^p over the window where the source's |A| is more than
    1% of its maximum; z are the image's activations at the attribution layer.

    Args:
        power: p, mostly from 1 to 4: how strongly features that are not in the target are kept
            quiet; at 0 not at all.
        coherent: Take T⁺ only from positions that excite on the whole, T⁻ only from those that
            inhibit; False for the authors' way, every position.
    """

    needs_sources = True

    def __init__(
        self, *args: Any, power: float = 4.0, coherent: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        check_range(0, power=power)
        self.power, self.coherent = power, coherent
        self.without_target = ""  # says which images cannot be made

    def target(self, chunk: ImageChunk) -> tuple[Tensor, Tensor]:
        return self.targets_of(chunk.entries)

    def targets_of(self, entries: Sequence[Entry]) -> tuple[Tensor, Tensor]:
        """Return T and the window, of the attribution layer's shape and [N, 1, H, W]."""
        assert self.sources is not None
        activations, attribution, _ = attribute(
            self.backbone,
            self.sources[[entry.source for entry in entries]].to(self.device),
            [self.bound_features[entry.feature] for entry in entries],  # type: ignore[misc]
            self.layer,
            self.attribution,
        )
        targets = torch.cat(
            [
                signs.split_target(part, entry.sign or "+", self.coherent, self.channel_dim)
                for part, entry in zip(attribution[:, None], entries, strict=True)
            ]
        )
        # Where an activation is negative, as in a transformer, it has to become so again to have
        # the same effect.
        targets = torch.where(activations < 0, -targets, targets)
        return targets, signs.support_mask(attribution, channel_dim=self.channel_dim)

    def _plan(self) -> list[Entry]:
        """Leave out, with a warning, what has no target; the others do not change by it.

        Raises:
            RenderError: If nothing is left.
        """
        entries = super()._plan()
        kept: list[Entry] = []
        for start in range(0, len(entries), self.batch_size):
            part = entries[start : start + self.batch_size]
            targets = self.targets_of(part)[0]
            kept += [entry for entry, target in zip(part, targets, strict=True) if target.any()]
        left_out = {*entries} - {*kept}
        if not left_out:
            return entries
        without_target = dict.fromkeys(
            f"{e.sign} of {self.features[e.feature]} in {self.source_keys[e.source or 0]}"
            for e in entries
            if e in left_out
        )
        self.without_target = (
            f"{len(left_out)} of {len(entries)} images cannot be made, as nothing "
            f"excites (+) or inhibits (-) at layer {self.layer}: {_listed([*without_target])}; "
            "try an earlier attribution layer, or coherent: false"
        )
        if not kept:
            raise RenderError(self.without_target)
        rank_zero_warn(self.without_target)
        return kept

    def losses(self, views: Tensor, chunk: ImageChunk, target: tuple[Tensor, Tensor]) -> Tensor:
        wanted, window = _within(chunk, target)
        if self.views.count > 1:
            wanted, window = (t.repeat_interleave(self.views.count, 0) for t in (wanted, window))
        shown = self.backbone.run(views, [self.layer])[self.layer] * window
        dims = tuple(range(1, shown.ndim))
        of_shown, of_wanted = (
            torch.linalg.vector_norm(values, dim=dims).clamp(min=1e-12)
            for values in (shown, wanted)
        )
        dot = (shown * wanted).sum(dims) / of_wanted
        # Below 0 the slope would vanish; noise may start there, where activations have both signs.
        similar = (dot / of_shown).clamp(min=_LEAST_COSINE)
        # A power of few floats is off by the last bit or not, depending on how many there are.
        losses: Tensor = -dot * (similar.double() ** self.power).to(dot)
        return losses

    @torch.no_grad()
    def restart_stuck(self, chunk: ImageChunk, target: tuple[Tensor, Tensor]) -> None:
        """Give images that are as good as nothing a fresh start from noise.

        Where nothing of the target answers to the first noise there is no gradient either, and no
        number of steps would change it: of eight starts of one such picture one stayed at 0.04.
        """
        if self.accentuate:
            return
        seen = chunk.seen(chunk(self.input_size))
        activations = self.backbone.run(seen, [self.layer])[self.layer]
        stuck = (_cosine(activations, chunk, target) < _LEAST_COSINE).nonzero().flatten()
        if not len(stuck):
            return
        keys = [derive_seed(chunk.entries[row].key, "renewed") for row in stuck.tolist()]
        for name, values in self.image.start(keys, chunk.grid, None)[0].items():
            parameter = chunk.trained[name]
            parameter[stuck] = values.to(self.device)
            state = self.optimizers().state[parameter]  # type: ignore[union-attr]
            for moment in state.values():
                if moment.shape == parameter.shape:
                    moment[stuck] = 0
        chunk.moved[stuck] = 0

    def cosine_to_target(self, activations: Tensor, chunk: ImageChunk) -> Tensor:
        return _cosine(activations, chunk, self.target(chunk))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_NAMED]) + (", ..." if len(names) > _MOST_NAMED else "")


def _cosine(activations: Tensor, chunk: ImageChunk, target: tuple[Tensor, Tensor]) -> Tensor:
    wanted, window = _within(chunk, target)
    cosine: Tensor = signs.cosine(activations * window, wanted)
    return cosine


def _within(chunk: ImageChunk, maps: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return what of two maps the chunk's window covers."""
    if chunk.window is None:
        return maps
    return cut(maps[0], chunk.window.map_box), cut(maps[1], chunk.window.map_box)


@final
class PositiveInversion(Inversion):
    """+ inversion: what in each source picture excites each feature."""

    signs = ("+",)


@final
class NegativeInversion(Inversion):
    """− inversion: what in each source picture inhibits each feature."""

    signs = ("-",)


@final
class SignedInversion(Inversion):
    """+ and − inversions of each source picture, side by side."""

    signs = ("+", "-")
