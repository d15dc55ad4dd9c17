"""From a picture to an answer: what is chosen, what is said, and what is written."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from mti_lightning import (
    ActGrad,
    Backbone,
    Explanation,
    InputError,
    IntGrad,
    Layer,
    Tension,
    VetoedShapes,
    attribute,
    explain,
)
from mti_lightning.attribution.signs import at_scale, signed_map, support_mask
from mti_lightning.attribution.steps import choose_steps
from mti_lightning.cli import main
from mti_lightning.compose import to_image
from mti_lightning.data.decode import prepare
from mti_lightning.explanation.choose import Answers, choose_layer, on_grid
from mti_lightning.features.bound import BoundFeature
from mti_lightning.features.feature import Feature
from mti_lightning.vetoed_shapes.shapes import KINDS
from mti_lightning.vetoed_shapes.world import veto_of
from tests.test_callbacks import table

SHAPES = "vetoed_shapes_resnet"
QUICK = {"steps": 2, "progress": False, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def shapes() -> Backbone:
    return Backbone(SHAPES)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture that holds a shape and its veto."""
    path = tmp_path_factory.mktemp("pictures") / "tense.png"
    to_image(VetoedShapes(1, seed=3, contents="tense")[0]["picture"]).save(path)
    return path


def noise(*size: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    return Image.fromarray(values)


@pytest.fixture(scope="module")
def found(picture: Path, shapes: Backbone) -> Explanation:
    return explain(picture, shapes, layer="layer4", **QUICK)


# --- what is chosen ---


@pytest.mark.parametrize(
    ("model", "feature", "layer"),
    [
        ("test_resnet", "fc:3", "layer3"),  # 10×10; layer4 is 5×5
        ("test_convnext", "head.fc:3", "stages.2"),
        ("test_efficientnet", "classifier:3", "blocks.3"),
        # Not blocks.5: behind the last attention only the class token counts.
        ("test_vit", "head:3", "blocks.3"),
        ("test_vit3", "head:3", None),
        # A channel is attributed to what comes before it.
        ("test_resnet", "layer3.0.act2/input:3@mean", "layer2"),
        ("test_vit", "blocks.3.mlp.act/input:3@mean", "blocks.2"),
    ],
)
def test_the_last_stage_that_feeds_the_feature_is_chosen(
    model: str, feature: str, layer: str | None
) -> None:
    backbone = Backbone(model, "random")
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(1, 3, *backbone.preprocessing.size, generator=generator)
    bound_feature = BoundFeature(Feature.parse(feature), backbone)
    chosen, why = choose_layer(backbone, pictures, [bound_feature])
    layout = backbone.layout(chosen)
    assert layout.grid is not None
    assert layer is None or str(chosen) == layer
    assert str(chosen) in why
    assert "×".join(map(str, layout.grid)) in why
    _, attribution, _ = attribute(backbone, pictures, [bound_feature], chosen, ActGrad())
    strength = attribution.abs().sum(layout.channel_dim)
    assert (on_grid(attribution.abs(), layout) > 0.01 * strength.max()).sum() >= 4


def test_a_layer_serves_all_features(shapes: Backbone) -> None:
    features = [Feature("fc", channel=0), Feature.parse("layer3.0.act2/input:3@mean")]
    bound_features = [BoundFeature(feature, shapes) for feature in features]
    pictures = torch.rand(1, 3, 96, 96)
    assert str(choose_layer(shapes, pictures, bound_features)[0]) == "layer2"
    with pytest.raises(InputError, match=r"no layer .* feeds conv1\.0:3"):
        choose_layer(shapes, pictures, [BoundFeature(Feature("conv1.0", channel=3), shapes)])


def test_what_the_network_says_first(shapes: Backbone) -> None:
    pictures = torch.rand(2, 3, 96, 96)
    answers = Answers(shapes, pictures)
    logits = shapes(pictures)
    for place in range(2):
        said = answers.first(place, 3)
        order = logits[place].argsort(descending=True)[:3].tolist()
        assert [one.feature.channel for one in said] == order
        assert [one.name for one in said] == [KINDS[k] for k in order]
        assert said[0].logit == pytest.approx(float(logits[place].max()))
        assert said[0].share is None  # a picture may be of several of these classes
        assert answers.place(said[2].feature, place) == (3, None)
    assert answers.place(Feature("layer4", channel=0), 0) == (None, None)
    imagenet = Answers(Backbone("test_resnet", "random"), torch.rand(1, 3, 160, 160))
    shares = [one.share or 0 for one in imagenet.first(0, 1000)]
    assert sum(shares) == pytest.approx(1, abs=1e-4)


# --- what is said ---


def test_the_numbers_are_those_of_the_attribution(
    found: Explanation, picture: Path, shapes: Backbone
) -> None:
    assert found.names == ["tense.png"]
    assert found.layer == "layer4"
    assert len(found.parts) == 3
    seen = torch.from_numpy(np.asarray(found.pictures[0]) / 255.0).permute(2, 0, 1)[None].float()
    for rank, part in enumerate(found.parts, start=1):
        bound_feature = BoundFeature(part.feature, shapes)
        layer, asked = Layer("layer4"), [bound_feature]
        method = choose_steps(IntGrad(), shapes, layer, asked, [seen])
        _, attribution, response = attribute(shapes, seen, asked, layer, method)
        excited, inhibited = Tension().split(attribution)
        assert part.rank == rank
        assert part.numbers["response"] == pytest.approx(response.item(), abs=1e-3)
        assert part.numbers["excitation"] == pytest.approx(excited.item(), abs=1e-3)
        assert part.numbers["inhibition"] == pytest.approx(inhibited.item(), abs=1e-3)
        tension = Tension()(attribution).item()
        assert part.numbers["tension"] == pytest.approx(tension, abs=1e-3)
        wanted = at_scale(signed_map(attribution), 0.1, shapes.layout(Layer("layer4")))[
            0, 0
        ].numpy()
        np.testing.assert_allclose(part.attribution, wanted, atol=1e-4)
        assert part.shown == f"fc:{part.feature.channel} ({KINDS[part.feature.channel or 0]})"


@pytest.mark.slow
def test_a_class_is_excited_by_its_shape_and_inhibited_by_its_veto(
    shapes: Backbone, tmp_path: Path
) -> None:
    world = VetoedShapes(8, seed=3, contents="tense")
    right = []
    for index in range(4):
        sample = world[index]
        kind = int(sample["tense"].nonzero()[0])
        answer = explain(
            to_image(sample["picture"]), shapes, f"fc:{KINDS[kind]}", **{**QUICK, "steps": 60}
        )
        (part,) = answer.parts
        assert part.positive is not None
        assert part.negative is not None
        assert part.positive.response > part.numbers["response"] > part.negative.response
        right.append(veto_of(kind))
    assert right


def test_pictures_are_compared_by_the_same_features(picture: Path, shapes: Backbone) -> None:
    both = explain([picture, noise(40, 90)], shapes, **QUICK)
    assert both.names == ["tense.png", "picture 2"]
    features = list(dict.fromkeys(str(part.feature) for part in both.parts))
    assert [part.picture for part in both.parts] == [0, 1] * len(features)
    first = {str(one.feature) for said in both.said for one in said[:2]}
    assert set(features) == first
    assert both.sheet.width > both.sheet.height / 2


def test_a_crop_is_compared_with_its_picture(picture: Path, shapes: Backbone) -> None:
    both = explain(picture, shapes, "fc:star", crop=(10, 20, 50, 40), **QUICK)
    assert both.names == ["tense.png", "tense.png, 50x40 pixels from 10,20"]
    assert both.originals[1].size == (50, 40)
    with Image.open(picture) as image:
        wanted = np.asarray(image.convert("RGB"))[20:60, 10:60]
    np.testing.assert_array_equal(np.asarray(both.originals[1]), wanted)
    assert both.path is None


@pytest.mark.parametrize("modes", [("1", "L", "LA", "P"), ("RGBA", "CMYK", "I;16", "F")])
def test_a_picture_of_any_mode_will_do(
    modes: tuple[str, ...], shapes: Backbone, tmp_path: Path
) -> None:
    paths = []
    for mode in modes:
        image = noise(40, 60)
        if mode in ("I;16", "F"):
            dtype = np.uint16 if mode == "I;16" else np.float32
            image = Image.fromarray(np.arange(0, 60_000, 25)[:2400].reshape(40, 60).astype(dtype))
        elif mode != "RGB":
            image = image.convert(mode)
        paths.append(
            tmp_path / f"{mode.replace(';', '')}.{'png' if mode not in 'CMYKF' else 'tif'}"
        )
        image.save(paths[-1])
    with Image.open(paths[-2]) as image:
        assert image.mode == modes[-2]
    found = explain(paths, shapes, "fc:star", layer="layer3", **QUICK)
    assert [picture.size for picture in found.originals] == [(60, 40)] * 4
    assert [picture.size for picture in found.pictures] == [(96, 96)] * 4


def test_a_picture_of_any_size_will_do(shapes: Backbone, tmp_path: Path) -> None:
    sizes = [(300, 20), (20, 300), (1, 1), (1500, 2000)]
    for place, size in enumerate(sizes):
        noise(*size).save(tmp_path / f"{place}.png")
    found = explain(sorted(tmp_path.iterdir()), shapes, "fc:star", layer="layer3", **QUICK)
    assert [picture.size[::-1] for picture in found.originals] == sizes
    assert [picture.size for picture in found.pictures] == [(96, 96)] * 4


@pytest.mark.parametrize("orientations", [(1, 2, 3, 4), (5, 6, 7, 8)])
def test_a_picture_is_shown_upright(
    orientations: tuple[int, ...], shapes: Backbone, tmp_path: Path
) -> None:
    for orientation in orientations:
        exif = Image.Exif()
        exif[0x0112] = orientation
        noise(40, 60).save(tmp_path / f"{orientation}.jpg", exif=exif)
    found = explain(sorted(tmp_path.iterdir()), shapes, "fc:star", layer="layer3", **QUICK)
    lying = orientations[0] == 5
    assert [picture.size for picture in found.originals] == [(40, 60) if lying else (60, 40)] * 4


def test_a_picture_may_come_from_memory(shapes: Backbone) -> None:
    image = noise(80, 120)
    numbers = [
        explain(given, shapes, "fc:star", **QUICK).parts[0].numbers["response"]
        for given in (image, np.asarray(image))
    ]
    assert numbers[0] == numbers[1]
    with pytest.raises(InputError, match="Pillow takes no such array"):
        explain(np.zeros((2, 3, 4, 5)), shapes, **QUICK)


def test_what_does_not_excite_or_inhibit_has_an_empty_place(shapes: Backbone) -> None:
    world = VetoedShapes(3)  # the third holds nothing that excites class 0
    with warnings.catch_warnings(record=True) as told:
        found = explain(to_image(world[2]["picture"]), shapes, "fc:0", **QUICK)
    assert not any("cannot be made" in str(warning.message) for warning in told)
    (part,) = found.parts
    if part.positive is None:
        assert found.rows[0]["response of +"] is None
        assert found.table.splitlines()[1].split()[-2] == "-"
    assert found.sheet.size


# --- what is shown and written ---


def test_it_shows_itself_in_a_notebook(picture: Path, shapes: Backbone) -> None:
    hostile = picture.with_name("<img src=x onerror=alert(1)> $\\frac$.png")
    hostile.write_bytes(picture.read_bytes())
    found = explain(hostile, shapes, "fc:star", **QUICK)
    page = found._repr_html_()
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page
    assert found._repr_png_().startswith(b"\x89PNG")


def test_the_table_has_a_row_for_each_feature_and_picture(found: Explanation) -> None:
    head, *rows = found.table.splitlines()
    assert head.split() == [
        *("feature", "picture", "says", "response", "E+", "E-", "tension", "of", "+", "of", "-")
    ]
    assert len(rows) == 3
    for row, part in zip(rows, found.parts, strict=True):
        assert row.startswith(part.shown)
        assert f"{part.numbers['tension']:.2f}" in row
    assert [row["class"] for row in found.rows] == [part.name for part in found.parts]


def test_the_configuration_makes_the_same_again(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for given, crop in (([str(picture)], ()), ([str(picture)], ("--crop=10,20,80,70",))):
        out = f"sheet{len(crop)}.png"
        options = [f"--model={SHAPES}", "--feature=fc:star", "--steps=3", "--accelerator=cpu"]
        main(["explain", *given, *crop, *options, f"--out={out}"])
        made = explain(
            given,
            SHAPES,
            "fc:star",
            crop=(10, 20, 80, 70) if crop else None,
            **{**QUICK, "steps": 3},
        )
        name = f"again{len(crop)}"
        settings = f"--config={Path(out).with_suffix('.yaml')}"
        main(["fit", settings, f"--name={name}", "--trainer.accelerator=cpu"])
        rows = table(Path("tb_logs", name, "version_0", "results.csv"))
        wanted = [
            inversion.response
            for place in range(len(made.names))
            for part in made.parts
            if part.picture == place
            for inversion in (part.positive, part.negative)
            if inversion is not None
        ]
        assert [float(row["response"]) for row in rows] == pytest.approx(wanted, rel=1e-4, abs=1e-4)


def test_the_settings_name_what_was_given(picture: Path, tmp_path: Path) -> None:
    weights, labels = tmp_path / "weights.safetensors", tmp_path / "labels.txt"
    save_file(timm.create_model("test_resnet").state_dict(), weights)
    labels.write_text("\n".join(f"class {k}" for k in range(1000)))
    found = explain(
        picture, "test_resnet", "fc:class 7", weights=str(weights), labels=str(labels), **QUICK
    )
    settings = yaml.safe_load(found.configuration())
    given = settings["model"]["init_args"]
    assert given["backbone"]["weights"] == str(weights)
    assert given["backbone"]["labels"] == str(labels)
    assert given["features"] == ["fc:7"]
    assert settings["data"] == {"class_path": "PictureFile", "init_args": {"path": str(picture)}}
    assert found.parts[0].name == "class 7"


def test_a_network_with_other_classes(picture: Path, tmp_path: Path) -> None:
    weights, out = tmp_path / "weights.safetensors", tmp_path / "out.png"
    save_file(timm.create_model("test_resnet", num_classes=7).state_dict(), weights)
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(f"kind {k}" for k in range(7)))
    given = [f"--weights={weights}", f"--labels={labels}", "--arguments={num_classes: 7}"]
    quick = ["--steps=1", "--feature=fc:kind 6", "--accelerator=cpu", f"--out={out}"]
    main(["explain", str(picture), "--model=test_resnet", *given, *quick])
    settings = yaml.safe_load(out.with_suffix(".yaml").read_text())
    assert settings["model"]["init_args"]["backbone"]["arguments"] == {"num_classes": 7}


def test_the_command_prints_what_it_chose(
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["explain", str(picture), f"--model={SHAPES}", "--steps=2", "--accelerator=cpu"]
    main(command)
    told, log = capsys.readouterr()
    assert told.splitlines()[-2:] == ["explain.png", "explain.yaml"]
    assert len(told.splitlines()) == 6
    with Image.open("explain.png") as sheet:
        assert sheet.width > 1000
    before = Path("explain.png").stat().st_mtime_ns
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 2
    assert Path("explain.png").stat().st_mtime_ns == before
    main([*command, "--overwrite", "--feature=fc:disc", "--feature=fc:star", "--layer=layer3"])
    assert "attributed to layer3" in capsys.readouterr().err or log


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail where work begins."""

    def begin(*_: object, **__: object) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr("mti_lightning.explanation.explain.render", begin)
    return iter(())  # type: ignore[return-value]


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["GONE.png"], "GONE.png does not exist"),
        (["."], "is a folder; name pictures"),
        (["note.png"], "note.png is not a picture"),
        (["PICTURE"] * 5, "5 pictures; give 1 to 4"),
        (["PICTURE", "--model=vetoed_shapes_resnte"], "did you mean 'vetoed_shapes_resnet'"),
        (["PICTURE", "--weights=gone.pth"], "'gone.pth' for vetoed_shapes_resnet is no file"),
        (["PICTURE", "--labels=gone.txt"], "'gone.txt' cannot be read"),
        (["PICTURE", "--feature=fc:str"], "no class 'str' of vetoed_shapes_resnet; near it are"),
        (["PICTURE", "--feature=fcc:1"], "layer 'fcc' is not in vetoed_shapes_resnet"),
        (["PICTURE", "--feature=fc:9"], "channel 9 is out of range"),
        (["PICTURE", "--layer=layer9"], "layer 'layer9' is not in"),
        (["PICTURE", "--layer=fc", "--feature=layer4:3@mean"], "does not feed"),
        (["PICTURE", "--crop=0,0,97,10"], "not within tense.png, which is 96x96 pixels"),
        (["PICTURE", "--crop=0,0,0,10"], "crop 0,0,0,10 is not within"),
        (["PICTURE", "--crop=1,2,3"], "crop '1,2,3': give left,top,width,height"),
        (["PICTURE", "PICTURE", "--crop=0,0,9,9"], "crop is of one picture"),
        (["PICTURE", "--steps=0"], "steps 0: give 1 or more"),
        (["PICTURE", "--classes=0"], "classes 0: give 1 to 50"),
        (["PICTURE", "--attribution=ActGrda"], "there is no class 'ActGrda'"),
        (["PICTURE", "--out=note.txt"], "note.txt: Pillow writes no such format"),
        (["PICTURE", "--out=."], "is a folder"),
        (["PICTURE", "--out=note.png"], "note.png exists"),
        (["PICTURE", "--out=note.png/a.png"], "note.png is no folder"),
        (["PICTURE", "--model"], "--model"),
        ([], "pictures"),
    ],
)
def test_wrong_input_is_one_line_before_any_work(
    options: list[str],
    told: str,
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("note.png").write_text("no picture")
    given = [str(picture) if option == "PICTURE" else option for option in options]
    model = [] if any(option.startswith("--model") for option in given) else [f"--model={SHAPES}"]
    with pytest.raises(SystemExit) as stopped:
        main(["explain", *given, *model])
    assert stopped.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("mti: error: ")
    assert told in error
    assert [path.name for path in tmp_path.iterdir()] == ["note.png"]


@pytest.mark.parametrize("model", ["test_resnet", "test_convnext", "test_efficientnet", "test_vit"])
def test_it_works_unattended_on_weights_from_a_file(
    model: str, picture: Path, tmp_path: Path
) -> None:
    file = tmp_path / "weights.safetensors"
    torch.manual_seed(0)
    save_file({k: v.contiguous() for k, v in timm.create_model(model).state_dict().items()}, file)
    found = explain(picture, model, weights=str(file), classes=2, **QUICK)
    assert len(found.parts) == 2
    assert all(part.share is not None for part in found.parts)
    found.save(tmp_path / "sheet.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("sheet.png", "sheet.yaml", "weights.safetensors")
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "layers", "grid"),
    [
        ("resnet18", ["layer3", "layer4"], "14×14"),
        ("convnext_tiny", ["stages.2", "stages.3"], "14×14"),
        # Where places have a say beside the class token depends on the weights.
        ("vit_tiny_patch16_224", [f"blocks.{block}" for block in range(11)], "14×14"),
        ("swin_tiny_patch4_window7_224", ["layers.2", "layers.3"], "14×14"),
    ],
)
def test_it_works_unattended_on_networks_that_people_use(
    model: str, layers: list[str], grid: str, picture: Path, tmp_path: Path
) -> None:
    file = tmp_path / "weights.pth"
    torch.save(timm.create_model(model).state_dict(), file)
    found = explain(picture, model, weights=str(file), classes=1, **QUICK)
    assert found.layer in layers
    assert found.why == (
        f"attributed to {found.layer}, the last stage with positions on a fine grid that feed it "
        f"({grid})"
    )
    later = layers[layers.index(found.layer) + 1 :]
    backbone = Backbone(model, str(file))
    seen = prepare(found.originals[0], backbone.preprocessing)[None]
    bound_feature = BoundFeature(found.parts[0].feature, backbone)
    for layer in (found.layer, *later):
        _, attribution, _ = attribute(backbone, seen, [bound_feature], Layer(layer), ActGrad())
        layout = backbone.layout(Layer(layer))
        counted = on_grid(support_mask(attribution, channel_dim=layout.channel_dim), layout)
        serves = bool(counted.sum() >= 4) and min(layout.grid) >= 10
        assert serves == (layer == found.layer)
