"""The icons of an attribution atlas: + face, − face and both for each cell of a map."""

import hashlib
from collections.abc import Sequence
from typing import Any, Final, cast, final

import torch
from torch import Tensor

from mti_lightning.atlas.columns import commonest
from mti_lightning.atlas.layout import Cell, Face
from mti_lightning.atlas.map import Chart, Map, open_map
from mti_lightning.atlas.placing import MIDDLE, aligned, strongest
from mti_lightning.atlas.selection import maps_at_once
from mti_lightning.atlas.sweeping import ensure_sweep
from mti_lightning.attribution.signs import Sign, split_target, support_mask
from mti_lightning.backbone import Layer
from mti_lightning.errors import InputError, check_range
from mti_lightning.files import at_home
from mti_lightning.images.seeds import derive_seed
from mti_lightning.objectives.chunk import Entry, ImageChunk
from mti_lightning.objectives.interference import find_rivals
from mti_lightning.objectives.inversion import Inversion, Target
from mti_lightning.objectives.sources import check_source_data

FACES: Final[dict[Face, Sign | None]] = {"positive": "+", "negative": "-", "both": None}


@final
class AtlasInversion(Inversion):
    """The icons of an attribution atlas: for each cell of the map its + face, − face and both.

    Of several features, such as classes or the channels of a layer, there is one map, in which a
    point is a picture and one of them: it shows by what they are excited (inhibited) alike.

    A face is made like an inversion, of the mean of its pictures' T⁺ or T⁻, each picture's
    attribution divided by its norm, so that no strong one speaks for its cell. `both` is the sum of
    the two, much as the authors' atlas shows them. In cells of ten tense pictures of the vetoed
    shapes a judge found the shape in 94% and the veto in 100% of the faces; in 88% and 97% when the
    signs were split after the mean, where those of different pictures cancel.

    Args:
        chart: The map. A sweep that is there has to be of this network, layer, attribution and
            tension, and of `--data` and `keep` where data is given.
        faces: Which faces to make: `positive`, `negative`, `both`; where each sign has a map of its
            own there is no `both`.
        align: Move each picture's T⁺ (T⁻) so that its strongest place comes to the middle before
            they are averaged; in `both`, T⁺ to the left and T⁻ to the right. By default where each
            sign has a map of its own (`chart.apart`) and the feature has no place: things lie
            anywhere.
        faint: Leave a face out where the cell's mean E⁺ (E⁻, their sum) is below this share of the
            strongest cell's: divided by its norm, next to nothing would look like something.
        keep: Where the sweep has to be made first: the attribution maps of this many top pictures
            by each measure of `chart.by` go into the atlas.
        rivals: Where the sweep has to be made first: how many features, this one and other channels
            of its layer, may explain each other's tension. With it the atlas can be coloured by the
            interference index; by default it cannot.
        beside: The folder of a finished atlas of the same pictures, such as of another layer or
            network, or of its versions: at the end the two are shown side by side, their cells
            linked by the pictures they share.
    """

    needs_sources = False
    decisive = ("power", "coherent", "faint", "align")
    signs = ()  # it plans its faces itself

    def __init__(
        self,
        *args: Any,
        chart: Chart | None = None,
        faces: tuple[Face, ...] = ("positive", "negative", "both"),
        align: bool | None = None,
        faint: float = 0.05,
        keep: int = 1000,
        rivals: int | None = None,
        beside: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.accentuate:
            raise InputError("accentuate: an icon stands for many pictures and starts from none")
        if self.also:
            raise InputError("also: an atlas is of one layer")
        if not faces:
            raise InputError("faces: name at least one of " + ", ".join(FACES))
        check_range(0, 1, faint=faint)
        check_range(1, keep=keep)
        check_range(0, rivals=rivals or 0)
        self.chart = chart or Chart()
        self.faces = tuple(f for f in faces if FACES[f] or not self.chart.apart)
        if not self.faces:
            raise InputError("faces: with chart.apart there are positive and negative, not both")
        anywhere = all(of.position in (None, "peak", "mean") for of in self.bound_features)
        self.align = (self.chart.apart and anywhere) if align is None else align
        self.faint, self.keep, self.rivals, self.beside = faint, keep, rivals, beside
        self.maps: dict[Face, Map] = {}  # of each face; mostly the same
        self._sources: list[tuple[Map, Cell]] = []
        self._targets: list[dict[Face, Tensor]] = []  # of each source

    def build_bank(self, data: object) -> None:
        """Open the map, make the sweep first where there is none, and make the images.

        Raises:
            InputError: If there is neither sweep nor data, the sweep was made otherwise, or nothing
                excites or inhibits the feature.
        """
        if self.chart.sweep is None:
            raise InputError("chart.sweep: name the sweep's folder")
        pictures = check_source_data(data, None)
        self._check_memory(1)  # before the sweep, which takes long
        asked: dict[str, Any] = {}
        if pictures is not None:
            asked = {"keep": self.keep, "keep_by": self.chart.by, "rivals": self.rivals}
        ensure_sweep(self, pictures, at_home(self.chart.sweep), **asked)
        self.maps = self._open_maps()
        self._sources = [(found, cell) for found in self.different_maps for cell in found.cells]
        self.source_keys = [_key(found, cell) for found, cell in self._sources]
        self._digest = hashlib.sha256()
        self._targets = [self._targets_of(*source) for source in self._sources]
        super().build_bank(data)
        self.pictures_digest = f"{self.pictures_digest or ''}{self._digest.hexdigest()[:16]}"
        self.known_rivals |= find_rivals(self.different_maps[0].store, self)

    def _open_maps(self) -> dict[Face, Map]:
        features = [*map(str, self.features)]
        if self.chart.apart:
            return {face: open_map(self.chart, features, sign=FACES[face]) for face in self.faces}
        return dict.fromkeys(self.faces, open_map(self.chart, features))

    @property
    def different_maps(self) -> list[Map]:
        """The maps, each once."""
        return list({id(found): found for found in self.maps.values()}.values())

    @property
    def map(self) -> Map | None:
        """The map, or the first of several; None before it is opened."""
        return next(iter(self.maps.values()), None)

    def cell(self, source: int) -> Cell:
        """Return the cell that a source of icons is."""
        return self._sources[source][1]

    def _targets_of(self, found: Map, cell: Cell) -> dict[Face, Tensor]:
        """Return a cell's target for each face, [1, ...]."""
        if found.sign is not None:
            (mean,) = self._means(found, cell, [(found.sign, MIDDLE)])
            return {face: mean for face in self.faces if FACES[face] == found.sign}
        sides: list[tuple[Sign, tuple[float, float]]] = [("+", MIDDLE), ("-", MIDDLE)]
        if not self.align:
            return dict(zip(("positive", "negative"), self._means(found, cell, sides), strict=True))
        sides += [("+", (0.5, 0.25)), ("-", (0.5, 0.75))]
        positive, negative, left, right = self._means(found, cell, sides)
        return {"positive": positive, "negative": negative, "both": left + right}

    def _means(
        self, found: Map, cell: Cell, sides: Sequence[tuple[Sign, tuple[float, float]]]
    ) -> list[Tensor]:
        """Return the means, [1, ...], of a sign of a cell's pictures, moved to a place if aligned.

        Of a cell with very many pictures some at a time, as maps are large.
        """
        rows, step = found.rows[cell.members], maps_at_once(self.layout)
        totals = [torch.zeros(()) for _ in sides]
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            attribution = torch.from_numpy(found.store.maps(part))  # [n, ...]
            self._digest.update(attribution.numpy().tobytes())
            below = torch.from_numpy(found.store.maps(part, "activation_sign")) < 0
            whole = attribution if found.sign else _units(attribution)
            for place, (sign, to) in enumerate(sides):
                wanted = self._wanted(whole, below, sign, to, apart=found.sign is not None)
                totals[place] = totals[place] + wanted.sum(0, keepdim=True)
        return [total / len(rows) for total in totals]

    def _wanted(
        self, whole: Tensor, below: Tensor, sign: Sign, to: tuple[float, float], *, apart: bool
    ) -> Tensor:
        """Return a sign of pictures' attributions as activations that are to be had, [n, ...]."""
        scale = self.tension.scale
        target = split_target(whole, sign, self.coherent, self.layout, scale)
        if apart:  # only this one counts
            target = _units(target)
        # As for an inversion, an activation that is below the baseline has to become so again.
        wanted = torch.where(below, -target, target)
        if self.align and self.layout.grid is not None:
            wanted = aligned(wanted, strongest(target, self.layout, scale), self.layout, to)
        return wanted

    def _target_of(self, source: int, face: Face) -> Tensor:
        """Return a cell's target for a face; one that is the sum of two others is not kept."""
        of = self._targets[source]
        return of[face] if face in of else of["positive"] + of["negative"]

    def plan(self) -> list[Entry]:
        features = [self._feature_of(*source) for source in self._sources]
        entries = [
            Entry(
                f"{cell}_{face}_seed{seed}",
                derive_seed(seed, self.features[0], cell),
                features[source],
                face,
                seed,
                FACES[face],
                source,
            )
            for source, cell in enumerate(self.source_keys)
            for seed in range(self.seed, self.seed + self.seeds)
            for face in self.faces
            if face in (*self._targets[source], "both") and self.shows(source, face)
        ]
        if not entries:
            raise InputError(
                f"nothing excites or inhibits {self.different_maps[0].name} at {self.layer} in the "
                f"pictures of {self.chart.sweep}, so there is no face to make; try an earlier "
                "attribution layer, other pictures, or coherent: false"
            )
        return entries

    def _feature_of(self, found: Map, cell: Cell) -> int:
        """Return the place of the feature that most points of a cell are of."""
        (column, _), *_ = commonest(found.of[cell.members].tolist())
        return found.features.index(column)

    def shows(self, source: int, face: Face) -> bool:
        """Return whether there is something to show on a cell's face."""
        found, cell = self._sources[source]
        strong = self.faint * max(_strength(one, face) for one in found.cells)
        return _strength(cell, face) >= strong and bool(self._target_of(source, face).any())

    def target(self, chunk: ImageChunk) -> dict[Layer, Target]:
        targets, supports = [], []
        for entry in chunk.entries:
            source, face = entry.source or 0, cast("Face", entry.objective)
            own = self._target_of(source, face).to(self.device)
            targets.append(own)
            alone = self.align or len(self._targets[source]) == 1
            whole = own if alone else self._target_of(source, "both").to(self.device)
            supports.append(support_mask(whole, channel_dim=self.layout.channel_dim))
        return {self.layer: (torch.cat(targets), torch.cat(supports))}


def _units(values: Tensor) -> Tensor:
    """Divide each map [n, ...] by its norm."""
    norm = torch.linalg.vector_norm(values.flatten(1), dim=1).clamp(min=1e-12)
    unit: Tensor = values / norm.view(-1, *[1] * (values.ndim - 1))
    return unit


def _key(found: Map, cell: Cell) -> str:
    apart = {"+": "excites_", "-": "inhibits_", None: ""}[found.sign]
    return f"{apart}row{cell.row:02d}_column{cell.column:02d}"


def _strength(cell: Cell, face: Face) -> float:
    excited, inhibited = cell.means["excitation"], cell.means["inhibition"]
    return {"positive": excited, "negative": inhibited, "both": excited + inhibited}[face]
