"""The sweep: how every picture of a data set excites and inhibits features, in one pass."""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

import torch
from lightning import Trainer
from torch import Tensor

from mti_lightning.attribution.effects import tells_parts
from mti_lightning.attribution.methods import Attribution
from mti_lightning.attribution.module import AttributionModule
from mti_lightning.attribution.steps import CHOSEN_ON
from mti_lightning.attribution.tension import Measure, Tension
from mti_lightning.backbone import Backbone
from mti_lightning.data.base import Loaded, PictureData
from mti_lightning.errors import InputError, check_range
from mti_lightning.features.bound import expand
from mti_lightning.files import at_home, file_name
from mti_lightning.locks import Hold, hold
from mti_lightning.log import log_info
from mti_lightning.sweep.beginning import open_or_begin
from mti_lightning.sweep.blocks import (
    Blocks,
    OpenBlocks,
    find_tops,
    finish,
    kept_features,
    pending_blocks,
)
from mti_lightning.sweep.calibration import evenly_spread, learn_profiles, mean_activation
from mti_lightning.sweep.fetching import Fetch
from mti_lightning.sweep.groups import find_parts
from mti_lightning.sweep.measures import TRUTH
from mti_lightning.sweep.measuring import Measured, Measurement, measure_together
from mti_lightning.sweep.opening import holds_sweep
from mti_lightning.sweep.progress import Pace
from mti_lightning.sweep.provenance import as_made, as_read_back, attributed
from mti_lightning.sweep.store import SweepStore
from mti_lightning.sweep.writing import SweepWriter, check_place


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
        attribution: The attribution method; by default integrated gradients, in as few steps as the
            features need: one backward pass, act×grad, where that adds up.
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
        units: Keep what each channel of the attribution layer adds to each feature, summed over
            positions; `mti inhibitors` names the inhibitors by it. The log tells what it takes of
            the disk.
        block: Pictures between two writes; what was not written is done again after a stop.
        overwrite: Begin anew where `store` holds another sweep; nothing else is ever replaced.
        further_layers: More attribution layers. Each has a store of its own beside `store`, such as
            `sweep_layer2.zarr`, as if it were swept alone; pictures are read once for all, and run
            through the network once.

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
        units: bool = False,
        block: int = 256,
        overwrite: bool = False,
        further_layers: Sequence[str] = (),
    ) -> None:
        if store == "":
            raise InputError("store '': give the name of a folder, such as sweep.zarr")
        check_range(0, keep=keep, rivals=rivals or 0)
        check_range(1, calibrate=calibrate, block=block)
        different: Any = list(dict.fromkeys(expand(features, backbone)))
        super().__init__(backbone, different, attribution_layer, attribution, tension)
        self.store_path = None if store is None else at_home(store)
        self.keep, self.keep_by = keep, tuple(keep_by)
        self.kept = kept_features(self.features, keep, self.keep_by, keep_features, backbone)
        self.calibrate, self.block, self.overwrite = calibrate, block, overwrite
        self.rivals, self.units = rivals, units
        self.from_ground = not units  # a unit that is silenced is set to 0
        self.config: str | None = None  # the command line's, for the store
        # A process may find nothing left to do while others do.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.measurement: Measurement | None = None
        self.pace = Pace()  # of the run
        self._hold: Hold | None = None
        self._fetches: list[Fetch] = []
        others = [one for one in dict.fromkeys(further_layers) if one != str(self.layer)]
        alike: Any = (attribution, tension, None, keep, keep_by, keep_features, calibrate, rivals)
        alike += (units, block, overwrite)
        # Each of them is told of a run by this one.
        self._others = tuple(Sweep(backbone, features, one, *alike) for one in others)

    # --- what a picture gives ---

    def prepare(self, mean_activation: Tensor | None = None) -> None:
        """Find what is computed of the pictures for the features; `measure` needs it.

        Args:
            mean_activation: ā, [C]; without it no centred tension and no interference is measured.
        """
        self.settle([])
        of = (self.backbone, self.layer, self.attribution)
        parts = find_parts(self.bound_features, *of, self.rivals)
        measured = Measurement(*of, self.tension, parts, mean_activation, units=self.units)
        self.measurement = measured.with_linear_heads()

    def measure(self, pictures: Tensor) -> dict[str, Tensor]:
        """Measure pictures [N, 3, H, W] in 0..1: for each of `COLUMNS` a number, [N, F]."""
        assert self.measurement is not None
        return self.measurement.measure(pictures)[0]

    # --- the run ---

    def open_store(self, data: PictureData, path: Path, precision: str) -> None:
        """Begin the store at `path`, or go on with the one that is there; hold it until the end.

        Args:
            data: The pictures, as the backbone sees them.
            path: Where.
            precision: What the trainer computes in.

        Raises:
            InputError: If there is another sweep, or of other pictures, or something else, or
                another process is at it.
        """
        self._check_parts(data.pictures.parts)
        units = self.layout.channels if self.units else 0
        check_place(path)
        self._hold = hold(path)
        classes = {
            str(one.feature): one.class_names for one in self.bound_features if one.class_names
        }
        try:
            if holds_sweep(path) and not self.overwrite:
                self.take_steps(SweepStore(path).provenance.get("attribution", {}))
            else:
                self.settle(evenly_spread(data, CHOSEN_ON, {}))
                if units:
                    size = 4 * len(data.pictures) * len(self.features) * units / 1e6
                    log_info(f"{path}: {units} contributions to a feature, {size:,.1f} MB at most")
            open_or_begin(
                path,
                self.provenance(data, precision),
                data.pictures,
                partial(mean_activation, self.backbone, self.layer, data, self.calibrate),
                self.block,
                self.config,
                classes=classes,
                units=units,
                made=as_made(self.backbone),
                anew=self.overwrite,
            )
        except BaseException:
            self._hold.release()
            raise
        self.overwrite = False  # from here on it goes on with this one

    def _check_parts(self, parts: int) -> None:
        if parts and not tells_parts(self.layout):
            raise InputError(
                f"{self.layer} has no positions, or one: nothing tells parts of pictures apart "
                "there; name an attribution layer that has several"
            )
        if not parts and (asked := [m for m in self.keep_by if m.removeprefix("-") in TRUTH]):
            raise InputError(
                f"keep_by: {', '.join(asked)} is known of CompositePictures alone; leave it out"
            )

    def provenance(self, data: PictureData | None, precision: str = "32-true") -> dict[str, Any]:
        """Return what the results depend on, as JSON."""
        provenance = {
            "version": version("mti-lightning"),
            "backbone": self.backbone.name,
            "features": [str(feature) for feature in self.features],
            **attributed(self.backbone, self.layer, self.attribution),
            "tension": self.tension.provenance,
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
        for other in self._others:
            beside = f"{self.store_path.stem}_{file_name(str(other.layer))}"
            other.store_path = self.store_path.with_name(beside + self.store_path.suffix)
            other.config = self.config
        try:
            for sweep in (self, *self._others) if trainer.is_global_zero else ():
                assert sweep.store_path is not None
                sweep.open_store(pictures, sweep.store_path, trainer.precision)
        except BaseException:
            self._release()
            raise

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.trainer.strategy.barrier()  # the stores are there
        data = self.check_data(self.trainer.datamodule)  # type: ignore[attr-defined]
        for sweep in (*self._others, self):
            sweep.trainer = self.trainer
            sweep.to(self.device)
            sweep.open_blocks(data)
        sweeps = (self, *self._others)
        pending = sorted({start for sweep in sweeps for start in sweep.pending})
        if not pending:
            warnings.filterwarnings("ignore", "Total length of .\\w*Loader.")  # it is meant to be 0
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        sampler = Blocks(pending, self._store.block, self._store.size, rank, world_size)
        data.serve("predict", data.loader(sampler))
        self.pace, self._fetches = Pace(), []
        self.trainer.strategy.barrier()  # every process sees the same done before one does more

    def open_blocks(self, data: PictureData) -> None:
        """Find what is still to be measured, and how, of the pictures of the store."""
        assert self.store_path is not None
        self._store = store = SweepWriter(self.store_path)
        store.makes_shards = self.trainer.is_global_zero
        self.take_steps(store.provenance["attribution"])
        self.prepare(torch.from_numpy(store.mean_activation).to(self.device))
        measurement = self.measurement
        assert measurement is not None
        if self.trainer.is_global_zero:
            store.note_windows([measurement.window(place) for place in range(len(self.features))])
            learn_profiles(store, measurement, data, self.calibrate)
        self.trainer.strategy.barrier()
        known = {part.places[0]: store.rivals(part.places[0]) for part in measurement.parts}
        of = self.backbone.mean
        profiles = {place: found[2].to(of) for place, found in known.items() if found}
        self.measurement = replace(measurement, profiles=profiles)
        tops = find_tops(store, self.kept, self.keep_by, self.keep)
        self.pending = frozenset(pending_blocks(store))
        self._open_blocks = OpenBlocks(store, tops, self.pending)

    def predict_step(self, batch: Loaded, batch_idx: int) -> int:
        """Measure a batch into the store, and return how many pictures it held."""
        sweeps = (self, *self._others)
        measured: list[Measured] = [({}, {}) for _ in sweeps]
        with self.pace.spending("network"):
            if len(batch.indices):
                ways = [sweep.measurement for sweep in sweeps if sweep.measurement]
                keeps = [sweep.kept for sweep in sweeps]
                of = (batch.pictures, keeps, batch.without, batch.masks)
                measured = measure_together(ways, *of)
            self._fetches.append(Fetch(batch, measured))
        self._write(1 if self._fetches[-1].is_under_way else 0)
        return len(batch.indices)

    def _write(self, left: int) -> None:
        """Put into the store what was measured, but for the last so many batches."""
        while len(self._fetches) > left:
            fetch = self._fetches.pop(0)
            with self.pace.spending("network"):  # which is done once its numbers are here
                measured = fetch.wait()
            with self.pace.spending("writing"):
                for sweep, found in zip((self, *self._others), measured, strict=True):
                    sweep._open_blocks.add(fetch.batch, *found)  # noqa: SLF001  of its own kind
            self.pace.pictures += len(fetch.batch.indices)

    def on_predict_epoch_end(self) -> None:
        self._write(0)

    def teardown(self, stage: str) -> None:
        """Complete the store; Lightning comes here even where nothing was left to predict."""
        self.trainer.strategy.barrier()
        if self.trainer.is_global_zero:
            for sweep in (self, *self._others):
                sweep.finish()
            if self.pace.pictures:
                log_info(str(self.pace))
            self._release()

    def finish(self) -> None:
        """Complete the store, if all blocks are in it."""
        finish(self._store, self.kept, self.keep_by, self.keep, self.layout)

    @property
    def store_paths(self) -> list[Path]:
        """All stores that are written."""
        paths = [sweep.store_path for sweep in (self, *self._others)]
        return [path for path in paths if path is not None]

    def _release(self) -> None:
        for sweep in (self, *self._others):
            if sweep._hold is not None:  # noqa: SLF001  of its own kind
                sweep._hold.release()  # noqa: SLF001
