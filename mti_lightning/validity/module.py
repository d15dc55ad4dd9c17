"""The validity report: how far attributions and pictures of a feature can be believed."""

from collections.abc import Sequence
from typing import Any, Final, final

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
from mti_lightning.data.composites import MOST_COMPOSITES, PARTS, Composites
from mti_lightning.data.datasets import Picture
from mti_lightning.errors import InputError, RunError, check_range
from mti_lightning.features.classes import gives_classes
from mti_lightning.objectives.inversion import SignedInversion
from mti_lightning.signals import Stopped
from mti_lightning.sweep.calibration import evenly_spread
from mti_lightning.validity.composites import CHECK, LEAST, check_composites, judge_composites
from mti_lightning.validity.findings import judge_feature, judge_inversions
from mti_lightning.validity.judges import ask_judges, make_judges
from mti_lightning.validity.likeness import PHOTOGRAPHS, check_likeness
from mti_lightning.validity.limits import Finding, unmeasured
from mti_lightning.validity.naturals import Naturals
from mti_lightning.validity.patches import check_patches
from mti_lightning.validity.report import Report
from mti_lightning.validity.rivals import interference_by_feature
from mti_lightning.validity.truth import tense_by_class
from mti_lightning.validity.writing import log_report, write_report

_FEWEST: Final = 2  # pictures: one is compared with another


