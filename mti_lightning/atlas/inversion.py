"""The attribution atlas: a map of a sweep's pictures, and an icon for each of its cells."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast, final

import torch
from lightning import Trainer
from torch import Tensor

from mti_lightning.atlas import layout as atlas
from mti_lightning.atlas.layout import Array, Cell, Face, Layout
from mti_lightning.attribution import signs
from mti_lightning.attribution.signs import Sign
from mti_lightning.data.pictures import PictureData
from mti_lightning.errors import InputError, check_range
from mti_lightning.images.seeds import derive_seed
from mti_lightning.log import log_info
from mti_lightning.objectives.bank import Entry, ImageChunk
from mti_lightning.objectives.base import Inversion
from mti_lightning.sweep.measures import check_measure
from mti_lightning.sweep.module import Sweep
from mti_lightning.sweep.progress import SweepProgress
from mti_lightning.sweep.store import SweepStore

FACES: Final[dict[Face, Sign | None]] = {"positive": "+", "negative": "-", "both": None}
_INSTEAD: Final = "give the same, or another chart.sweep"
# Of how a sweep is made, what an atlas depends on; it may have been made of further features.
_SAME = ("weights", "attribution_layer", "attribution", "tension", "preprocessing")
_SAME_DATA = ("data", "keep", "keep_by", "rivals")


@final
@dataclass(frozen=True)
class Chart:
    """How a map is made of a sweep's pictures.

    Args:
        sweep: The sweep's folder, such as `tb_logs/NAME/sweep.zarr`; maps of its pictures'
            attributions must have been kept. `AtlasInversion` makes it of `--data` where it does
            not exist; by default `tb_logs/NAME/sweep.zarr`.
        top: Take this many top pictures by each measure of `by`; by default all that were kept.
        by: Measures by which pictures are top; `-` before one means its low end.
        size: Rows and columns of cells.
        minimum: Pictures that a cell needs for an icon.
        exemplars: Pictures shown of a cell, those nearest its mean.
        neighbours: Of a picture, that UMAP keeps near it.
        min_dist: Between two points of UMAP's.
        trim: The percentile, from either end, beyond which points are moved to the border.
        seed: Of UMAP.

    Raises:
        InputError: If a number is out of range, or there is no such measure.
    """

    sweep: str | None = None
    top: int | None = None
    by: tuple[str, ...] = ("tension", "response", "-response")
    size: tuple[int, int] = (20, 20)
    minimum: int = 6
    exemplars: int = 5
    neighbours: int = 15
    min_dist: float = 0.5
    trim: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_range(1, minimum=self.minimum, size=min(self.size))
        check_range(0, exemplars=self.exemplars, seed=self.seed)
        check_range(0, 1, min_dist=self.min_dist)
        check_range(2, neighbours=self.neighbours)
        check_range(0, 49, trim=self.trim)
        if self.top is not None:
            check_range(1, top=self.top)
        for measure in self.by:
            check_measure(measure)


@final
@dataclass(frozen=True)
class Map:
    """The pictures of a sweep by how they excite and inhibit one feature.

    Attributes:
        store: The sweep.
        feature: The feature's column in it.
        rows: Where the pictures' attribution maps are in the store, [M].
        vectors: Their pooled attributions, [M, D].
        columns: Their numbers by name, [M] each.
        layout: Where they lie.
        cells: Those that have enough pictures.
    """

    store: SweepStore
    feature: int
    rows: Array
    vectors: Array
    columns: dict[str, Array]
    layout: Layout
    cells: list[Cell]


def open_map(chart: Chart, feature: str, provenance: Mapping[str, Any] | None = None) -> Map:
    """Read or fit the map of a feature.

    It is fitted once and kept beside the sweep: it stays the same for every run.

    Args:
        chart: How to map which sweep's pictures.
        feature: One of the sweep's.
        provenance: How the sweep has to have been made, as `attributed` tells.

    Raises:
        InputError: If the sweep is not there, not complete, made otherwise, has not this feature or
            none of its attribution maps, or no cell has enough pictures.
    """
    if chart.sweep is None:
        raise InputError("name the sweep whose pictures the map is of: sweep")
    store = SweepStore(chart.sweep)
    if not store.complete:
        raise InputError(f"{store.path} is not complete; run mti predict again to go on with it")
    store.check_provenance(provenance or {}, _INSTEAD)
    place = store.feature_index(feature)
    rows, pictures = atlas.select_pictures(store, place, chart.top, chart.by)
    vectors = atlas.pool_store(store, rows)
    # Named by all that UMAP is told: another grid takes the same points.
    told = repr((chart.seed, chart.neighbours, chart.min_dist)).encode()
    digest = hashlib.sha256(told + vectors.tobytes()).hexdigest()[:12]
    kept = store.path.with_name(f"{store.path.stem}.map-{digest}.npy")
    if kept.is_file():
        points = atlas.load(kept, len(pictures))
    else:
        log_info(f"mapping {len(pictures)} pictures by UMAP")
        points = atlas.embed(vectors, chart.seed, chart.neighbours, chart.min_dist)
        atlas.save(points, kept)
    layout = atlas.lay_out(pictures, points, chart.size, chart.trim)
    columns = atlas.columns_of(store, place, pictures)
    cells = atlas.cells(layout, vectors, columns, chart.minimum, chart.exemplars)
    if not cells:
        raise InputError(
            f"no cell of the map of {len(pictures)} pictures has {chart.minimum}; give a smaller "
            "chart.size or chart.minimum, or sweep more pictures"
        )
    return Map(store, place, rows, vectors, columns, layout, cells)


@final
class AtlasInversion(Inversion):
    """The icons of an attribution atlas: for each cell of the map its + face, − face and both.

    A face is made like an inversion, of the mean of its pictures' T⁺ or T⁻, each picture's
    attribution divided by its norm, so that no strong one speaks for its cell. `both` is the sum of
    the two, much as the authors' atlas shows them. In cells of ten tense pictures of the embedded
    world a judge found the shape in 94% and the veto in 100% of the faces; in 88% and 97% when the
    signs were split after the mean, where those of different pictures cancel.

    Args:
        chart: The map. A sweep that is there has to be of this network, layer, attribution and
            tension, and of `--data` and `keep` where data is given.
        faces: Which faces to make: `positive`, `negative`, `both`.
        faint: Leave a face out where the cell's mean E⁺ (E⁻, their sum) is below this share of the
            strongest cell's: divided by its norm, next to nothing would look like something.
        keep: Where the sweep has to be made first: the attribution maps of this many top pictures
            by each measure of `chart.by` go into the atlas.
        rivals: Where the sweep has to be made first: how many features, this one and other channels
            of its layer, may explain each other's tension. With it the atlas can be coloured by the
            interference index; by default it cannot.
    """

    needs_sources = False
    signs = ()  # it plans its faces itself

    def __init__(
        self,
        *args: Any,
        chart: Chart | None = None,
        faces: tuple[Face, ...] = ("positive", "negative", "both"),
        faint: float = 0.05,
        keep: int = 1000,
        rivals: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if len(self.features) > 1:
            raise InputError(f"an atlas is of one feature; {len(self.features)} were given")
        if self.accentuate:
            raise InputError("accentuate: an icon stands for many pictures and starts from none")
        if not faces:
            raise InputError("faces: name at least one of " + ", ".join(FACES))
        check_range(0, 1, faint=faint)
        check_range(1, keep=keep)
        check_range(0, rivals=rivals or 0)
        self.chart, self.faces = chart or Chart(), faces
        self.faint, self.keep, self.rivals = faint, keep, rivals
        self.map: Map | None = None
        self._cells: list[dict[Face, Tensor]] = []  # the targets of each

    def build_bank(self, data: PictureData | None) -> None:
        """Open the map, make the sweep first where there is none, and make the images.

        Raises:
            InputError: If there is neither sweep nor data, the sweep was made otherwise, or nothing
                excites or inhibits the feature.
        """
        if self.chart.sweep is None:
            raise InputError("chart.sweep: name the sweep's folder")
        self._sweep(data, Path(self.chart.sweep))
        self.map = open_map(self.chart, str(self.features[0]))
        self.source_keys = [f"row{c.row:02d}_column{c.column:02d}" for c in self.map.cells]
        self._cells = [self._targets(self.map, cell) for cell in self.map.cells]
        super().build_bank(data)
        self.find_rivals(self.map.store)

    def _sweep(self, data: PictureData | None, path: Path) -> None:
        """Make the sweep, or make sure that the one that is there is the one that is meant."""
        asked: dict[str, Any] = {}
        if data is not None:
            asked = {"keep": self.keep, "keep_by": self.chart.by, "rivals": self.rivals}
        sweep = Sweep(
            self.backbone,
            [str(feature) for feature in self.features],
            str(self.layer),
            self.attribution,
            self.tension,
            store=str(path),
            **asked,
        )
        if data is not None:
            sweep.check_data(data).use(self.backbone.preprocessing)
        if path.exists() and (store := SweepStore(path)).complete:
            provenance = sweep.provenance(data)
            same = _SAME if data is None else (*_SAME, *_SAME_DATA)
            store.check_provenance({name: provenance[name] for name in same}, _INSTEAD)
            if data is not None:
                store.check_keys(data.pictures.keys, _INSTEAD)
            return
        if data is None:
            raise InputError(
                f"there is no complete sweep at {path}; make it by mti predict with --model.keep "
                "N, or give --data to have it made now"
            )
        trainer = Trainer(
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            callbacks=[SweepProgress()],
            devices=1,
        )
        trainer.predict(sweep, datamodule=data, return_predictions=False)

    def _targets(self, found: Map, cell: Cell) -> dict[Face, Tensor]:
        """Return a cell's target for each face, [1, ...]."""
        rows = found.rows[cell.members]
        attribution = torch.from_numpy(found.store.maps(rows))  # [n, ...]
        sign = torch.from_numpy(found.store.maps(rows, "activation_sign"))
        norm = torch.linalg.vector_norm(attribution.flatten(1), dim=1).clamp(min=1e-12)
        unit = attribution / norm.view(-1, *[1] * (attribution.ndim - 1))

        def mean(side: Sign) -> Tensor:
            target = signs.split_target(unit, side, self.coherent, self.channel_dim)
            # As for an inversion, an activation that is negative has to become so again.
            return torch.where(sign < 0, -target, target).mean(0, keepdim=True)

        positive, negative = mean("+"), mean("-")
        return {"positive": positive, "negative": negative, "both": positive + negative}

    def _plan(self) -> list[Entry]:
        entries = [
            Entry(
                f"{cell}_{face}_seed{seed}",
                derive_seed(seed, self.features[0], cell),
                0,
                face,
                seed,
                FACES[face],
                source,
            )
            for source, cell in enumerate(self.source_keys)
            for seed in range(self.seed, self.seed + self.seeds)
            for face in self.faces
            if self._shows(source, face)
        ]
        if not entries:
            raise InputError(
                f"nothing excites or inhibits {self.features[0]} at {self.layer} in the pictures "
                f"of {self.chart.sweep}, so there is no face to make; try an earlier attribution "
                "layer, other pictures, or coherent: false"
            )
        return entries

    def _shows(self, source: int, face: Face) -> bool:
        """Return whether there is something to show on a cell's face."""
        assert self.map is not None
        strengths = [_strength(cell, face) for cell in self.map.cells]
        strong = strengths[source] >= self.faint * max(strengths)
        return strong and bool(self._cells[source][face].any())

    def target(self, chunk: ImageChunk) -> tuple[Tensor, Tensor]:
        cells = [self._cells[entry.source or 0] for entry in chunk.entries]
        targets = [
            cell[cast("Face", entry.objective)]
            for cell, entry in zip(cells, chunk.entries, strict=True)
        ]
        both = torch.cat([cell["both"] for cell in cells]).to(self.device)
        return torch.cat(targets).to(self.device), signs.support_mask(
            both, channel_dim=self.channel_dim
        )


def _strength(cell: Cell, face: Face) -> float:
    excited, inhibited = cell.means["excitation"], cell.means["inhibition"]
    return {"positive": excited, "negative": inhibited, "both": excited + inhibited}[face]
