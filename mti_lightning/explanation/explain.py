"""From a picture and a model's name to an explanation, in one call."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from mti_lightning.attribution.methods import Attribution
from mti_lightning.backbone.layout import Layer
from mti_lightning.backbone.network import Backbone
from mti_lightning.compose import to_image
from mti_lightning.data.decode import prepare
from mti_lightning.errors import InputError, check_range
from mti_lightning.explanation.choose import Answers, Said, choose_layer
from mti_lightning.explanation.parts import put_together
from mti_lightning.explanation.pictures import GivenPicture, GivenPictures, listed, read_pictures
from mti_lightning.explanation.result import Explanation, percent
from mti_lightning.features.bound import BoundFeature
from mti_lightning.features.classes import read_feature
from mti_lightning.files import at_home
from mti_lightning.log import log_info, quietly
from mti_lightning.objectives.inversion import SignedInversion
from mti_lightning.registry import public_path
from mti_lightning.rendering import render

_SAID = 5  # classes that are listed of each picture
_MOST_CLASSES = 50  # for which there is room on a sheet, and memory
_CLASSES = 3, 4  # that are explained, of one picture and of several together


def explain(
    pictures: GivenPicture | Sequence[GivenPicture],
    model: str | Backbone,
    features: str | Sequence[str] = (),
    *,
    weights: str = "pretrained",
    labels: str | None = None,
    arguments: dict[str, Any] | None = None,
    layer: str | None = None,
    attribution: Attribution | None = None,
    crop: tuple[int, int, int, int] | None = None,
    classes: int | None = None,
    steps: int = 100,
    seed: int = 0,
    progress: bool = True,
    **trainer: Any,
) -> Explanation:
    """Say what in pictures excites and what inhibits the classes that a network says first.

    Args:
        pictures: A picture, or up to four to compare: files, Pillow's, or arrays
            [H, W, 3] of 0..255.
        model: A timm model, or one that a plugin registered with timm; or a backbone.
        features: What to explain instead of those classes, such as `fc:Egyptian cat` or
            `layer3.0.act2/input:12@centre`.
        weights: Of a model that is named: `pretrained`, `random`, or a file.
        labels: Of a model that is named: a text file of the names of its classes, one a line.
        arguments: Of a model that is named: further ones of `timm.create_model`, such as
            `num_classes`.
        layer: The attribution layer; by default the last before the features with a fine grid.
        attribution: The attribution method; by default integrated gradients, in as few steps as the
            features need.
        crop: Left, top, width and height in pixels of a part of the one picture, to compare
            it with.
        classes: How many classes of each picture are explained where no features are named.
        steps: Steps of each inversion.
        seed: Seed of the noise that they start from.
        progress: Show how far it is.
        **trainer: Further arguments of Lightning's Trainer, such as `accelerator`.

    Raises:
        InputError: If a picture, the model, a feature or the layer cannot be used.
        RenderError: If nothing at that layer excites or inhibits any of the features.
    """
    check_range(1, steps=steps)
    if classes is not None:
        check_range(1, _MOST_CLASSES, classes=classes)
    shown = read_pictures(pictures, crop)
    if isinstance(model, Backbone):
        backbone = model
    else:
        backbone = Backbone(model, weights, arguments=arguments, labels=labels)
    quiet: dict[str, Any] = {"enable_progress_bar": False, "devices": 1}
    if progress:
        quiet["callbacks"] = [_Progress(), *trainer.pop("callbacks", [])]
    run = {**quiet, **trainer}
    with quietly():
        device = Trainer(**{**run, "logger": False, "callbacks": []}).strategy.root_device
    seen = torch.stack([prepare(image, backbone.preprocessing) for image in shown.values()])
    before = backbone.mean.device
    backbone, seen = backbone.to(device), seen.to(device)
    given = [features] if isinstance(features, str) else features
    chosen = [read_feature(feature, backbone) for feature in given]
    answers = Answers(backbone, seen)
    for place, name in enumerate(shown):
        if said := answers.first(place, 3):
            told = ", ".join(f"{one.name} {_told(one)}" for one in said)
            log_info(f"{backbone.name} says of {name}: {told}")
    if not chosen:
        alone = len(shown) == 1
        each = classes or (_CLASSES[0] if alone else max(1, _CLASSES[1] // len(shown)))
        chosen = [one.feature for place in range(len(shown)) for one in answers.first(place, each)]
    if not chosen:
        raise InputError(
            f"no layer of {backbone.name} gives the network's output, so its classes are not "
            "known; name a feature, such as layer4:12@mean"
        )
    bound_features = [BoundFeature(feature, backbone) for feature in dict.fromkeys(chosen)]
    if layer is None:
        attributed, why = choose_layer(backbone, seen, bound_features)
    else:
        attributed, why = Layer.parse(layer), f"attributed to {layer}"
    log_info(why if layer else f"{why}; another may be named")
    epochs = math.gcd(steps, 5)
    objective = SignedInversion(
        backbone,
        [bound_feature.feature for bound_feature in bound_features],
        str(attributed),
        attribution,
        steps_per_epoch=steps // epochs,
        seed=seed,
    )
    data = GivenPictures(shown)
    with quietly():
        renderings = render(objective, data, epochs, **run)
    parts = put_together(objective, seen, renderings, answers)
    backbone.to(before)
    settings = {
        "name": "explain",
        "trainer": {"max_epochs": epochs},
        "model": {
            "class_path": "SignedInversion",
            "init_args": {
                "backbone": {k: v for k, v in backbone.made.items() if v is not None},
                "features": [str(feature) for feature in objective.features],
                "attribution_layer": str(attributed),
                **({"attribution": _configured(attribution)} if attribution else {}),
                "steps_per_epoch": steps // epochs,
                "seed": seed,
            },
        },
    }
    path = next((p for p in listed(pictures) if isinstance(p, str | Path)), None)
    return Explanation(
        backbone.name,
        str(attributed),
        why,
        [*shown],
        [to_image(picture) for picture in seen],
        [answers.first(place, _SAID) for place in range(len(shown))],
        parts,
        [*shown.values()],
        at_home(path).absolute() if path and len(shown) == 1 else None,
        settings,
    )


def _told(one: Said) -> str:
    return f"{one.logit:.1f}" if one.share is None else percent(one.share)


class _Progress(Callback):
    """A bar of the steps."""

    def __init__(self) -> None:
        self.bar: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, SignedInversion)
        steps = int(trainer.num_training_batches) * (trainer.max_epochs or 1)
        told = f"making {len(pl_module.entries)} pictures"
        layout = "{desc} {bar} {percentage:.0f}%, {remaining} to go"
        self.bar = Tqdm(total=steps, desc=told, leave=False, bar_format=layout, ncols=72)

    def on_train_batch_end(self, *_: Any) -> None:
        self.bar.update()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.bar is not None:
            self.bar.close()


def _configured(attribution: Attribution) -> dict[str, Any]:
    """Return a method as a configuration has it."""
    given = {name: value for name, value in attribution.arguments.items() if value is not None}
    return {"class_path": public_path(type(attribution)), "init_args": given}
