"""Objectives and their bank of images, through the real trainer."""

import copy
import gc
import itertools
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from mti_lightning import (
    ActGrad,
    Backbone,
    FourierPhase,
    Layer,
    MaximallyTense,
    NegativeInversion,
    Objective,
    Pixels,
    PositiveInversion,
    Pyramid,
    SignedInversion,
    VetoedShapesPictures,
    Views,
    render,
)
from mti_lightning.attribution.methods import attribute
from mti_lightning.attribution.signs import cosine
from mti_lightning.compose import to_image
from mti_lightning.data.modules import PictureFile, PictureFolder
from mti_lightning.errors import InputError, RenderError
from mti_lightning.images.views import whole
from mti_lightning.objectives.turns import Step, Steps, Turn

CLASSES = [f"fc:{kind}" for kind in range(8)]
WORLD = "vetoed_shapes_resnet"


def fit(
    objective: Objective,
    sources: int = 4,
    epochs: int = 2,
    ckpt_path: str | None = None,
    seed: int = 3,
    **trainer: object,
) -> Tensor:
    """Run an objective on the vetoed shapes and return its pictures."""
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
    }
    data = VetoedShapesPictures(sources, seed=seed)
    Trainer(max_epochs=epochs, accelerator="cpu", **{**quiet, **trainer}).fit(
        objective, datamodule=data, ckpt_path=ckpt_path, weights_only=ckpt_path and True
    )
    return pictures(objective)


def pictures(objective: Objective) -> Tensor:
    with torch.no_grad():
        return torch.cat([chunk() for chunk in objective.chunks])


def psnr(a: Tensor, b: Tensor) -> Tensor:
    return -10 * (a - b).square().flatten(1).mean(1).clamp(min=1e-12).log10()


def inversion(batch_size: int = 16, layer: str = "layer3", **options: object) -> SignedInversion:
    classes = options.pop("classes", CLASSES)
    return SignedInversion(Backbone(WORLD), classes, layer, batch_size=batch_size, **options)


@pytest.mark.slow
def test_a_picture_does_not_depend_on_its_neighbours_or_the_chunking() -> None:
    among = fit(
        inversion(64, pair="matched"), sources=32, epochs=4
    )  # 64 images: + and − of 32 sources
    chunked = fit(inversion(7, pair="matched"), sources=8, epochs=4)
    alone = SignedInversion(Backbone(WORLD), CLASSES[:1], "layer3", batch_size=1)
    assert psnr(among[:16], chunked).min() >= 40
    assert psnr(among[:2], fit(alone, sources=1, epochs=4)).min() >= 40


@pytest.mark.slow
def test_a_tense_image_does_not_depend_on_its_neighbours_or_the_chunking() -> None:
    def tense(features: list[str], batch_size: int) -> Tensor:
        return fit(
            MaximallyTense(Backbone(WORLD), features, "layer3", batch_size=batch_size), epochs=4
        )

    among = tense(CLASSES, 8)
    assert psnr(among, tense(CLASSES, 3)).min() >= 40
    assert psnr(among[5:6], tense(CLASSES[5:6], 1)).min() >= 40


def test_a_picture_does_not_depend_on_the_windows_of_others() -> None:
    backbone = Backbone("resnet18", "random", arguments={"zero_init_last": False})
    first, second, whole = (f"layer2.0.act2/input:5@{at}" for at in ("centre", "3,3", "peak"))

    def made(*features: str) -> dict[str, Tensor]:
        objective = MaximallyTense(backbone, features, "layer1", steps_per_epoch=6)
        rows = zip(fit(objective), objective.entries, strict=True)
        return {str(objective.features[entry.feature]): row for row, entry in rows}

    among = made(whole, first, second)
    for feature, alone in made(first).items() | made(whole).items():
        assert psnr(among[feature][None], alone[None]).min() >= 60


