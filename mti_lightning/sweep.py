"""The sweep: how every picture of a data set excites and inhibits features, in one pass."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
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
from mti_lightning.data import Loaded, PictureData
from mti_lightning.errors import InputError, RunError
from mti_lightning.feature import Probe, ProbeGroup, expand
from mti_lightning.layers import activation_warning
from mti_lightning.log import say
from mti_lightning.receptive_field import Window, find_window, respond
from mti_lightning.signs import Tension
from mti_lightning.store import COLUMNS, Array, SweepStore, check_measure, select

# Numbers of a Jacobian that are computed at once: 128 MiB.
_AT_ONCE = 2**25
_AUTHORS = Tension("l2")
_NAMED_WHEN_SKIPPED = 3


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
        overwrite: Begin anew where `store` holds another sweep.

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
        check_method(self.attribution, backbone, self.layer, self.probes[0])
        self.store_path = None if store is None else Path(store)
        self.keep, self.keep_by = keep, tuple(keep_by)
        for measure in self.keep_by:
            if check_measure(measure)[0] not in COLUMNS:
                raise InputError(f"keep_by {measure!r}: take one of {', '.join(COLUMNS)}")
        self.kept = self._kept(keep_features) if keep else []
        self.calibrate, self.block, self.overwrite = calibrate, block, overwrite
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
        measured = {name: pictures.new_full(shape, torch.nan) for name in COLUMNS}
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
                activations, attribution, responses[place] = attribute(
                    self.backbone, pictures, [probe] * len(pictures), self.layer, self.attribution
                )
                yield _Slice([place], activations, attribution[None], None)
            return
        activations, found = self._respond(part, pictures)
        responses[part.places] = found.detach().T
        at_once = max(1, _AT_ONCE // activations.numel())
        for start in range(0, len(part.places), at_once):
            rows = range(start, min(start + at_once, len(part.places)))
            gradient = _jacobian(found, activations, rows)  # [F, N, ...]
            values = activations.detach()
            centred = None
            if self.mean_activation is not None:
                shape = [1] * values.ndim
                shape[self.channel_dim] = -1
                centred = (values - self.mean_activation.view(shape)) * gradient
            yield _Slice([part.places[row] for row in rows], values, values * gradient, centred)

    # --- the run ---

    def open_store(self, data: PictureData, path: Path) -> None:
        """Begin the store at `path`, or go on with the one that is there.

        Raises:
            InputError: If there is another sweep, or of other pictures.
        """
        data.use(self.backbone.preprocessing)
        keys, made = data.pictures.keys, self.made(data)
        if path.exists() and not self.overwrite:
            self._store = SweepStore(path)
            self._store.check(made, keys)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        mean = self._mean_activation(data).numpy()
        with store.writing(path):
            self._store = SweepStore.begin(path, made, keys, mean, self.block)

    def made(self, data: PictureData) -> dict[str, Any]:
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
            "preprocessing": asdict(self.backbone.preprocessing),
            "data": data.made,
        }
        told: dict[str, Any] = json.loads(json.dumps(made, default=str))  # as it will be read back
        return told

    @torch.no_grad()
    def _mean_activation(self, data: PictureData) -> Tensor:
        """Return ā per channel, [C], over some pictures, evenly spread."""
        say(f"mean activation of {self.layer} over {self.calibrate} pictures")
        size = len(data.pictures)
        count = min(self.calibrate, size)
        chosen = [index * size // count for index in range(count)]
        total, pictures = torch.zeros(self.backbone.site(self.layer).channels), 0
        for batch in data.loader(chosen):
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
        return total / pictures

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
        if self.trainer.is_global_zero and self._store is None:
            self.open_store(data, self.store_path)
        self.trainer.strategy.barrier()
        data.use(self.backbone.preprocessing)
        self._store = SweepStore(self.store_path)
        self.mean_activation = torch.from_numpy(self._store.mean_activation)
        self.prepare()
        if self.trainer.is_global_zero:
            self._store.note_windows([self._box(place) for place in range(len(self.features))])
        self._blocks: dict[int, tuple[dict[str, Array], Array]] = {}
        self._maps: dict[tuple[int, int], Array] = {}  # as `_measure` keeps them, [2, ...]
        self._unreadable: list[str] = []
        self._best = {
            (place, measure): _Best(self.keep, measure, self._store.values(measure, place))
            for place in self.kept
            for measure in self.keep_by
        }

    def _box(self, place: int) -> tuple[int, ...] | None:
        """Return the box in pixels that a feature depends on, None where it is not known."""
        (part,) = (part for part in self._parts if place in part.places)
        return part.window.box if part.window else None

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the pictures that are still to do."""
        assert self._store is not None
        trainer, status = self.trainer, self._store.status
        block = self._store.block
        starts = range(0, len(status), block)
        pending = [start for start in starts if not status[start : start + block].all()]
        if done := len(starts) - len(pending):
            say(f"{self._store.path}: {done} of {len(starts)} blocks are done already")
        sampler = Blocks(pending, block, len(status), trainer.global_rank, trainer.world_size)
        data: PictureData = trainer.datamodule  # type: ignore[attr-defined]
        return data.loader(sampler)

    @torch.inference_mode(mode=False)
    @torch.enable_grad()
    def predict_step(self, batch: Loaded, batch_idx: int) -> int:
        """Measure a batch into the store, and return how many pictures it held."""
        self._unreadable += batch.unreadable.values()
        for index in batch.unreadable:
            self._note(index, {}, store.UNREADABLE)
        if len(batch.indices):
            maps: dict[int, Tensor] = dict.fromkeys(self.kept, torch.empty(0))
            found = self._measure(batch.pictures.clone(), maps)
            measured = {name: values.cpu().numpy() for name, values in found.items()}
            for row, index in enumerate(batch.indices.tolist()):
                self._note(
                    index, {n: values[row] for n, values in measured.items()}, store.MEASURED
                )
            self._hold(batch.indices.numpy(), measured, maps)
        for start in [s for s, (_, status) in self._blocks.items() if status.all()]:
            self._write(start)
        return len(batch.indices)

    def _note(self, index: int, measured: Mapping[str, Array], status: int) -> None:
        """Put a picture's numbers into its block."""
        assert self._store is not None
        start = index - index % self._store.block
        if start not in self._blocks:
            rows = min(self._store.block, self._store.size - start)
            empty = np.full((rows, len(self.features)), np.nan, np.float32)
            columns = {name: empty.copy() for name in COLUMNS}
            self._blocks[start] = columns, np.zeros(rows, np.uint8)
        columns, statuses = self._blocks[start]
        for name, values in measured.items():
            columns[name][index - start] = values
        statuses[index - start] = status

    def _hold(
        self, index: Array, measured: Mapping[str, Array], maps: Mapping[int, Tensor]
    ) -> None:
        """Hold on to the maps of the batch that are among the top so far, let the overtaken go."""
        for (place, measure), best in self._best.items():
            best.add(index, measured[check_measure(measure)[0]][:, place])
        for place, of_place in maps.items():
            top = self._top(place)
            held = of_place.cpu()
            for row, picture in enumerate(index.tolist()):
                if picture in top:
                    self._maps[place, picture] = held[:, row].numpy().copy()
        top_of = {place: self._top(place) for place in self.kept}
        self._maps = {key: kept for key, kept in self._maps.items() if key[1] in top_of[key[0]]}

    def _top(self, place: int) -> set[int]:
        return {i for measure in self.keep_by for i in self._best[place, measure].index.tolist()}

    def _write(self, start: int) -> None:
        assert self._store is not None
        columns, status = self._blocks.pop(start)
        stop = start + len(status)
        rows = [(*key, kept) for key, kept in self._maps.items() if start <= key[1] < stop]
        self._store.write_candidates(start, rows)
        self._maps = {key: kept for key, kept in self._maps.items() if not start <= key[1] < stop}
        self._store.write(start, columns, status)

    def on_predict_end(self) -> None:
        assert self._store is not None
        if self._unreadable:
            named = "; ".join(self._unreadable[:_NAMED_WHEN_SKIPPED])
            named += "; ..." if len(self._unreadable) > _NAMED_WHEN_SKIPPED else ""
            rank_zero_warn(f"{len(self._unreadable)} pictures cannot be read: {named}")
        self.trainer.strategy.barrier()
        status = self._store.status
        if not self.trainer.is_global_zero or self._store.complete or not status.all():
            return
        if not (status == store.MEASURED).any():
            raise RunError(f"none of the {len(status)} pictures can be read; {self._store.path}")
        wanted = [
            (place, picture)
            for place in self.kept
            for picture in sorted(
                {i for m in self.keep_by for i in self._store.top(place, m, self.keep)}
            )
        ]
        self._store.finish(wanted, self.backbone.site(self.layer).dimensions)


class _Best:
    """The pictures with the highest values of a measure so far, or the lowest."""

    def __init__(self, count: int, measure: str, values: Array) -> None:
        self.count, self.low = count, check_measure(measure)[1]
        self.index = select(values, count, self.low)
        self.values = values[self.index]

    def add(self, index: Array, values: Array) -> None:
        """Take further pictures in, [N]."""
        index, values = np.append(self.index, index), np.append(self.values, values)
        order = np.argsort(index)
        index, values = index[order], values[order]
        chosen = select(values, self.count, self.low)
        self.index, self.values = index[chosen], values[chosen]


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
