"""The sweep: how every picture of a data set excites and inhibits features, in one pass."""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from mti_lightning.attribution.methods import (
    ActGrad,
    Attribution,
    attribute,
    check_method,
    check_path,
)
from mti_lightning.attribution.signs import Measure, Tension
from mti_lightning.backbone.network import Backbone, Layer
from mti_lightning.data.pictures import NAMED_WHEN_SKIPPED, Loaded, PictureData, Stamp
from mti_lightning.errors import InputError, RunError
from mti_lightning.features.bound import BoundFeature, FeatureGroup, activation_warning, expand
from mti_lightning.features.receptive_field import Window, find_window, respond
from mti_lightning.images.boxes import Box, cut
from mti_lightning.log import log_info
from mti_lightning.superposition.interference import (
    FeatureProfiles,
    interference_index,
    profile_features,
)
from mti_lightning.superposition.rivals import MOST_RIVALS, choose_rivals, pool
from mti_lightning.sweep import store
from mti_lightning.sweep.store import (
    COLUMNS,
    Array,
    SweepStore,
    check_measure,
    check_place,
    derive,
    holds_sweep,
    select,
)

# Numbers of a Jacobian that are computed at once: 128 MiB.
_AT_ONCE = 2**25
_AUTHORS = Tension("l2")


@dataclass(frozen=True)
class _Part:
    """Features that are read together, and the part of the pictures that they depend on.

    Behind the sweep's features, at `places`, may stand others that may explain them.
    """

    group: FeatureGroup
    places: list[int]
    window: Window | None
    has_rivals: bool

    @property
    def names(self) -> list[str]:
        """What all are called."""
        first = self.group.bound_features[0].feature
        if self.group.directions is not None:
            return [str(bound_feature.feature) for bound_feature in self.group.bound_features]
        return [str(replace(first, channel=channel)) for channel in self.group.channels]

    @property
    def box(self) -> Box | None:
        """The part of the attribution layer's map that is computed; None for all of it."""
        if self.window is None:
            return None
        top, left, *size = self.window.map_box
        if self.window.head is not None:
            inner = self.window.head.box
            top, left, size = top + inner[0], left + inner[1], list(inner[2:])
        return top, left, size[0], size[1]


@dataclass(frozen=True)
class _Slice:
    """Attributions of some features, all pictures."""

    places: list[int]  # of those that are the sweep's; others come behind
    activations: Tensor  # [N, ...]
    responses: Tensor  # [F, N]
    attribution: Tensor  # [F, N, ...]
    centred: Tensor | None  # [F, N, ...]; None where the method does not tell


@final
class Blocks(DistributedSampler[Any]):
    """The pictures that are still to do, block by block, shared out among the processes.

    Args:
        pending: First indices of the blocks to do.
        block: Pictures per block.
        size: Pictures altogether.
        rank: This process.
        world_size: How many processes there are.
    """

    def __init__(
        self, pending: Sequence[int], block: int, size: int, rank: int, world_size: int
    ) -> None:
        self.starts = list(pending)[rank::world_size]
        self.block, self.size = block, size

    def __iter__(self) -> Iterator[int]:
        for start in self.starts:
            yield from range(start, min(start + self.block, self.size))

    def __len__(self) -> int:
        return sum(min(self.block, self.size - start) for start in self.starts)

    def set_epoch(self, epoch: int) -> None:
        """Take no notice: there is one pass, in order."""


