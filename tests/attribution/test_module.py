"""What objectives, sweeps and reports share: features that are checked, a set-up done once."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from lightning import Trainer

from mti_lightning import (
    Backbone,
    InputError,
    MaximallyTense,
    PictureData,
    SignedInversion,
    Sweep,
    Validity,
    VetoedShapesPictures,
)
from mti_lightning.attribution.module import AttributionModule
from mti_lightning.cli import main

WORLD, SIZE = "vetoed_shapes_resnet", 2
KINDS: list[type[AttributionModule]] = [MaximallyTense, SignedInversion, Sweep, Validity]
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what is done once for each run, in the order in which it is done."""
    noted: list[str] = []

    def note(owner: type, name: str) -> None:
        method = getattr(owner, name)

        def noting(self: object, *args: object) -> object:
            noted.append(name)
            return method(self, *args)

        monkeypatch.setattr(owner, name, noting)

    for owner, name in (
        (PictureData, "use"),
        (SignedInversion, "build_bank"),
        (Sweep, "open_store"),
        (SignedInversion, "prepare_run"),
        (Sweep, "prepare_run"),
        (Validity, "prepare_run"),
    ):
        note(owner, name)
    return noted


def by_command(command: str, model: str, *arguments: str) -> None:
    main(
        [
            *(command, f"--model={model}", f"--model.backbone.name={WORLD}"),
            *("--model.features=['fc:0']", "--model.attribution_layer=layer4", *arguments),
            *("--data=VetoedShapesPictures", f"--data.size={SIZE}", "--trainer.accelerator=cpu"),
            "--trainer.enable_progress_bar=false",
        ]
    )


def in_python(run: str, module: AttributionModule) -> None:
    trainer = Trainer(max_epochs=1, accelerator="cpu", enable_checkpointing=False, **QUIET)
    getattr(trainer, run)(module, datamodule=VetoedShapesPictures(SIZE))


RUNS: dict[str, tuple[Callable[[], None], list[str]]] = {
    "fit": (
        lambda: by_command("fit", "SignedInversion", "--model.steps_per_epoch=1"),
        ["prepare_run", "build_bank", "use"],
    ),
    "fit in Python": (
        lambda: in_python(
            "fit", SignedInversion(Backbone(WORLD), ["fc:0"], "layer4", steps_per_epoch=1)
        ),
        ["prepare_run", "build_bank", "use"],
    ),
    "predict": (lambda: by_command("predict", "Sweep"), ["prepare_run", "use", "open_store"]),
    "predict in Python": (
        lambda: in_python("predict", Sweep(Backbone(WORLD), ["fc:0"], "layer4", store="s.zarr")),
        ["prepare_run", "use", "open_store"],
    ),
    "validate": (
        lambda: by_command("validate", "Validity", "--model.rendered=0"),
        ["prepare_run", "use"],
    ),
    "validate in Python": (
        lambda: in_python("validate", Validity(Backbone(WORLD), ["fc:0"], "layer4", rendered=0)),
        ["prepare_run", "use"],
    ),
}


@pytest.mark.parametrize("run", RUNS)
def test_a_run_is_prepared_once_whoever_starts_it(
    run: str, calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    start, once = RUNS[run]
    with suppress(SystemExit):  # of two pictures a report may say not to believe it
        start()
    assert calls == once


@pytest.mark.parametrize("kind", KINDS)
def test_all_take_the_same_features_and_refuse_the_same(kind: type[AttributionModule]) -> None:
    backbone = Backbone(WORLD)
    if kind.takes_every_channel:
        every = kind(backbone, ["fc:*"], "layer4")
        assert [str(feature) for feature in every.features] == [f"fc:{place}" for place in range(8)]
    else:
        with pytest.raises(InputError, match=r"only mti predict and mti validate take \*"):
            kind(backbone, ["fc:*"], "layer4")
    for features, layer, told in (
        ([], "layer4", "features: name at least one"),
        (["layer3.0.act2/input:0"], "fc", "does not feed feature"),
        (["fc:8"], "layer4", "channel 8 is out of range"),
        (["fc:0"], "layer9", "'layer9' is not in"),
    ):
        with pytest.raises(InputError, match=told):
            kind(backbone, features, layer)
    with pytest.warns(UserWarning, match="'layer3:3' is read after its activation function"):
        kind(backbone, ["layer3:3", "layer3:4"], "layer2")


def test_directions_go_along_to_another_device_but_into_no_checkpoint() -> None:
    module = Sweep(Backbone(WORLD), ["fc:[1,0,0,0,0,0,0,-1]"], "layer4").to("meta")
    direction = module.bound_features[0].direction
    assert direction is not None
    assert direction.device == torch.device("meta")
    assert not module.state_dict()
