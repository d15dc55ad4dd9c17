"""The sweep: how every picture of a data set excites and inhibits features, in one pass."""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
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

from mti_lightning import store
from mti_lightning.attribution import ActGrad, Attribution, attribute, check_method, check_path
from mti_lightning.backbone import Backbone, Layer
from mti_lightning.boxes import cut
from mti_lightning.data import NAMED_WHEN_SKIPPED, Loaded, PictureData, Stamp
from mti_lightning.errors import InputError, RunError
from mti_lightning.feature import Probe, ProbeGroup, activation_warning, expand
from mti_lightning.log import say
from mti_lightning.receptive_field import Window, find_window, respond
from mti_lightning.signs import Tension
from mti_lightning.store import (
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
    """Features that are read together, and the part of the pictures that they depend on."""

    group: ProbeGroup
    places: list[int]
    window: Window | None


@dataclass(frozen=True)
class _Slice:
    """Attributions of some features, all pictures."""

    places: list[int]  # F of the sweep's features
    activations: Tensor  # [N, ...]
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
        tension: The tension measure, of which a mean-centred one is reported, too.
        store: The zarr group to write; by default `tb_logs/NAME/sweep.zarr`.
        keep: Keep the attribution maps of this many top pictures by each measure of `keep_by`.
        keep_by: Measures by which pictures are top; `-` before one means its low end.
        keep_features: The features whose maps are kept; by default all, if there are 16 or fewer.
        calibrate: Pictures, evenly spread over the data, whose mean activation per channel the
            centred tension subtracts.
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
        tension: Tension | None = None,
        store: str | None = None,
        keep: int = 0,
        keep_by: Sequence[str] = ("tension", "response", "-response"),
        keep_features: Sequence[str | dict[str, Any]] | None = None,
        calibrate: int = 256,
        block: int = 256,
        overwrite: bool = False,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("keep", keep, 0),
            ("calibrate", calibrate, 1),
            ("block", block, 1),
        ):
            if value < least:
                raise InputError(f"{name} {value}: give {least} or more")
        if not features:
            raise InputError("features: name at least one")
        self.backbone = backbone
        self.features = list(dict.fromkeys(expand(features, backbone)))
        self.layer = Layer.parse(attribution_layer)
        self.channel_dim = backbone.site(self.layer).channel_dim
        self.probes = [Probe(feature, backbone) for feature in self.features]
        self.attribution, self.tension = attribution or ActGrad(), tension or Tension()
        check_method(self.attribution, backbone.site(self.layer))
        self.store_path = None if store is None else Path(store)
        self.keep, self.keep_by = keep, tuple(keep_by)
        for measure in self.keep_by:
            check_measure(measure)
        self.kept = self._kept(keep_features) if keep else []
        self.calibrate, self.block, self.overwrite = calibrate, block, overwrite
        self.config: str | None = None  # the command line's, for the store
        # A process may find nothing left to do while others do.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.register_buffer("mean_activation", None, persistent=False)
        self._parts: list[_Part] = []
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
        for group, places in ProbeGroup.of(self.probes).items():
            first = group.probes[0]
            check_path(self.backbone, first, self.layer)
            if warning := activation_warning(first.feature, self.backbone):
                rank_zero_warn(warning)
            found = find_window(self.backbone, self.layer, group)
            if isinstance(found, str):
                say(f"whole pictures are computed for {first.feature}: {found}")
            self._parts.append(_Part(group, places, None if isinstance(found, str) else found))

    @torch.inference_mode(mode=False)
    @torch.enable_grad()
    def measure(self, pictures: Tensor) -> dict[str, Tensor]:
        """Measure pictures [N, 3, H, W] in 0..1: for each of `COLUMNS` a number, [N, F]."""
        return self._measure(pictures.clone(), {})

    def _respond(self, part: _Part, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return activations [N, ...], as a leaf, and from them the part's responses, [N, F].

        They are of the smallest part of the map that the features depend on.
        """
        window, target = part.window, part.group.probes[0].layer
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
        if part.window is None or not isinstance(self.attribution, ActGrad):
            return values
        top, left = part.window.map_box[:2]
        if part.window.head is not None:
            top, left = top + part.window.head.box[0], left + part.window.head.box[1]
        site = self.backbone.site(self.layer)
        whole = values.new_zeros(len(values), *site.shape)
        cut(whole, (top, left, *values.shape[2:])).copy_(values)
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
            for piece in self._attributions(part, pictures, measured["response"]):
                self._reduce(piece, measured)
                for place, attribution in zip(piece.places, piece.attribution, strict=True):
                    if place in maps:
                        kept = (attribution, piece.activations.sign())
                        maps[place] = torch.stack([self._whole(part, values) for values in kept])
        return {name: values.T for name, values in measured.items()}

    def _reduce(self, piece: _Slice, measured: Mapping[str, Tensor]) -> None:
        shape, dim = piece.attribution.shape[:2], self.channel_dim
        attribution = piece.attribution.flatten(0, 1)  # [F · N, ...]
        excited, inhibited = self.tension.split(attribution, dim)
        found = {
            "excitation": excited,
            "inhibition": inhibited,
            "tension": self.tension(attribution, dim),
            "tension_l2": _AUTHORS(attribution, dim),
        }
        if piece.centred is not None:
            found["tension_centred"] = self.tension(piece.centred.flatten(0, 1), dim)
        for name, values in found.items():
            measured[name][piece.places] = values.view(shape)

    def _attributions(self, part: _Part, pictures: Tensor, responses: Tensor) -> Iterator[_Slice]:
        """Attribute the features of a part, as many at once as memory bears; note the responses."""
        if not isinstance(self.attribution, ActGrad):
            for place, probe in zip(part.places, part.group.probes, strict=True):
                activations, attribution, response = attribute(
                    self.backbone, pictures, [probe] * len(pictures), self.layer, self.attribution
                )
                responses[place] = response.float()
                yield _Slice([place], activations.float(), attribution[None].float(), None)
            return
        activations, found = self._respond(part, pictures)
        responses[part.places] = found.detach().T.float()
        at_once = max(1, _AT_ONCE // activations.numel())
        for start in range(0, len(part.places), at_once):
            rows = range(start, min(start + at_once, len(part.places)))
            gradient = _jacobian(found, activations, rows).float()  # [F, N, ...]
            values = activations.detach().float()
            centred = None
            if self.mean_activation is not None:
                shape = [1] * values.ndim
                shape[self.channel_dim] = -1
                centred = (values - self.mean_activation.view(shape)) * gradient
            yield _Slice([part.places[row] for row in rows], values, values * gradient, centred)

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
        pictures, made = data.pictures, self.made(data, precision)
        if holds_sweep(path) and not self.overwrite:
            there = SweepStore(path)
            there.check(made, pictures.keys)
            there.check_contents(pictures)
            if there.made["data"] != made["data"]:
                there.move(made)
            return
        check_place(path)
        mean, stamps = self._mean_activation(data)
        with store.writing(path):
            SweepStore.begin(
                path,
                made,
                pictures.keys,
                mean.numpy(),
                self.block,
                config=self.config,
                stamps=stamps,
            )
        self.overwrite = False  # from here on it goes on with this one

    def made(self, data: PictureData, precision: str) -> dict[str, Any]:
        """Return what the results depend on, as JSON."""
        arguments = {k: v for k, v in vars(self.attribution).items() if not k.startswith("_")}
        made = {
            "version": version("mti-lightning"),
            "backbone": self.backbone.name,
            "weights": weights_digest(self.backbone),
            "features": [str(feature) for feature in self.features],
            "attribution_layer": str(self.layer),
            "attribution": {
                "class_path": _class_path(self.attribution),
                "init_args": arguments,
            },
            "tension": {"measure": self.tension.measure, "summed": self.tension.summed},
            "calibrate": self.calibrate,
            "block": self.block,
            "keep": self.keep,
            "keep_by": list(self.keep_by),
            "keep_features": [str(self.features[place]) for place in self.kept],
            "precision": precision,
            "preprocessing": asdict(self.backbone.preprocessing),
            "data": data.made,
        }
        told: dict[str, Any] = json.loads(json.dumps(made, default=str))  # as it will be read back
        return told

    @torch.no_grad()
    def _mean_activation(self, data: PictureData) -> tuple[Tensor, dict[int, Stamp]]:
        """Return ā per channel, [C], over some pictures, evenly spread, and their stamps."""
        say(f"mean activation of {self.layer} over {self.calibrate} pictures")
        size = len(data.pictures)
        count = min(self.calibrate, size)
        chosen = [index * size // count for index in range(count)]
        total, pictures = torch.zeros(self.backbone.site(self.layer).channels), 0
        stamps: dict[int, Stamp] = {}
        for batch in data.loader(chosen):
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
            raise InputError(f"none of {count} pictures, evenly spread over the data, can be read")
        return total / pictures, stamps

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
        self._blocks: dict[int, tuple[dict[str, Array], Array]] = {}
        self._maps: dict[tuple[int, int], Array] = {}  # as `_measure` keeps them, [2, ...]
        self._tops = self._find_tops()
        block, status = self._store.block, self._store.status
        starts = range(0, len(status), block)
        self._pending = [start for start in starts if not status[start : start + block].all()]
        if done := len(starts) - len(self._pending):
            say(f"{self.store_path}: {done} of {len(starts)} blocks are done already")
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
                f"{len(reasons)} of {self._store.size} pictures cannot be read: {named}; the array "
                f"`reason` of {self._store.path} has all"
            )
        status = self._store.status
        if not status.all():
            return
        if not (status == store.MEASURED).any():
            raise RunError(f"none of the {len(status)} pictures can be read; {self._store.path}")
        tops = self._find_tops()
        wanted = [(place, picture) for place in self.kept for picture in sorted(tops.of(place))]
        self._store.finish(wanted, self.backbone.site(self.layer).dimensions)


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


def weights_digest(backbone: Backbone) -> str:
    """Return what tells a network's weights from others."""
    weights = hashlib.sha256()
    for name, value in backbone.network.state_dict().items():
        raw = value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        weights.update(name.encode() + raw)
    return weights.hexdigest()[:16]


class SweepProgress(TQDMProgressBar):
    """A bar of the pictures that a sweep still has to do, in pictures per second, and time left."""

    def init_predict_tqdm(self) -> Tqdm:
        bar = super().init_predict_tqdm()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        bar.unit, bar.unit_scale = " pictures", data.batch_size
        return bar


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