@final
class Sweep(LightningModule):
    """Response, excitation, inhibition and tension of every picture for every feature, in one pass.

    Runs through `mti predict`. Stopped at any moment and started again with the same command it
    goes on where it was, and ends as if it had not been stopped; several devices share the work.

    Args:
        backbone: The frozen network.
        features: What to measure: each `LAYER[/input]:CHANNEL[@POSITION]`; `LAYER:*[@POSITION]` is
            every channel of a layer.
        attribution_layer: The earlier layer that responses are attributed to.
        attribution: The attribution method; activation times gradient by default.
        tension: The tension measure, or its name; a mean-centred one is reported, too.
        store: The zarr group to write; by default `tb_logs/NAME/sweep.zarr`.
        keep: Keep the attribution maps of this many top pictures by each measure of `keep_by`.
        keep_by: Measures by which pictures are top; `-` before one means its low end.
        keep_features: The features whose maps are kept; by default all, if there are 16 or fewer.
        calibrate: Pictures, evenly spread over the data, whose mean activation per channel the
            centred tension subtracts.
        rivals: How many features of a layer and position may explain each other's tension, for the
            interference index: those that are swept and, where they are fewer, other channels drawn
            at random. By default all channels, where all are swept and these are 64 or fewer; it
            then costs next to nothing. 0 leaves the index out.
        block: Pictures between two writes; what was not written is done again after a stop.
        overwrite: Begin anew where `store` holds another sweep; nothing else is ever replaced.

    Raises:
        InputError: If a layer or feature does not exist, the attribution layer does not feed a
            feature, or a number or measure is out of range.
    """

    def __init__(
        self,
        backbone: Backbone,
        features: Sequence[str | dict[str, Any]],
        attribution_layer: str,
        attribution: Attribution | None = None,
        tension: Tension | Measure | None = None,
        store: str | None = None,
        keep: int = 0,
        keep_by: Sequence[str] = ("tension", "response", "-response"),
        keep_features: Sequence[str | dict[str, Any]] | None = None,
        calibrate: int = 256,
        rivals: int | None = None,
        block: int = 256,
        overwrite: bool = False,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("keep", keep, 0),
            ("calibrate", calibrate, 1),
            ("rivals", 0 if rivals is None else rivals, 0),
            ("block", block, 1),
        ):
            if value < least:
                raise InputError(f"{name} {value}: give {least} or more")
        if not features:
            raise InputError("features: name at least one")
        self.backbone = backbone
        self.features = list(dict.fromkeys(expand(features, backbone)))
        self.layer = Layer.parse(attribution_layer)
        self.channel_dim = backbone.layout(self.layer).channel_dim
        self.bound_features = [BoundFeature(feature, backbone) for feature in self.features]
        self.attribution, self.tension = attribution or ActGrad(), Tension.of(tension)
        check_method(self.attribution, backbone, self.layer, self.bound_features[0])
        self.store_path = None if store is None else Path(store)
        self.keep, self.keep_by = keep, tuple(keep_by)
        for measure in self.keep_by:
            check_measure(measure)
        self.kept = self._kept(keep_features) if keep else []
        self.calibrate, self.block, self.overwrite = calibrate, block, overwrite
        self.rivals = rivals
        self.config: str | None = None  # the command line's, for the store
        # A process may find nothing left to do while others do.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.register_buffer("mean_activation", None, persistent=False)
        self._parts: list[_Part] = []
        self._profiles: dict[int, FeatureProfiles] = {}  # by a part's first place
        self._store: SweepStore | None = None

    def _kept(self, given: Sequence[str | dict[str, Any]] | None) -> list[int]:
        if given is None:
            if len(self.features) > 16:
                raise InputError(
                    f"keep {self.keep} of {len(self.features)} features would fill the disk; name "
                    "those whose maps you want in keep_features"
                )
            return list(range(len(self.features)))
        for feature in (wanted := expand(given, self.backbone)):
            if feature not in self.features:
                raise InputError(f"keep_features: {feature} is not among the features")
        return [self.features.index(feature) for feature in wanted]

    # --- what a picture gives ---

    def prepare(self) -> None:
        """Group the features, and find the part of the pictures that each group depends on."""
        self._parts = []
        for group, places in FeatureGroup.of(self.bound_features).items():
            first = group.bound_features[0]
            check_path(self.backbone, first, self.layer)
            if warning := activation_warning(first.feature, self.backbone):
                rank_zero_warn(warning)
            found = find_window(self.backbone, self.layer, group)
            if isinstance(found, str):
                log_info(f"whole pictures are computed for {first.feature}: {found}")
            window, rivals = None if isinstance(found, str) else found, self._rivals(group)
            if rivals is not None and window is not None:
                window = window.of(rivals)
            self._parts.append(_Part(rivals or group, places, window, rivals is not None))

    def _rivals(self, group: FeatureGroup) -> FeatureGroup | None:
        """Return the features and their rivals; None where no index is measured."""
        channels = group.bound_features[0].layout.channels
        if not isinstance(self.attribution, ActGrad) or self.rivals == 0:
            return None
        if self.rivals is None:
            every = group.directions is None and len(group.channels) == channels
            return group if every and 1 < channels <= MOST_RIVALS else None
        rivals = choose_rivals(group, self.rivals)
        return rivals if len(rivals.channels) > 1 else None

    @torch.inference_mode(mode=False)
    @torch.enable_grad()
    def measure(self, pictures: Tensor) -> dict[str, Tensor]:
        """Measure pictures [N, 3, H, W] in 0..1: for each of `COLUMNS` a number, [N, F]."""
        return self._measure(pictures.clone(), {})

    def _respond(self, part: _Part, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return activations [N, ...], as a leaf, and from them the part's responses, [N, F].

        They are of the smallest part of the map that the features depend on.
        """
        window, target = part.window, part.group.bound_features[0].layer
        if window is None:
            tapped = self.backbone.run(pictures, [self.layer, target], cut=self.layer)
            return tapped[self.layer], part.group(tapped[target])
        shown = window.crop(pictures)
        if window.head is None:
            tapped = self.backbone.run(shown, [self.layer, target], cut=self.layer)
            return tapped[self.layer], window.group(tapped[target])
        with torch.no_grad():
            found = self.backbone.run(shown, [self.layer])[self.layer]
        leaf = cut(found, window.head.box).requires_grad_()
        return leaf, respond(self.backbone, self.layer, window.head, leaf)

    def _whole(self, part: _Part, values: Tensor) -> Tensor:
        """Put values [N, ...] in their place on the whole map; they are 0 elsewhere."""
        if part.box is None or not isinstance(self.attribution, ActGrad):
            return values
        whole = values.new_zeros(len(values), *self.backbone.layout(self.layer).shape)
        cut(whole, part.box).copy_(values)
        return whole

    def _measure(self, pictures: Tensor, maps: dict[int, Tensor]) -> dict[str, Tensor]:
        """Measure pictures, and put what is kept of the features in `maps` there.

        That is attribution and the sign of the activations, [2, N, ...].
        """
        shape = (len(self.features), len(pictures))
        # Single, whatever precision the network computes in.
        none = torch.full(shape, torch.nan, dtype=torch.float32, device=pictures.device)
        measured = {name: none.clone() for name in COLUMNS}
        for part in self._parts:
            pooled = []
            for piece in self._attributions(part, pictures):
                self._reduce(piece, measured)
                if part.has_rivals:
                    assert piece.centred is not None
                    pooled.append(pool(self.backbone, self.layer, piece.activations, piece.centred))
                for place, attribution in zip(piece.places, piece.attribution, strict=False):
                    if place in maps:
                        kept = (attribution, piece.activations.sign())
                        maps[place] = torch.stack([self._whole(part, values) for values in kept])
            if pooled and (profiles := self._profiles.get(part.places[0])):
                attributions = torch.cat([one[1] for one in pooled], 1)
                with torch.autocast(pictures.device.type, enabled=False):
                    index = interference_index(
                        pooled[0][0], attributions, profiles.to(attributions)
                    )
                measured["interference"][part.places] = index.T[: len(part.places)].float()
        return {name: values.T for name, values in measured.items()}

    def _reduce(self, piece: _Slice, measured: Mapping[str, Tensor]) -> None:
        own, dim = len(piece.places), self.channel_dim
        if not own:
            return
        shape = piece.responses[:own].shape
        attribution = piece.attribution[:own].flatten(0, 1)  # [F · N, ...]
        excited, inhibited = self.tension.split(attribution, dim)
        found = {
            "response": piece.responses[:own],
            "excitation": excited,
            "inhibition": inhibited,
            "tension": self.tension(attribution, dim),
            "tension_l2": _AUTHORS(attribution, dim),
        }
        if piece.centred is not None:
            found["tension_centred"] = self.tension(piece.centred[:own].flatten(0, 1), dim)
        for name, values in found.items():
            measured[name][piece.places] = values.view(shape).float()

    def _attributions(self, part: _Part, pictures: Tensor) -> Iterator[_Slice]:
        """Attribute the features of a part, as many at once as memory bears."""
        if not isinstance(self.attribution, ActGrad):
            for place, bound_feature in zip(part.places, part.group.bound_features, strict=True):
                activations, attribution, response = attribute(
                    self.backbone,
                    pictures,
                    [bound_feature] * len(pictures),
                    self.layer,
                    self.attribution,
                )
                told = activations.float(), response[None].float(), attribution[None].float()
                yield _Slice([place], *told, None)
            return
        activations, found = self._respond(part, pictures)
        responses = found.detach().T.float()
        at_once = max(1, _AT_ONCE // activations.numel())
        for start in range(0, len(responses), at_once):
            rows = range(start, min(start + at_once, len(responses)))
            gradient = _jacobian(found, activations, rows).float()  # [F, N, ...]
            values = activations.detach().float()
            centred = None
            if self.mean_activation is not None:
                shape = [1] * values.ndim
                shape[self.channel_dim] = -1
                centred = (values - self.mean_activation.view(shape)) * gradient
            places = part.places[start : rows.stop]
            yield _Slice(
                places, values, responses[rows.start : rows.stop], values * gradient, centred
            )

    # --- the run ---

    def open_store(self, data: PictureData, path: Path, precision: str) -> None:
        """Begin the store at `path`, or go on with the one that is there.

        Args:
            data: The pictures.
            path: Where.
            precision: What the trainer computes in.

        Raises:
            InputError: If there is another sweep, or of other pictures, or something else.
        """
        data.use(self.backbone.preprocessing)
        pictures, provenance = data.pictures, self.provenance(data, precision)
        if holds_sweep(path) and not self.overwrite:
            there = SweepStore(path)
            there.check(provenance, pictures.keys)
            there.check_contents(pictures)
            if there.provenance["data"] != provenance["data"]:
                there.move(provenance)
            return
        check_place(path)
        mean, stamps = self._mean_activation(data)
        with store.writing(path):
            SweepStore.begin(
                path,
                provenance,
                pictures.keys,
                mean.numpy(),
                self.block,
                config=self.config,
                stamps=stamps,
            )
        self.overwrite = False  # from here on it goes on with this one

    def provenance(self, data: PictureData | None, precision: str = "32-true") -> dict[str, Any]:
        """Return what the results depend on, as JSON."""
        provenance = {
            "version": version("mti-lightning"),
            "backbone": self.backbone.name,
            "features": [str(feature) for feature in self.features],
            **attributed(self.backbone, self.layer, self.attribution),
            "tension": {"measure": self.tension.measure, "summed": self.tension.summed},
            "calibrate": self.calibrate,
            "rivals": self.rivals,
            "block": self.block,
            "keep": self.keep,
            "keep_by": list(self.keep_by),
            "keep_features": [str(self.features[place]) for place in self.kept],
            "precision": precision,
            "preprocessing": asdict(self.backbone.preprocessing),
            "data": None if data is None else data.provenance,
        }
        return _as_read_back(provenance)

    @torch.no_grad()
    def _mean_activation(self, data: PictureData) -> tuple[Tensor, dict[int, Stamp]]:
        """Return ā per channel, [C], over some pictures, evenly spread, and their stamps."""
        log_info(f"mean activation of {self.layer} over {self.calibrate} pictures")
        total, pictures = torch.zeros(self.backbone.layout(self.layer).channels), 0
        stamps: dict[int, Stamp] = {}
        for batch in data.loader(self._calibration(data)):
            stamps |= batch.stamps
            if not len(batch.indices):
                continue
            found = self.backbone.run(batch.pictures, [self.layer])[self.layer]
            values = (
                found.movedim(self.channel_dim, -1).flatten(1, -2)
                if found.ndim > 2
                else found[:, None]
            )
            total += values.double().mean(1).sum(0).float()
            pictures += len(found)
        if not pictures:
            count = len(self._calibration(data))
            raise InputError(f"none of {count} pictures, evenly spread over the data, can be read")
        return total / pictures, stamps

    def _calibration(self, data: PictureData) -> list[int]:
        """Return the pictures by which the others are measured."""
        size = len(data.pictures)
        count = min(self.calibrate, size)
        return [index * size // count for index in range(count)]

    @torch.inference_mode(mode=False)
    @torch.enable_grad()
    def _learn_looks(self, data: PictureData) -> None:
        """Measure what features with rivals look like, and put it into the store."""
        assert self._store is not None
        for part in self._parts:
            if not part.has_rivals or self._store.rivals(part.places[0]):
                continue
            log_info(
                f"what {len(part.group.channels)} features that may explain each other look like"
            )
            found = []
            for batch in data.loader(self._calibration(data)):
                pieces = list(self._attributions(part, batch.pictures.clone()))
                pooled = [pool(self.backbone, self.layer, p.activations, p.centred) for p in pieces]  # type: ignore[arg-type]
                responses = torch.cat([piece.responses for piece in pieces]).T
                found.append((pooled[0][0], torch.cat([one[1] for one in pooled], 1), responses))
            activations, attributions, responses = (torch.cat(v) for v in zip(*found, strict=True))
            with torch.autocast(activations.device.type, enabled=False):
                profiles = profile_features(activations, attributions, responses)
            self._store.write_rivals(part.places, part.names, part.box, profiles)

    @staticmethod
    def check_data(data: object) -> PictureData:
        """Return the data, if it is pictures.

        Raises:
            InputError: If it is not.
        """
        if not isinstance(data, PictureData):
            raise InputError("a sweep needs pictures; give --data PictureFolder --data.path FOLDER")
        return data

    def setup(self, stage: str) -> None:
        data = self.check_data(getattr(self.trainer, "datamodule", None))
        if self.store_path is None:
            raise InputError(
                "a sweep needs a place for its results; give --model.store FOLDER.zarr"
            )
        if self.trainer.is_global_zero:
            self.open_store(data, self.store_path, self.trainer.precision)
        self.trainer.strategy.barrier()
        data.use(self.backbone.preprocessing)
        self._store = SweepStore(self.store_path)
        self.mean_activation = torch.from_numpy(self._store.mean_activation)
        self.prepare()
        if self.trainer.is_global_zero:
            self._store.note_windows([self._box(place) for place in range(len(self.features))])
            self._learn_looks(data)
        self.trainer.strategy.barrier()
        self._profiles = {
            part.places[0]: found[2]
            for part in self._parts
            if (found := self._store.rivals(part.places[0]))
        }
        self._blocks: dict[int, tuple[dict[str, Array], Array]] = {}
        self._maps: dict[tuple[int, int], Array] = {}  # as `_measure` keeps them, [2, ...]
        self._tops = self._find_tops()
        block, status = self._store.block, self._store.status
        starts = range(0, len(status), block)
        self._pending = [start for start in starts if not status[start : start + block].all()]
        if done := len(starts) - len(self._pending):
            log_info(f"{self.store_path}: {done} of {len(starts)} blocks are done already")
        self.trainer.strategy.barrier()  # every process sees the same done before one does more

    def _find_tops(self) -> "_Tops":
        """Return which of the pictures that the store holds are top."""
        assert self._store is not None
        tops, status = _Tops(self.kept, self.keep_by, self.keep), self._store.status
        for span in self._store.spans if self.kept else ():
            # Numbers without a status are of a block that was not written to its end.
            index = np.flatnonzero(status[span] == store.MEASURED) + span.start
            if len(index):
                tops.add(index, partial(self._store.values, features=self.kept, pictures=index))
        return tops

    def _box(self, place: int) -> tuple[int, ...] | None:
        """Return the box in pixels that a feature depends on, None where it is not known."""
        (part,) = (part for part in self._parts if place in part.places)
        return part.window.box if part.window else None

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the pictures that are still to do."""
        assert self._store is not None
        if not self._pending:
            warnings.filterwarnings("ignore", "Total length of .DataLoader.")  # it is meant to be 0
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        sampler = Blocks(self._pending, self._store.block, self._store.size, rank, world_size)
        data: PictureData = self.trainer.datamodule  # type: ignore[attr-defined]
        return data.loader(sampler)

    @torch.inference_mode(mode=False)
    @torch.enable_grad()
    def predict_step(self, batch: Loaded, batch_idx: int) -> int:
        """Measure a batch into the store, and return how many pictures it held."""
        for index, reason in batch.unreadable.items():
            self._note(index, store.UNREADABLE, {"reason": reason})
        if len(batch.indices):
            maps: dict[int, Tensor] = dict.fromkeys(self.kept, torch.empty(0))
            found = self._measure(batch.pictures.clone(), maps)
            measured = {name: values.cpu().numpy() for name, values in found.items()}
            for row, index in enumerate(batch.indices.tolist()):
                told: dict[str, Any] = {name: values[row] for name, values in measured.items()}
                if index in batch.stamps:
                    told["stamp"] = batch.stamps[index]
                self._note(index, store.MEASURED, told)
            self._hold(batch.indices.cpu().numpy(), measured, maps)
        for start in [s for s, (_, status) in self._blocks.items() if status.all()]:
            self._write(start)
        return len(batch.indices)

    def _note(self, index: int, status: int, told: Mapping[str, Any]) -> None:
        """Put what is known of a picture into its block."""
        assert self._store is not None
        start = index - index % self._store.block
        if start not in self._blocks:
            rows = min(self._store.block, self._store.size - start)
            wide = (rows, len(self.features))
            columns: dict[str, Array] = {n: np.full(wide, np.nan, np.float32) for n in COLUMNS}
            columns["stamp"] = np.zeros((rows, len(Stamp._fields)), np.int64)
            columns["reason"] = np.zeros(rows, np.dtypes.StringDType())
            self._blocks[start] = columns, np.zeros(rows, np.uint8)
        columns, statuses = self._blocks[start]
        for name, value in told.items():
            columns[name][index - start] = value
        statuses[index - start] = status

    def _hold(
        self, index: Array, measured: Mapping[str, Array], maps: Mapping[int, Tensor]
    ) -> None:
        """Hold on to the maps of the batch that are among the top so far, let the overtaken go."""
        self._tops.add(index, lambda name: measured[name][:, self.kept])
        top = {place: self._tops.of(place) for place in self.kept}
        for place, of_place in maps.items():
            held = of_place.cpu()
            for row, picture in enumerate(index.tolist()):
                if picture in top[place]:
                    self._maps[place, picture] = held[:, row].numpy().copy()
        self._maps = {key: kept for key, kept in self._maps.items() if key[1] in top[key[0]]}

    def _write(self, start: int) -> None:
        assert self._store is not None
        columns, status = self._blocks.pop(start)
        stop = start + len(status)
        rows = [(*key, kept) for key, kept in self._maps.items() if start <= key[1] < stop]
        self._store.write_candidates(start, rows)
        self._maps = {key: kept for key, kept in self._maps.items() if not start <= key[1] < stop}
        self._store.write(start, columns, status)

    def teardown(self, stage: str) -> None:
        """Complete the store; Lightning comes here even where nothing was left to predict."""
        self.trainer.strategy.barrier()
        if self.trainer.is_global_zero:
            self._finish()

    def _finish(self) -> None:
        assert self._store is not None
        if unreadable := self._store.unreadable:
            reasons = list(unreadable.values())
            named = "; ".join(reasons[:NAMED_WHEN_SKIPPED])
            named += "; ..." if len(reasons) > NAMED_WHEN_SKIPPED else ""
            rank_zero_warn(
                f"{len(reasons)} of {self._store.size} pictures could not be read: {named}; the "
                f"array `reason` of {self._store.path} has all. Going on does not read them again: "
                "where they were repaired, begin anew by --model.overwrite true"
            )
        status = self._store.status
        if not status.all():
            return
        if not (status == store.MEASURED).any():
            raise RunError(f"none of the {len(status)} pictures can be read; {self._store.path}")
        tops = self._find_tops()
        wanted = [(place, picture) for place in self.kept for picture in sorted(tops.of(place))]
        self._store.finish(wanted, self.backbone.layout(self.layer).dimensions)


class _Tops:
    """The top pictures so far: for each of some features, by each of some measures.

    Args:
        features: Columns of the sweep.
        measures: By what pictures are top; `-` before one means its low end.
        count: Pictures per feature and measure.
    """

    def __init__(self, features: Sequence[int], measures: Sequence[str], count: int) -> None:
        self.features, self.measures, self.count = features, measures, count
        none = np.empty(0, np.int64), np.empty(0, np.float32)
        self._best = {(f, m): none for f in features for m in measures}

    def add(self, index: Array, column: Callable[[str], Array]) -> None:
        """Take pictures in, [N]; `column` gives their values for a name of `COLUMNS`, [N, F]."""
        for measure in self.measures:
            _, low = check_measure(measure)
            for feature, found in zip(self.features, derive(measure, column).T, strict=True):
                known, best = self._best[feature, measure]
                places, values = np.append(known, index), np.append(best, found)
                order = np.argsort(places)  # equals go by place
                chosen = order[select(values[order], self.count, low)]
                self._best[feature, measure] = places[chosen], values[chosen]

    def of(self, feature: int) -> set[int]:
        """Return those of a feature."""
        return {i for m in self.measures for i in self._best[feature, m][0].tolist()}


def attributed(backbone: Backbone, layer: Layer, method: Attribution) -> dict[str, Any]:
    """Return what attributions depend on, but for pictures and features, as JSON."""
    arguments = method.arguments
    attribution = {
        "class_path": _class_path(method),
        "init_args": arguments,
        "files": _digests(arguments),
    }
    return _as_read_back(
        {
            "weights": backbone.digest(),
            "attribution_layer": str(layer),
            "attribution": attribution,
        }
    )


def _as_read_back(provenance: Mapping[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(json.dumps(provenance, default=_told))
    return told


class SweepProgress(TQDMProgressBar):
    """A bar of the pictures that a sweep still has to do, in pictures per second, and time left."""

    def init_predict_tqdm(self) -> Tqdm:
        bar = super().init_predict_tqdm()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        bar.unit, bar.unit_scale = " pictures", data.batch_size
        return bar


def _told(thing: object) -> str:
    """Return what tells an object; not its address, which is another one in another run."""
    return _class_path(thing) if type(thing).__repr__ is object.__repr__ else str(thing)


def _digests(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return what tells the files that arguments name from others by the same names."""
    return {
        name: hashlib.sha256(Path(value).read_bytes()).hexdigest()[:16]
        for name, value in arguments.items()
        if isinstance(value, str | Path) and Path(value).is_file()
    }


def _class_path(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _jacobian(responses: Tensor, activations: Tensor, features: range) -> Tensor:
    """Return the gradient of some features' responses [N, F], [F', N, ...]."""
    if len(features) == 1:
        chosen = responses[:, features[0]].sum()
        return torch.autograd.grad(chosen, activations, retain_graph=True)[0][None]
    # Pictures do not mix in eval mode, so one row serves them all.
    rows = torch.eye(responses.shape[1]).to(responses)[list(features)]  # [F', F]
    rows = rows[:, None].expand(-1, len(responses), -1)  # [F', N, F]
    (gradient,) = torch.autograd.grad(
        responses, activations, rows, retain_graph=True, is_grads_batched=True
    )
    return gradient
