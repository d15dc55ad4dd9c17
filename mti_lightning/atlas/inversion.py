"""The icons of an attribution atlas: + face, − face and both for each cell of a map."""

import hashlib
from typing import Any, Final, cast, final

import torch
from torch import Tensor

from mti_lightning.atlas.layout import Cell, Face
from mti_lightning.atlas.map import Chart, Map, open_map
from mti_lightning.atlas.sweeping import ensure_sweep
from mti_lightning.attribution.signs import Sign, split_target, support_mask
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

    A face is made like an inversion, of the mean of its pictures' T⁺ or T⁻, each picture's
    attribution divided by its norm, so that no strong one speaks for its cell. `both` is the sum of
    the two, much as the authors' atlas shows them. In cells of ten tense pictures of the vetoed
    shapes a judge found the shape in 94% and the veto in 100% of the faces; in 88% and 97% when the
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
    decisive = ("power", "coherent", "faint")
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

    def build_bank(self, data: object) -> None:
        """Open the map, make the sweep first where there is none, and make the images.

        Raises:
            InputError: If there is neither sweep nor data, the sweep was made otherwise, or nothing
                excites or inhibits the feature.
        """
        if self.chart.sweep is None:
            raise InputError("chart.sweep: name the sweep's folder")
        pictures = check_source_data(data, None)
        asked: dict[str, Any] = {}
        if pictures is not None:
            asked = {"keep": self.keep, "keep_by": self.chart.by, "rivals": self.rivals}
        ensure_sweep(self, pictures, at_home(self.chart.sweep), **asked)
        self.map = open_map(self.chart, str(self.features[0]))
        self.source_keys = [f"row{c.row:02d}_column{c.column:02d}" for c in self.map.cells]
        self._maps = hashlib.sha256()
        self._cells = [self._targets(self.map, cell) for cell in self.map.cells]
        super().build_bank(data)
        self.pictures_digest = f"{self.pictures_digest or ''}{self._maps.hexdigest()[:16]}"
        self.known_rivals |= find_rivals(self.map.store, self)

    def _targets(self, found: Map, cell: Cell) -> dict[Face, Tensor]:
        """Return a cell's target for each face, [1, ...]."""
        rows = found.rows[cell.members]
        attribution = torch.from_numpy(found.store.maps(rows))  # [n, ...]
        self._maps.update(attribution.numpy().tobytes())
        sign = torch.from_numpy(found.store.maps(rows, "activation_sign"))
        norm = torch.linalg.vector_norm(attribution.flatten(1), dim=1).clamp(min=1e-12)
        unit = attribution / norm.view(-1, *[1] * (attribution.ndim - 1))

        def mean(side: Sign) -> Tensor:
            target = split_target(unit, side, self.coherent, self.layout, self.tension.scale)
            # As for an inversion, an activation that is negative has to become so again.
            return torch.where(sign < 0, -target, target).mean(0, keepdim=True)

        positive, negative = mean("+"), mean("-")
        return {"positive": positive, "negative": negative, "both": positive + negative}

    def plan(self) -> list[Entry]:
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
            if self.shows(source, face)
        ]
        if not entries:
            raise InputError(
                f"nothing excites or inhibits {self.shown[0]} at {self.layer} in the pictures "
                f"of {self.chart.sweep}, so there is no face to make; try an earlier attribution "
                "layer, other pictures, or coherent: false"
            )
        return entries

    def shows(self, source: int, face: Face) -> bool:
        """Return whether there is something to show on a cell's face."""
        assert self.map is not None
        strengths = [_strength(cell, face) for cell in self.map.cells]
        strong = strengths[source] >= self.faint * max(strengths)
        return strong and bool(self._cells[source][face].any())

    def target(self, chunk: ImageChunk) -> Target:
        cells = [self._cells[entry.source or 0] for entry in chunk.entries]
        targets = [
            cell[cast("Face", entry.objective)]
            for cell, entry in zip(cells, chunk.entries, strict=True)
        ]
        both = torch.cat([cell["both"] for cell in cells]).to(self.device)
        return torch.cat(targets).to(self.device), support_mask(
            both, channel_dim=self.layout.channel_dim
        )


def _strength(cell: Cell, face: Face) -> float:
    excited, inhibited = cell.means["excitation"], cell.means["inhibition"]
    return {"positive": excited, "negative": inhibited, "both": excited + inhibited}[face]