def test_a_tense_image_is_measured_from_zeros_and_an_inversion_from_its_ground() -> None:
    options = {"features": CLASSES[:1], "attribution_layer": "layer4", "steps_per_epoch": 2}
    for objective, method in (
        (MaximallyTense(Backbone(WORLD), **options), ActGrad()),
        (PositiveInversion(Backbone(WORLD), coherent=False, **options), None),
    ):
        shown = fit(objective)
        of = (objective.backbone, whole(shown, (96, 96)), objective.bound_features * len(shown))
        _, attribution, _ = attribute(*of, objective.layer, method or objective.attribution)
        assert method or objective.attribution.baseline == "ground"
        wanted = objective.tension(attribution, objective.layout)
        torch.testing.assert_close(objective.measure()["tension"], wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", [MaximallyTense, SignedInversion])
def test_a_window_changes_neither_the_loss_nor_its_gradient(kind: type[Objective]) -> None:
    backbone = Backbone("resnet18", "random", arguments={"zero_init_last": False})
    features = ["layer2.1.act2/input:5@centre", "layer2.1.act2/input:7@centre"]
    objective = kind(backbone, features, "layer1", views=Views(noise=0.0))
    objective.build_bank(VetoedShapesPictures(1))
    (chunk,) = objective.chunks
    window = chunk.window
    assert window is not None
    assert max(window.box[2:]) <= 112
    turn = Turn(chunk, objective.target(chunk))
    found = []
    for part in (window, None):
        chunk.window = part
        pictures = chunk.optimised()
        keys = [entry.key for entry in chunk.entries]
        views = objective.views(pictures, keys, 3, (224, 224), part and part.box)
        losses = objective.losses(views, turn, 0.0)
        found.append((losses, torch.autograd.grad(losses.sum(), pictures)[0]))
    for windowed, full in zip(*found, strict=True):
        assert (windowed - full).abs().max() <= 1e-5 * full.abs().max()


def test_the_same_run_twice_is_identical_and_another_seed_is_not() -> None:
    first, second, other = (
        fit(MaximallyTense(Backbone(WORLD), CLASSES[:2], "layer4", seed=seed, steps_per_epoch=4))
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, second)
    assert psnr(first, other).max() < 30


@pytest.mark.parametrize(
    "kind", [MaximallyTense, PositiveInversion, NegativeInversion, SignedInversion]
)
@pytest.mark.parametrize(
    "image", [Pyramid((75, 101)), FourierPhase(), FourierPhase((75, 101), magnitude="measured")]
)
def test_the_objective_is_reached_further_with_every_epoch(
    kind: type[Objective], image: object
) -> None:
    def reached(epochs: int) -> Tensor:
        objective = kind(
            Backbone(WORLD), CLASSES[:2], "layer4", image=copy.deepcopy(image), steps_per_epoch=12
        )
        assert fit(objective, sources=2, epochs=epochs).shape[2:] == objective.canvas
        measures = objective.measure()
        return measures["tension" if kind is MaximallyTense else "cosine"].mean()

    assert reached(4) > reached(1)


@pytest.mark.parametrize("image", [Pyramid(), FourierPhase(), Pixels()])
def test_accentuation_starts_from_the_source(image: object) -> None:
    objective = inversion(image=image, accentuate=True, pair="matched", steps_per_epoch=1)
    objective.build_bank(VetoedShapesPictures(8, seed=3))
    assert objective.sources is not None
    assert psnr(pictures(objective)[::2], objective.sources).min() > 30


def test_accentuation_on_a_larger_canvas_starts_from_the_whole_detail(tmp_path: Path) -> None:
    values = torch.rand(3, 192, 192, generator=torch.Generator().manual_seed(0))  # all detail
    to_image(values).save(tmp_path / "noise.png")
    canvas = (192, 192)
    objective = inversion(
        classes=CLASSES[:1], coherent=False, accentuate=True, image=FourierPhase(canvas)
    )
    objective.build_bank(PictureFile(tmp_path / "noise.png"))
    assert objective.sources is not None
    assert objective.sources.shape[2:] == (96, 96)
    wanted = values.mul(255).round().div(255).clamp(0.01, 0.99)
    assert psnr(pictures(objective)[:1], wanted[None]).min() > 30


def test_earlier_layers_are_matched_as_well() -> None:
    def cosines(*also: str) -> tuple[float, float]:
        options = {"classes": CLASSES[:2], "pair": "matched", "steps_per_epoch": 15}
        objective = inversion(layer="layer4", also=also, **options)
        shown = fit(objective, 2)
        found = []
        for name in ("layer4", "layer3"):
            layer = Layer.parse(name)
            wanted, support = objective.targets_of(objective.entries, layer)
            activations = objective.backbone.run(shown, [layer])[layer]
            found.append(float(cosine(activations * support, wanted).mean()))
        return found[0], found[1]

    alone, together = cosines(), cosines("layer3")
    assert together[1] > alone[1] + 0.1
    assert together[0] > 0.5 * alone[0]
    for also in (["layer4"], ["layer3", "layer3"]):
        with pytest.raises(InputError, match="also: name each layer once, and not layer4 itself"):
            inversion(layer="layer4", also=also)
    with pytest.raises(InputError, match="layer9"):
        inversion(layer="layer4", also=["layer9"])


def test_a_step_leaves_the_other_chunks_alone() -> None:
    objective = inversion(2, classes=CLASSES[:4], pair="matched", steps_per_epoch=2)

    class Watch(Callback):
        def __init__(self) -> None:
            self.seen: list[bool] = []

        def on_train_batch_start(
            self, trainer: Trainer, pl_module: Objective, batch: Step, batch_idx: int
        ) -> None:
            self.before = [next(iter(chunk.trained.values())).clone() for chunk in pl_module.chunks]

        def on_train_batch_end(
            self,
            trainer: Trainer,
            pl_module: Objective,
            outputs: object,
            batch: Step,
            batch_idx: int,
        ) -> None:
            after = [next(iter(chunk.trained.values())) for chunk in pl_module.chunks]
            moved = [not torch.equal(a, b) for a, b in zip(self.before, after, strict=True)]
            self.seen.append(moved == [index == batch.chunk for index in range(len(moved))])

    watch = Watch()
    fit(objective, sources=4, callbacks=[watch])
    assert len(watch.seen) == 2 * 4 * 2
    assert all(watch.seen)


def test_steps_stop_anywhere_and_continue() -> None:
    whole = list(Steps(3, 4))
    assert whole == [Step(chunk, step) for chunk in range(3) for step in range(4)]
    for stop in range(1, 12):
        first = Steps(3, 4)
        begun = list(itertools.islice(first, stop))
        second = Steps(3, 4)
        second.load_state_dict(first.state_dict())
        assert begun + list(second) == whole
        assert list(second) == whole  # and the next epoch is whole again


def test_a_continued_run_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    def objective() -> SignedInversion:
        return inversion(4, classes=CLASSES[:4], pair="matched", steps_per_epoch=3)

    kept = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    whole = fit(objective(), epochs=3, enable_checkpointing=True, callbacks=[kept])
    again = objective()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    keeps = ModelCheckpoint(tmp_path / "again", "{epoch}", save_top_k=-1)
    trainer = Trainer(max_epochs=3, callbacks=[keeps], accelerator="cpu", **quiet)
    data = VetoedShapesPictures(4, seed=3)
    checkpoint = tmp_path / "epoch=0.ckpt"
    trainer.fit(again, datamodule=data, ckpt_path=str(checkpoint), weights_only=True)
    assert trainer.current_epoch == 3
    assert torch.equal(pictures(again), whole)
    keys = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert keys
    assert all(key.startswith("bank.") for key in keys)


def test_a_run_stopped_within_an_epoch_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    def objective() -> SignedInversion:
        return inversion(4, classes=CLASSES[:4], pair="matched", steps_per_epoch=3)

    # Of the 6 steps of the second epoch 4 are done: the second chunk is at its second step.
    first, again = objective(), objective()
    for one, checkpoint in ((first, None), (again, str(tmp_path / "0/step=10.ckpt"))):
        kept = ModelCheckpoint(
            tmp_path / str(int(one is again)), "{step}", every_n_train_steps=5, save_top_k=-1
        )
        fit(one, 4, 3, checkpoint, enable_checkpointing=True, callbacks=[kept])
    assert torch.equal(pictures(again), pictures(first))
    for one, other in zip(again.chunks, first.chunks, strict=True):
        assert torch.equal(one.saliency(), other.saliency())


def test_another_bank_does_not_go_on_with_a_checkpoint(tmp_path: Path) -> None:
    kept = ModelCheckpoint(tmp_path, "kept")
    settings = {"pair": "matched", "steps_per_epoch": 1, "coherent": False}  # leaves nothing out
    first = inversion(classes=CLASSES[:2], **settings)
    fit(first, 2, 1, enable_checkpointing=True, callbacks=[kept])
    second = inversion(classes=CLASSES[1::-1], **settings)
    with pytest.raises(InputError, match=r"image 0 .*fc-0_positive_seed0 of .*, not .*fc-1_posi"):
        fit(second, 2, 2, ckpt_path=str(tmp_path / "kept.ckpt"))


def test_what_has_no_target_is_left_out_and_the_others_stay_as_they_are() -> None:
    def objective(features: list[str]) -> SignedInversion:
        return SignedInversion(Backbone(WORLD), features, "layer4", batch_size=2, steps_per_epoch=6)

    # In the third picture nothing excites either class on the whole.
    left_out = r"\+ of fc:0 .*in tense/test/0/2, \+ of fc:1 .*in tense/test/0/2"
    told = rf"2 of 12 images cannot be made, .*: {left_out}; try an earlier"
    some, others = objective(["fc:0", "fc:1"]), objective(["fc:0"])
    with pytest.warns(UserWarning, match=told):
        made = fit(some, sources=3, seed=0)
    ids = [entry.id for entry in some.entries]
    assert len(ids) == 10
    assert not {f"tense-test-0-2_fc-{kind}_positive_seed0" for kind in (0, 1)} & {*ids}
    beside = fit(others, sources=2, seed=0)
    same = [ids.index(entry.id) for entry in others.entries]
    assert psnr(made[same], beside).min() >= 40


def test_the_backbone_is_untouched_and_no_hook_is_left_also_after_an_exception() -> None:
    backbone = Backbone(WORLD)
    before = {name: value.clone() for name, value in backbone.network.state_dict().items()}
    ours = backbone.network.layer2.register_forward_hook(lambda *_: None)

    class Interrupt(Callback):
        def on_after_backward(self, trainer: Trainer, pl_module: Objective) -> None:
            raise RuntimeError("stop here")

    for callbacks in ([], [Interrupt()]):
        objective = MaximallyTense(backbone, CLASSES[:1], "layer4", steps_per_epoch=2)
        if callbacks:
            with pytest.raises(RuntimeError, match="stop here"):
                fit(objective, callbacks=callbacks)
        else:
            fit(objective)
        after = backbone.network.state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items())
        hooks = [
            h
            for m in backbone.network.modules()
            for h in (*m._forward_hooks, *m._forward_pre_hooks)
        ]
        assert hooks == [ours.id]
        assert not any(module.training for module in backbone.network.modules())


