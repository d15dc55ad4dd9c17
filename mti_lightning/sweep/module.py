"""The sweep: how every picture of a data set excites and inhibits features, in one pass."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

import torch
from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from mti_lightning.attribution.methods import Attribution
from mti_lightning.attribution.module import AttributionModule
from mti_lightning.attribution.tension import Measure, Tension
from mti_lightning.backbone import Backbone
from mti_lightning.data.base import NAMED_WHEN_SKIPPED, Loaded, PictureData
from mti_lightning.data.datasets import Stamp
from mti_lightning.errors import InputError, RunError, check_range
from mti_lightning.features.bound import expand
from mti_lightning.log import log_info
from mti_lightning.sweep.blocks import Blocks, OpenBlocks, find_tops, pending_blocks
from mti_lightning.sweep.measures import check_measure
from mti_lightning.sweep.measuring import Measurement, find_parts, mean_activation
from mti_lightning.sweep.provenance import as_read_back, attributed
from mti_lightning.sweep.store import MEASURED, holds_sweep
from mti_lightning.sweep.writing import SweepWriter, check_place, writing


@final
class Sweep(AttributionModule):
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
        check_range(0, keep=keep, rivals=rivals or 0)
        check_range(1, calibrate=calibrate, block=block)
        different: Any = list(dict.fromkeys(expand(features, backbone)))
        super().__init__(backbone, different, attribution_layer, attribution, tension)
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
        self.measurement: Measurement | None = None

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

    def prepare(self, mean_activation: Tensor | None = None) -> None:
        """Find what is computed of the pictures for the features; `measure` needs it.

        Args:
            mean_activation: ā, [C]; without it no centred tension and no interference is measured.
        """
        of = (self.backbone, self.layer, self.attribution)
        parts = find_parts(self.bound_features, *of, self.rivals)
        self.measurement = Measurement(*of, self.tension, parts, mean_activation)

    def measure(self, pictures: Tensor) -> dict[str, Tensor]:
        """Measure pictures [N, 3, H, W] in 0..1: for each of `COLUMNS` a number, [N, F]."""
        assert self.measurement is not None
        return self.measurement.measure(pictures)[0]

    # --- the run ---

    def open_store(self, data: PictureData, path: Path, precision: str) -> None:
        """Begin the store at `path`, or go on with the one that is there.

        Args:
            data: The pictures, as the backbone sees them.
            path: Where.
            precision: What the trainer computes in.

        Raises:
            InputError: If there is another sweep, or of other pictures, or something else.
        """
        pictures, provenance = data.pictures, self.provenance(data, precision)
        if holds_sweep(path) and not self.overwrite:
            there = SweepWriter(path)
            there.check(provenance, pictures.keys)
            there.check_contents(pictures)
            if there.provenance["data"] != provenance["data"]:
                there.move(provenance)
            return
        check_place(path)
        mean, stamps = self._mean_activation(data)
        with writing(path):
            SweepWriter.begin(
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
        return as_read_back(provenance)

    def _mean_activation(self, data: PictureData) -> tuple[Tensor, dict[int, Stamp]]:
        """Return ā per channel, [C], over some pictures, evenly spread, and their stamps."""
        log_info(f"mean activation of {self.layer} over {self.calibrate} pictures")
        stamps: dict[int, Stamp] = {}
        mean = mean_activation(self.backbone, self.layer, self._calibration(data, stamps))
        if mean is None:
            count = min(self.calibrate, len(data.pictures))
            raise InputError(f"none of {count} pictures, evenly spread over the data, can be read")
        return mean, stamps

    def _calibration(
        self, data: PictureData, stamps: dict[int, Stamp] | None = None
    ) -> Iterator[Tensor]:
        """Yield the pictures by which the others are measured, [N, 3, H, W] each; note stamps."""
        size = len(data.pictures)
        count = min(self.calibrate, size)
        for batch in data.loader([index * size // count for index in range(count)]):
            if stamps is not None:
                stamps |= batch.stamps
            if len(batch.indices):
                yield batch.pictures

    @staticmethod
    def check_data(data: object) -> PictureData:
        """Return the data, if it is pictures.

        Raises:
            InputError: If it is not.
        """
        if not isinstance(data, PictureData):
            raise InputError("a sweep needs pictures; give --data PictureFolder --data.path FOLDER")
        return data

    def prepare_run(self, trainer: Trainer, data: object) -> None:
        pictures = self.check_data(data)
        if self.store_path is None:
            raise InputError(
                "a sweep needs a place for its results; give --model.store FOLDER.zarr"
            )
        pictures.use(self.backbone.preprocessing)
        if trainer.is_global_zero:
            self.open_store(pictures, self.store_path, trainer.precision)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.trainer.strategy.barrier()  # the store is there
        data = self.check_data(self.trainer.datamodule)  # type: ignore[attr-defined]
        assert self.store_path is not None
        self._store = store = SweepWriter(self.store_path)
        self.prepare(torch.from_numpy(store.mean_activation))
        measurement = self.measurement
        assert measurement is not None
        if self.trainer.is_global_zero:
            store.note_windows([measurement.window(place) for place in range(len(self.features))])
            self._learn_profiles(measurement, data)
        self.trainer.strategy.barrier()
        known = {part.places[0]: store.rivals(part.places[0]) for part in measurement.parts}
        profiles = {place: found[2] for place, found in known.items() if found}
        self.measurement = replace(measurement, profiles=profiles)
        self._open_blocks = OpenBlocks(store, find_tops(store, self.kept, self.keep_by, self.keep))
        pending, blocks = pending_blocks(store), -(-store.size // store.block)
        if done := blocks - len(pending):
            log_info(f"{self.store_path}: {done} of {blocks} blocks are done already")
        if not pending:
            warnings.filterwarnings("ignore", "Total length of .DataLoader.")  # it is meant to be 0
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        sampler = Blocks(pending, store.block, store.size, rank, world_size)
        data.serve("predict", data.loader(sampler))
        self.trainer.strategy.barrier()  # every process sees the same done before one does more

    def _learn_profiles(self, measurement: Measurement, data: PictureData) -> None:
        """Measure what features with rivals look like, and put it into the store."""
        for part in measurement.parts:
            if not part.has_rivals or self._store.rivals(part.places[0]):
                continue
            log_info(
                f"what {len(part.group.channels)} features that may explain each other look like"
            )
            profiles = measurement.profile(part, self._calibration(data))
            self._store.write_rivals(part.places, part.names, part.box, profiles)

    def predict_step(self, batch: Loaded, batch_idx: int) -> int:
        """Measure a batch into the store, and return how many pictures it held."""
        assert self.measurement is not None
        measured: Any = ({}, {})
        if len(batch.indices):
            measured = self.measurement.measure(batch.pictures, self.kept)
        self._open_blocks.add(batch, *measured)
        return len(batch.indices)

    def teardown(self, stage: str) -> None:
        """Complete the store; Lightning comes here even where nothing was left to predict."""
        self.trainer.strategy.barrier()
        if self.trainer.is_global_zero:
            self._finish()

    def _finish(self) -> None:
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
        if not (status == MEASURED).any():
            raise RunError(f"none of the {len(status)} pictures can be read; {self._store.path}")
        tops = find_tops(self._store, self.kept, self.keep_by, self.keep)
        wanted = [(place, picture) for place in self.kept for picture in sorted(tops.of(place))]
        self._store.finish(wanted, self.backbone.layout(self.layer).dimensions)
