"""The callback that composes an atlas at the end of each epoch."""

from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from shutil import rmtree

from lightning import Callback, LightningModule, Trainer
from PIL import Image

from mti_lightning.atlas import picture as atlas_picture
from mti_lightning.atlas.beside import PAGES, check_same_pictures, compare, finished
from mti_lightning.atlas.contents import KIND, WHERE, Contents, units_of, write_tables
from mti_lightning.atlas.data_set import labels_of, thumbnails_of
from mti_lightning.atlas.icons import icons_of, placed_on
from mti_lightning.atlas.inversion import AtlasInversion
from mti_lightning.atlas.layout import Face
from mti_lightning.atlas.map import Chart, Map, open_map
from mti_lightning.atlas.page import write_page
from mti_lightning.atlas.projector import project
from mti_lightning.files import at_home, file_name, replacing
from mti_lightning.loggers import log_picture, loggers_of, run_folder, tensorboards
from mti_lightning.objectives.base import Objective
from mti_lightning.sweep.provenance import attributed
from mti_lightning.sweep.store import SweepStore


class AtlasLog(Callback):
    """Composes the atlas at the end of each epoch, as PNG and in TensorBoard.

    Of `AtlasInversion`, from its icons as they are, and at the end the page `atlas.html`, and
    another atlas beside it where one is named. Of any
    other objective, where a chart is given, it shows where the run's own pictures lie on the map of
    the data set. TensorBoard's projector gets the pictures' pooled attributions.

    Args:
        chart: The map, for objectives other than `AtlasInversion`.
    """

    def __init__(self, chart: Chart | None = None) -> None:
        self.chart = chart
        self._folder: Path | None = None
        # In the first process: of the objective's features, or of an atlas the different ones.
        self._maps: dict[int, Map] = {}
        self._contents: list[Contents] = []

    def open_maps(self, objective: Objective) -> None:
        """Open the map of each feature of an objective, whose own pictures are to be placed on it.

        `mti fit` does so before the run's folder exists.

        Raises:
            InputError: If there is none, or it is of another network, layer or attribution; or an
                atlas that another is to be shown beside does not find that.
        """
        if isinstance(objective, AtlasInversion) and objective.beside is not None:
            finished(at_home(objective.beside))
        if self.chart is None or isinstance(objective, AtlasInversion):
            return
        if self.chart.sweep is not None:
            store = SweepStore(self.chart.sweep)
            objective.take_steps(store.provenance.get("attribution", {}))
        own = attributed(objective.backbone, objective.layer, objective.attribution)
        self._maps = {
            place: open_map(self.chart, str(feature), own)
            for place, feature in enumerate(objective.features)
        }

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._folder = run_folder(trainer)  # all processes have to ask for it together
        if isinstance(pl_module, Objective) and trainer.is_global_zero and not self._maps:
            self.open_maps(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(pl_module, AtlasInversion) and trainer.is_global_zero:
            self._maps = dict(enumerate(pl_module.different_maps))
            if pl_module.beside is not None:
                other = finished(at_home(pl_module.beside))
                check_same_pictures(other, pl_module.different_maps[0].store.keys)
        for writer in tensorboards(loggers_of(trainer)) if self._maps else ():
            project(self._maps.values(), Path(writer.log_dir))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._maps, self._contents = {}, []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._folder and self._maps and trainer.global_step == 0:
            # Of another run, which was killed: nothing of it may stay beside this one's.
            rmtree(self._folder / "atlas", ignore_errors=True)
        self._make_up(trainer, pl_module)
        if isinstance(pl_module, AtlasInversion) and self._maps:
            self._open_contents(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._compose(trainer, pl_module, trainer.current_epoch)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._make_up(trainer, pl_module)  # a run that was finished comes here at once
        if isinstance(pl_module, AtlasInversion) and self._maps and self._folder:
            for contents in self._contents or self._open_contents(trainer, pl_module):
                path = self._folder / f"{PAGES[KIND[contents.map.sign]]}.html"
                _write_page(path, pl_module, contents)
            if pl_module.beside is not None:
                drawn = compare(finished(at_home(pl_module.beside)), self._folder)
                for name, picture in drawn.items():
                    epoch = max(trainer.current_epoch - 1, 0)
                    log_picture(loggers_of(trainer), f"atlas/{name}", picture, epoch)

    def _open_contents(self, trainer: Trainer, objective: AtlasInversion) -> list[Contents]:
        """Find what the cells hold, write it down, and show their photographs."""
        self._contents = [Contents.of(m, objective.backbone) for m in self._maps.values()]
        if self._folder is None:
            return self._contents
        self._folder.mkdir(parents=True, exist_ok=True)
        write_tables(self._folder, self._contents)
        for of in self._contents:
            found, title = of.map, _title(objective, of.map)
            for sign, shown in of.photographs.items():
                places = [(cell.row, cell.column) for cell in found.cells]
                icons = dict(zip(places, shown, strict=True))
                picture = atlas_picture.draw(
                    *(found.layout, found.cells, icons, found.columns, title),
                    *(sign, found.selected, found.feature_names),
                )
                name = f"photographs_{WHERE[sign]}"
                with replacing(self._folder / f"{name}.png") as part:
                    picture.save(part)
                log_picture(loggers_of(trainer), f"atlas/{name}", picture, trainer.current_epoch)
        return self._contents

    def _make_up(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compose the last epoch's atlas where a run goes on between two epochs.

        A checkpoint of an epoch's last step is continued behind the epoch's end; one from within an
        epoch holds icons of none.
        """
        if trainer.current_epoch > 0 and trainer.is_last_batch:
            self._compose(trainer, pl_module, trainer.current_epoch - 1)

    def _compose(self, trainer: Trainer, objective: LightningModule, epoch: int) -> None:
        """Compose an epoch's atlas, unless it is there."""
        if not self._maps or self._folder is None or not isinstance(objective, Objective):
            return
        folder = self._folder / "atlas"
        folder.mkdir(parents=True, exist_ok=True)
        shown = _shown(objective)
        for name, make in self._pictures(objective):
            path = folder / f"{file_name(name)}_epoch{epoch:03d}.png"
            if path.exists():
                continue
            picture = make()
            with replacing(path) as part:
                picture.save(part)
            log_picture(loggers_of(trainer), f"atlas/{shown.get(name, name)}", picture, epoch)

    def _pictures(self, objective: Objective) -> Iterator[tuple[str, Callable[[], Image.Image]]]:
        """Yield name and maker of each picture of the atlas."""
        if isinstance(objective, AtlasInversion):
            icons = cache(partial(icons_of, objective))

            def draw(face: Face) -> Image.Image:
                found = objective.maps[face]
                of = found.layout, found.cells, icons()[face], found.columns
                title = _title(objective, found)
                return atlas_picture.draw(*of, title, face, found.selected, found.feature_names)

            yield from ((face, partial(draw, face)) for face in objective.faces)
            return
        placed = cache(partial(placed_on, objective, self._maps))

        def mark(place: int, found: Map) -> Image.Image:
            title = f"{type(objective).__name__} on the map of {_title(objective, found)}"
            response = found.columns["response"]
            return atlas_picture.mark(found.layout, response, *placed()[place], title)

        for place, found in self._maps.items():
            yield str(objective.features[place]), partial(mark, place, found)


def _write_page(path: Path, objective: AtlasInversion, of: Contents) -> None:
    found, icons = of.map, icons_of(objective)
    own = [face for face, map_ in objective.maps.items() if map_ is found]
    faces: list[dict[str, Image.Image]] = []
    for number, cell in enumerate(found.cells):
        place = cell.row, cell.column
        made: dict[str, Image.Image] = {f: icons[f][place] for f in own if place in icons[f]}
        shown = {WHERE[sign]: shown[number] for sign, shown in of.photographs.items()}
        faces.append({**made, **shown})
    places, every = found.layout.pictures, found.store.keys
    kinds = {"feature": found.feature_names, "label": labels_of(found, of.pictures)}
    write_page(
        path,
        found.layout,
        found.cells,
        faces,
        found.columns,
        [every[place] for place in places],
        thumbnails_of(found, of.pictures) if of.pictures else None,
        {name: kind for name, kind in kinds.items() if kind},
        _title(objective, found),
        [units_of(found, cell) for cell in found.cells],
        [of.words(cell) for cell in found.cells],
    )


def _shown(objective: Objective) -> dict[str, str]:
    """Return how each feature is shown to people."""
    return dict(zip(map(str, objective.features), objective.shown, strict=True))


def _title(objective: Objective, found: Map) -> str:
    return f"{found.name} of {objective.backbone.name}, attributed to {objective.layer}"