def test_bf16_reaches_the_same_picture_roughly() -> None:
    full = fit(inversion(classes=CLASSES[:4], pair="matched", steps_per_epoch=8), epochs=1)
    half = fit(
        inversion(classes=CLASSES[:4], pair="matched", steps_per_epoch=8),
        epochs=1,
        precision="bf16-mixed",
    )
    assert psnr(full, half).mean() > 25
    assert not torch.equal(full, half)


def test_a_gradient_too_large_for_16_bits_leaves_a_step_out() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    objective = inversion(classes=CLASSES[:2], pair="matched", steps_per_epoch=16)
    full = inversion(classes=CLASSES[:2], pair="matched", steps_per_epoch=16)
    fit(objective, 2, 1, plugins=[plugin])
    fit(full, 2, 1)
    assert scaler.get_scale() < 2**20
    assert objective.measure()["cosine"].min() > 0
    # What was left out counts for nothing, and the others without the scale.
    ratio = objective.chunks[0].saliency().mean() / full.chunks[0].saliency().mean()
    assert 0.02 < ratio < 1


def test_inversion_of_a_transformer_and_a_direction_through_python(tmp_path: Path) -> None:

    for name, picture in zip(("china.png", "flower.png"), load_sample_images().images, strict=True):
        Image.fromarray(picture).save(tmp_path / name)
    direction = "[" + ",".join(["1", "-1"] * 96) + "]"
    objective = PositiveInversion(
        Backbone("vit_tiny_patch16_224", weights="random"),
        [
            "blocks.3.mlp.act/input:5@7",
            "blocks.3.mlp.act/input:5@peak",
            f"blocks.3.attn.proj:{direction}@centre",
        ],
        "blocks.1",
        batch_size=4,
        steps_per_epoch=3,
    )
    made = render(
        objective, PictureFolder(tmp_path), epochs=1, enable_progress_bar=False, accelerator="cpu"
    )
    assert [made_one.entry.source for made_one in made] == [0, 0, 0, 1, 1, 1]
    assert all(
        made_one.image.mode == "RGBA" and made_one.image.size == (224, 224) for made_one in made
    )
    assert objective.measure()["cosine"].min() > 0
    assert len({made_one.measures["response"] for made_one in made}) == 6


