"""What objectives, sweeps and reports have in common: features of a frozen network, attributed."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from mti_lightning.attribution.checks import check_method, check_path
from mti_lightning.attribution.methods import ActGrad, Attribution, IntGrad, attribute
from mti_lightning.attribution.steps import as_recorded, choose_steps, is_open
from mti_lightning.attribution.tension import Measure, Tension
from mti_lightning.backbone import Backbone, Layer
from mti_lightning.errors import InputError
from mti_lightning.features.bound import BoundFeature, FeatureGroup, activation_warning, expand
from mti_lightning.features.classes import read_feature


def on_device(device: torch.device) -> dict[str, Any]:
    """Return the arguments of a Trainer within a run, by which it goes on on the same device."""
    strategy = SingleDeviceStrategy(device)  # by its type alone it would be the first of several
    return {"accelerator": device.type, "devices": 1, "strategy": strategy}


class AttributionModule(LightningModule, ABC):
    """Features of a frozen network, whose responses are attributed to an earlier layer.

    Args:
        backbone: The frozen network.
        features: The features: each `LAYER[/input]:CHANNEL[@POSITION]` or the same in structured
            form; `LAYER:*[@POSITION]` is every channel of a layer.
        attribution_layer: The earlier layer that responses are attributed to, such as `layer3`.
        attribution: The attribution method; by default integrated gradients, in as few steps as the
            features need: one backward pass, act×grad, where that adds up.
        tension: The tension measure, or its name.

    Raises:
        InputError: If a layer or feature does not exist, the attribution layer does not feed a
            feature, or the method cannot be used there.
    """

    takes_every_channel: ClassVar[bool] = True  # by *, which would make an image of each
    from_ground: bool = True  # whether attributions begin at the ground by default

    def __init__(
        self,
        backbone: Backbone,
        features: Sequence[str | dict[str, Any]],
        attribution_layer: str,
        attribution: Attribution | None = None,
        tension: Tension | Measure | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.features = (
            expand(features, backbone)
            if self.takes_every_channel
            else [read_feature(feature, backbone) for feature in features]
        )
        if not self.features:
            raise InputError("features: name at least one")
        self.layer = Layer.parse(attribution_layer)
        self.layout = backbone.layout(self.layer)
        self.bound_features = [BoundFeature(feature, backbone) for feature in self.features]
        self._directions = nn.ModuleList(self.bound_features)  # go along to other devices
        for group in FeatureGroup.of(self.bound_features):
            first = group.bound_features[0]
            check_path(backbone, first, self.layer)
            if warning := activation_warning(first.feature, backbone):
                rank_zero_warn(warning)
        self.attribution = self._given = attribution or IntGrad()
        self.tension = Tension.of(tension)
        check_method(self.attribution, backbone, self.layer, self.bound_features[0])
        self._is_set_up = False

    @property
    def class_names(self) -> list[str]:
        """The name of the class that each feature stands for; "" where it stands for none."""
        return [bound_feature.class_name for bound_feature in self.bound_features]

    @property
    def shown(self) -> list[str]:
        """How each feature is shown to people, by its class's name, too."""
        return [bound_feature.shown for bound_feature in self.bound_features]

    def attribute(
        self, pictures: Tensor, bound_features: Sequence[BoundFeature], create_graph: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return activations, attribution and responses, as `attribute` does."""
        return attribute(
            self.backbone, pictures, bound_features, self.layer, self.attribution, create_graph
        )

    def settle(self, batches: Iterable[Tensor]) -> None:
        """Choose the steps of the attribution method, where they are open.

        Args:
            batches: The run's own pictures, [N, 3, H, W] in 0..1, as `choose_steps` takes them.
        """
        if is_open(self.attribution):
            self.attribution = self.settled_at(self.layer, batches)

    def settled_at(self, layer: Layer, batches: Iterable[Tensor]) -> Attribution:
        """Return the method with the steps that another layer needs, where they were left open."""
        of = (self.backbone, layer, self.bound_features, batches)
        return choose_steps(self._given, *of, self.from_ground)

    def from_zeros(self, method: Attribution) -> Attribution:
        """Return a method from activations of 0 in as many steps, if no baseline was given.

        That is how pictures are rendered: they start from nothing, and have no ground yet.
        """
        if is_open(self._given) and self._given.baseline is None and isinstance(method, IntGrad):
            return ActGrad() if method.steps == 1 else IntGrad(method.steps)
        return method

    def take_steps(self, told: Mapping[str, Any]) -> None:
        """Attribute as a run did that is gone on with, where the steps were left open.

        Args:
            told: What it recorded of its method, as `recorded` tells it.
        """
        found = as_recorded(self._given, told)
        if not is_open(found):
            self.attribution = found

    @abstractmethod
    def prepare_run(self, trainer: Trainer, data: object) -> None:
        """Find what cannot work, and make ready what a run needs.

        Args:
            trainer: Of the run.
            data: The data module; None where there is none.

        Raises:
            InputError: If something cannot work.
        """

    def set_up(self, trainer: Trainer, data: object) -> None:
        """Prepare a run on the trainer's device, unless it is prepared.

        Lightning's `setup` comes here. Who wants to know what cannot work before the trainer has
        made the run's folder comes here before, and then nothing is done twice.
        """
        if not self._is_set_up:
            # Lightning would do so behind `setup` only.
            self.to(device := trainer.strategy.root_device)
            if device.type == "cuda":
                # By default convolutions round to the ten bits of TF32, and E⁺ and E⁻ all but
                # cancel.
                torch.backends.cudnn.allow_tf32 = False
            self.prepare_run(trainer, data)
            self._is_set_up = True

    def setup(self, stage: str) -> None:
        self.set_up(self.trainer, getattr(self.trainer, "datamodule", None))
        self._is_set_up = False  # the next run may be another