@final
class Validity(AttributionModule):
    """A report on how far to believe attributions and pictures of features.

    Runs through `mti validate`, which writes validity.md and validity.json to the run's folder.

    Args:
        backbone: The frozen network.
        features: What to check: each `LAYER[/input]:CHANNEL[@POSITION]`.
        attribution_layer: The earlier layer that responses are attributed to.
        attribution: The attribution method; by default integrated gradients, in as few steps as the
            features need: one backward pass, act×grad, where that adds up.
        tension: The tension measure, or its name.
        pictures: Pictures to check, evenly spread over the data.
        tensest: How many of the tensest, by each feature, are tried to be turned on; a tenth of
            the pictures at most.
        rendered: Of how many of the tensest + and − inversions are made, each from two seeds; 0
            leaves that out.
        steps: Steps for each inversion.
        composites: Pictures that are put together of the run's own, whose parts are then left out:
            the truth by intervention that attributions are held against; 16 or more. 0 leaves
            that out.
        seed: Seed of all that is random.
        judges: Other networks of the same classes that are asked what the inversions of a class
            show: names of backbones, or what they are made of, as `backbone` takes it.

    Raises:
        InputError: If a layer or feature does not exist, the attribution layer does not feed a
            feature, a number is out of range, or a judge has other classes.
    """

    def __init__(
        self,
        backbone: Backbone,
        features: Sequence[str | dict[str, Any]],
        attribution_layer: str,
        attribution: Attribution | None = None,
        tension: Tension | Measure | None = None,
        pictures: int = 256,
        tensest: int = 16,
        rendered: int = 4,
        steps: int = 100,
        seed: int = 0,
        composites: int = 64,
        judges: Sequence[str | dict[str, Any]] = (),
    ) -> None:
        check_range(_FEWEST, pictures=pictures)
        check_range(1, tensest=tensest, steps=steps)
        check_range(0, rendered=rendered)
        check_range(0, MOST_COMPOSITES, composites=composites)
        if 0 < composites < LEAST:
            raise InputError(f"composites {composites}: give {LEAST} or more, or 0 for none")
        super().__init__(backbone, features, attribution_layer, attribution, tension)
        self.pictures, self.tensest, self.rendered = pictures, tensest, rendered
        self.steps, self.seed, self.composites = steps, seed, composites
        self._check_judged(judges)
        self.judges = make_judges(judges, backbone)
        self.report: Report | None = None

    def prepare_run(self, trainer: Trainer, data: object) -> None:
        self.check_trainer(trainer)
        if self.backbone.precision != "float32":
            raise InputError(
                f"backbone.precision: {self.backbone.precision} will not do to measure; leave it "
                "at float32"
            )
        self._data = self.check_data(data)
        self._data.use(self.backbone.preprocessing)
        if (size := len(self._data.pictures)) < _FEWEST:
            raise InputError(
                f"the data holds {size} picture; a report needs {_FEWEST}, all of it 32 or more"
            )
        self.settle(evenly_spread(self._data, CHOSEN_ON, {}))

    def setup(self, stage: str) -> None:
        super().setup(stage)
        size = len(self._data.pictures)
        count = min(self.pictures, size)
        # Shuffled: neighbours are compared, and a folder may be sorted by what they show.
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed)).tolist()
        self._data.serve("val", self._data.loader([index * size // count for index in order]))
        self._naturals = Naturals(self, self.seed)

    @staticmethod
    def check_trainer(trainer: Trainer) -> None:
        """Make sure of one device, and of full precision: E⁺ and E⁻ all but cancel.

        Raises:
            InputError: If others were asked for.
        """
        if trainer.world_size > 1:
            raise InputError(
                f"{trainer.world_size} devices were asked for; a report is made on one: "
                "--trainer.devices 1"
            )
        if "16" in trainer.precision:
            raise InputError(
                f"trainer.precision: {trainer.precision} will not do to measure; leave it at "
                "32-true"
            )

    @staticmethod
    def check_data(data: object) -> PictureData:
        """Return the data, if it is pictures.

        Raises:
            InputError: If it is not.
        """
        if not isinstance(data, PictureData):
            raise InputError(
                "a report needs pictures; give --data PictureFolder --data.path FOLDER"
            )
        return data

    @torch.inference_mode(mode=False)
    @torch.enable_grad()
    def validation_step(self, batch: Loaded, batch_idx: int) -> None:
        """Check a batch of natural pictures for every feature."""
        if len(batch.indices):
            self._naturals.add(batch)

    @torch.inference_mode(mode=False)
    @torch.enable_grad()
    def on_validation_epoch_end(self) -> None:
        indices, measured = self._naturals.indices, self._naturals.measured
        if len(indices) < _FEWEST:
            raise RunError(f"{len(indices)} pictures can be read; a report needs {_FEWEST} or more")
        classes = {str(b.feature): b.class_name for b in self.bound_features if b.class_name}
        self.report = Report(self._provenance(), {}, classes)
        interference = interference_by_feature(self._naturals.rivals)
        truth = tense_by_class(self._data.pictures, indices, self.bound_features)
        of_parts, pasted = self._intervene(), self._paste(measured)
        for place, columns in enumerate(measured):
            tense = truth.get(place)
            try:
                rendered = self._render(place, columns["tension"], tense)
            except Stopped as stopped:
                if done := len(self.report.findings):
                    stopped.add_note(f"the report of {done} of {len(measured)} features is kept")
                raise
            found = judge_feature(columns, self.tensest, rendered, interference.get(place), tense)
            found += pasted[place]
            if isinstance(of_parts, str):
                found.append(unmeasured(CHECK, of_parts))
            elif of_parts:
                is_class = gives_classes(self.bound_features[place].layer, self.backbone)
                effect, attributed, tensions = (of[place] for of in of_parts.values())
                found.append(judge_composites(effect, attributed, tensions, is_class))
            self.report.findings[str(self.features[place])] = found
            # Now, so that who stops the run has these.
            write_report(self.report, self.trainer, len({*map(str, self.features)}))
        log_report(self.report, self.trainer)

    def _provenance(self) -> dict[str, Any]:
        """Return what is checked."""
        arguments = {k: v for k, v in self.attribution.arguments.items() if v is not None}
        told = ", ".join(f"{name} {value}" for name, value in arguments.items())
        return {
            "backbone": self.backbone.name,
            "attribution layer": str(self.layer),
            "attribution": type(self.attribution).__name__ + (f" ({told})" if told else ""),
            "pictures": len(self._naturals.indices),
        }

    def _check_judged(self, judges: Sequence[object]) -> None:
        """Make sure that there is what judges are asked of.

        Raises:
            InputError: If there is not.
        """
        if not judges:
            return
        if not self.rendered:
            raise InputError("judges: they look at inversions; rendered: 0 will not do, give 1")
        if not any(
            of.feature.channel is not None and gives_classes(of.layer, self.backbone)
            for of in self.bound_features
        ):
            raise InputError(
                f"judges: they name classes, and none of the features, {', '.join(self.shown)}, "
                "is one; leave them out"
            )

    def _picture(self, row: int) -> Picture:
        """Return a natural picture by its place among those that were checked."""
        return self._data.pictures[self._naturals.indices[row]]

    def _paste(self, measured: Sequence[dict[str, Tensor]]) -> list[list[Finding]]:
        """Paste patches of some pictures into others."""
        return check_patches(
            self.backbone,
            self.bound_features,
            measured,
            lambda row: self._picture(row)["picture"],
            self.layer,
            self.attribution,
            self.tension,
            self.seed,
        )

    def _render(self, place: int, tension: Tensor, tense: Tensor | None) -> list[Finding]:
        """Make inversions of the tensest pictures for a feature, and judge them."""
        chosen = tension.argsort(descending=True)[: self.rendered].tolist()
        if not chosen:
            return []
        sources, bound_feature = [self._picture(row) for row in chosen], self.bound_features[place]

        def further(objective: SignedInversion) -> list[Finding]:
            others = [row for row in range(len(tension)) if row not in chosen][:PHOTOGRAPHS]
            photographs = [self._picture(row)["picture"] for row in others]
            alike = check_likeness(objective, photographs, bound_feature.layer)
            return [alike, *ask_judges(self.judges, objective, sources, bound_feature)]

        return judge_inversions(
            sources,
            None if tense is None else tense[chosen],
            self.device,
            further,
            backbone=self.backbone,
            features=[bound_feature.feature],
            attribution_layer=str(self.layer),
            attribution=self._given,  # renderings settle it for themselves
            tension=self.tension,
            steps_per_epoch=self.steps,
            seed=self.seed,
        )

    def _intervene(self) -> dict[str, Tensor] | str:
        """Measure what parts of composites do, or say why not; nothing where none are wanted."""
        photographs = self._data.pictures
        if not self.composites:
            return {}
        if not tells_parts(self.layout):
            return "the attribution layer has no positions, or one: nothing tells parts apart"
        if len(photographs) < PARTS + 1:
            return f"a composite takes {PARTS + 1} pictures"
        made = Composites(photographs, self.composites, self.seed)
        batches = self._data.loader(range(self.composites), made)
        of = (self.bound_features, self.layer, self.attribution, self.tension)
        return check_composites(self.backbone, batches, *of) or "no composite can be made"