def test_what_cannot_be_rendered_is_said_before_any_step() -> None:
    with pytest.raises(InputError, match="needs source pictures"):
        render(inversion(), enable_progress_bar=False)
    with pytest.raises(InputError, match="matched needs a source for each of the 8 features"):
        fit(inversion(pair="matched"), sources=3)
    with pytest.raises(InputError, match="batch_size 0"):
        inversion(0)


def test_images_that_show_nothing_of_their_target_are_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def said(steps: int) -> list[str]:
        caplog.clear()
        objective = inversion(layer="layer4", classes=CLASSES[:1], seed=5, steps_per_epoch=steps)
        render(objective, VetoedShapesPictures(1), 1, enable_progress_bar=False, accelerator="cpu")
        return [text for text in caplog.messages if "did not become" in text]

    assert not said(20)
    (message,) = said(1)
    assert message.startswith("1 of 2 images did not become what they are for: their cosine is ")
    assert "_positive_seed5; more --trainer.max_epochs or another --model.seed" in message


def test_an_image_that_is_stuck_starts_anew_and_its_neighbours_do_not() -> None:
    def counting(parameters: Any) -> torch.optim.Adam:
        optimizer = torch.optim.Adam(parameters, lr=0.1)
        # As timm's AdamP, which keeps its step as a number.
        optimizer.register_step_post_hook(
            lambda adam, *_: [state.update(count=1) for state in adam.state.values()]
        )
        return optimizer

    def made(**seeds: int) -> tuple[list[float], Tensor]:
        options = {"classes": CLASSES[:1], "layer": "layer4", "steps_per_epoch": 100, **seeds}
        # Phases get stuck more often than pyramids do.
        options |= {"optimizer": counting, "image": FourierPhase()}
        objective = inversion(**options)
        fit(objective, 1, 1, seed=0)
        return objective.measure()["cosine"].tolist(), pictures(objective)

    cosines, both = made(seed=0, seeds=2)
    assert min(cosines) > 0.4  # without a fresh start 0.06
    assert torch.equal(both[2:], made(seed=1)[1])


def test_a_gradient_that_is_not_finite_stops_the_run_and_names_the_image() -> None:
    objective = MaximallyTense(Backbone(WORLD), CLASSES[:2], "layer4", steps_per_epoch=4)

    class Poison(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: Objective) -> None:
            with torch.no_grad():
                next(iter(pl_module.chunks[0].trained.values()))[1, 0, 0, 0] = torch.nan

    with pytest.raises(
        RenderError, match=r"not finite for image fc-1_mti_seed0 .*lower learning rate"
    ):
        fit(objective, callbacks=[Poison()])


def test_nothing_holds_a_network_that_is_done_with() -> None:
    objective = inversion(classes=CLASSES[:1])
    fit(objective, 1, 1)
    module = weakref.ref(next(objective.backbone.network.children()))
    del objective
    gc.collect()
    assert module() is None
