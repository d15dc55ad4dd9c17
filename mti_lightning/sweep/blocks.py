"""The blocks of a sweep: which are still to do, and what is measured of those under way."""

from collections.abc import Container, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, final

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DistributedSampler

from mti_lightning.backbone import ActivationLayout, Backbone
from mti_lightning.data.base import NAMED_WHEN_SKIPPED, Loaded
from mti_lightning.data.datasets import Stamp
from mti_lightning.errors import InputError, RunError
from mti_lightning.features.bound import expand
from mti_lightning.features.feature import Feature
from mti_lightning.log import log_info
from mti_lightning.sweep.measures import Array, Tops, check_measure
from mti_lightning.sweep.store import MEASURED, UNREADABLE, SweepStore
from mti_lightning.sweep.writing import SweepWriter


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
class OpenBlocks:
    """Blocks under way: held until all their pictures are measured, then written.

    Args:
        store: Where they are written.
        tops: The top pictures so far, whose attribution maps are held.
        pending: First indices of the blocks to do; pictures of others are left out.
    """

    def __init__(self, store: SweepWriter, tops: Tops, pending: Container[int]) -> None:
        self.store, self.tops, self.pending = store, tops, pending
        self._blocks: dict[int, tuple[dict[str, Array], Array]] = {}  # columns and status
        self._maps: dict[tuple[int, int], Array] = {}  # of a feature and a picture, [2, ...]

    def add(self, batch: Loaded, numbers: Mapping[str, Tensor], maps: Mapping[int, Tensor]) -> None:
        """Take in a batch and what was measured of it, and write the blocks that it completes.

        Args:
            batch: Pictures, and those that could not be read.
            numbers: What was measured of the pictures, [N, F], of parts or units [N, F, K].
            maps: For each feature whose maps are kept those of the pictures, [2, N, ...].
        """
        for index, reason in batch.unreadable.items():
            if self._is_pending(index):
                self._note(index, UNREADABLE, {"reason": reason})
        indices = batch.indices.tolist()
        rows = [row for row, index in enumerate(indices) if self._is_pending(index)]
        if len(rows) < len(indices):
            numbers = {name: values[rows] for name, values in numbers.items()}
            maps = {feature: values[:, rows] for feature, values in maps.items()}
        indices = [indices[row] for row in rows]
        measured = {name: values.cpu().numpy() for name, values in numbers.items()}
        for row, index in enumerate(indices):
            told: dict[str, Any] = {name: values[row] for name, values in measured.items()}
            if index in batch.stamps:
                told["stamp"] = batch.stamps[index]
            self._note(index, MEASURED, told)
        if indices:
            self._hold(np.array(indices), measured, maps)
        for start in [s for s, (_, status) in self._blocks.items() if status.all()]:
            self._write(start)

    def _is_pending(self, index: int) -> bool:
        return index - index % self.store.block in self.pending

    def _note(self, index: int, status: int, told: Mapping[str, Any]) -> None:
        """Put what is known of a picture into its block."""
        start = index - index % self.store.block
        if start not in self._blocks:
            rows = min(self.store.block, self.store.size - start)
            columns: dict[str, Array] = {
                name: np.full((rows, *array.shape), np.nan, np.float32)
                for name, array in self.store.measured.items()
            }
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
        features = self.tops.features
        self.tops.add(index, lambda name: measured[name][:, features])
        top = {feature: self.tops.of(feature) for feature in features}
        for feature, of_feature in maps.items():
            held = of_feature.cpu()
            for row, picture in enumerate(index.tolist()):
                if picture in top[feature]:
                    self._maps[feature, picture] = held[:, row].numpy().copy()
        self._maps = {key: kept for key, kept in self._maps.items() if key[1] in top[key[0]]}

    def _write(self, start: int) -> None:
        columns, status = self._blocks.pop(start)
        stop = start + len(status)
        rows = [(*key, kept) for key, kept in self._maps.items() if start <= key[1] < stop]
        self.store.write_candidates(start, rows)
        self._maps = {key: kept for key, kept in self._maps.items() if not start <= key[1] < stop}
        self.store.write(start, columns, status)


def pending_blocks(store: SweepStore) -> list[int]:
    """Return the first index of each block that is not written yet."""
    status, block = store.status, store.block
    starts = range(0, len(status), block)
    pending = [start for start in starts if not status[start : start + block].all()]
    if done := len(starts) - len(pending):
        log_info(f"{store.path}: {done} of {len(starts)} blocks are done already")
    return pending


def find_tops(
    store: SweepStore, features: Sequence[int], measures: Sequence[str], count: int
) -> Tops:
    """Return which of the pictures that a store holds are top; see `Tops`."""
    tops, status = Tops(features, measures, count), store.status
    for span in store.spans if features else ():
        # Numbers without a status are of a block that was not written to its end.
        index = np.flatnonzero(status[span] == MEASURED) + span.start
        if len(index):
            tops.add(index, partial(store.values, features=features, pictures=index))
    return tops


def finish(
    store: SweepWriter,
    features: Sequence[int],
    measures: Sequence[str],
    count: int,
    layout: ActivationLayout,
) -> None:
    """Keep the top pictures' maps once all blocks are written; warn of pictures that are missing.

    Args:
        store: The sweep.
        features: Those whose maps are kept.
        measures: By what pictures are top.
        count: Pictures per feature and measure.
        layout: How a map lies.

    Raises:
        RunError: If no picture could be read.
    """
    if unreadable := store.unreadable:
        reasons = list(unreadable.values())
        named = "; ".join(reasons[:NAMED_WHEN_SKIPPED])
        named += "; ..." if len(reasons) > NAMED_WHEN_SKIPPED else ""
        rank_zero_warn(
            f"{len(reasons)} of {store.size} pictures could not be read: {named}; the "
            f"array `reason` of {store.path} has all. Going on does not read them again: "
            "where they were repaired, begin anew by --model.overwrite true"
        )
    status = store.status
    if not status.all():
        return
    if not (status == MEASURED).any():
        raise RunError(f"none of the {len(status)} pictures can be read; {store.path}")
    tops = find_tops(store, features, measures, count)
    wanted = [(place, picture) for place in features for picture in sorted(tops.of(place))]
    store.finish(wanted, layout)


def kept_features(
    features: Sequence[Feature],
    count: int,
    measures: Sequence[str],
    given: Sequence[str | dict[str, Any]] | None,
    backbone: Backbone,
) -> list[int]:
    """Return the places of the features whose maps are kept.

    Args:
        features: Those of the sweep.
        count: How many maps are kept of each, by each measure; 0 keeps none.
        measures: By what pictures are top.
        given: The features that were named; None for all.
        backbone: The network.

    Raises:
        InputError: If there is no such measure or feature, or none are named of many.
    """
    for measure in measures:
        check_measure(measure)
    if not count:
        return []
    if given is None:
        if len(features) > 16:
            raise InputError(
                f"keep {count} of {len(features)} features would fill the disk; name "
                "those whose maps you want in keep_features"
            )
        return list(range(len(features)))
    for feature in (wanted := expand(given, backbone)):
        if feature not in features:
            raise InputError(f"keep_features: {feature} is not among the features")
    return [features.index(feature) for feature in wanted]
