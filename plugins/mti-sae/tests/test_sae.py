"""Dictionaries: files, codes, what atoms contribute, and the commands."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mti_sae import AtomGradient, Dictionary, attribute_atoms
from mti_sae.cli import main as command
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from mti_lightning import (
    ActGrad,
    Attribution,
    Backbone,
    BoundFeature,
    Feature,
    InputError,
    Layer,
    VetoedShapes,
    attribute,
)
from mti_lightning.cli import main
from mti_lightning.testing import check_attribution
from mti_lightning.vetoed_shapes.world import veto_of

CONFIGS = Path(__file__).parents[1] / "configs"
CHANNELS, COUNT = 128, 300  # of layer3 of the vetoed shapes' network; more atoms than channels


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    scale = float(expected.abs().max())
    assert scale > 0
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale)


def shapes(count: int) -> Tensor:
    world = VetoedShapes(count, seed=5)
    return torch.stack([world[index]["picture"] for index in range(count)])


def run(
    backbone: Backbone, pictures: Tensor, feature: str, layer: str, method: Attribution
) -> Tensor:
    bound_feature = BoundFeature(Feature.parse(feature), backbone)
    result: Tensor = attribute(
        backbone, pictures, [bound_feature] * len(pictures), Layer.parse(layer), method
    )[1]
    return result


def autoencoder(channels: int = CHANNELS) -> dict[str, Tensor]:
    """Return an untrained one, by SAELens' names."""
    atoms = torch.nn.functional.normalize(torch.randn(COUNT, channels), dim=1)
    return {
        "W_dec": atoms,
        "W_enc": atoms.T.contiguous() + 0.1 * torch.randn(channels, COUNT),
        "b_dec": 0.1 * torch.randn(channels),
        "b_enc": 0.1 * torch.randn(COUNT),
    }


@pytest.fixture
def path(tmp_path: Path) -> str:
    save_file(autoencoder(), tmp_path / "sae.safetensors")
    return str(tmp_path / "sae.safetensors")


# --- files ---


def test_one_autoencoder_in_every_file_and_by_every_name(path: str, tmp_path: Path) -> None:
    expected = Dictionary(path)
    parts = {"atoms": expected.atoms, "encoder": expected.encoder}
    source = {
        "encoder.weight": parts["encoder"].contiguous(),
        "decoder.weight": parts["atoms"].T.contiguous(),
        "encoder.bias": expected.encoder_bias,
        "pre_bias": expected.bias,
    }
    torch.save(source, tmp_path / "linear.pt")
    torch.save({"state_dict": source, "step": 3}, tmp_path / "checkpoint.pth")
    np.savez(tmp_path / "arrays.npz", **{name: value.numpy() for name, value in source.items()})
    values = torch.randn(2, 7, CHANNELS)
    for name in ("linear.pt", "checkpoint.pth", "arrays.npz"):
        found = Dictionary(str(tmp_path / name))
        assert torch.equal(found.atoms, expected.atoms)
        assert torch.equal(found.encode(values), expected.encode(values))
    assert str(expected) == str(Dictionary(path))  # by which a sweep knows its method again


def test_codes_by_their_definition(path: str, tmp_path: Path) -> None:
    parts = autoencoder() | {"threshold": 0.3 * torch.rand(COUNT)}
    save_file(parts, tmp_path / "jump.safetensors")
    values = torch.randn(5, CHANNELS)
    before = (values - parts["b_dec"]) @ parts["W_enc"] + parts["b_enc"]
    codes = torch.where((before > 0) & (before > parts["threshold"]), before, 0)
    jump = str(tmp_path / "jump.safetensors")
    torch.testing.assert_close(Dictionary(jump).encode(values), codes)
    sparse = Dictionary(jump, top=4).encode(values)
    assert (sparse.count_nonzero(-1) == 4).all()
    torch.testing.assert_close(sparse.sort(-1).values[:, -4:], codes.sort(-1).values[:, -4:])
    uncentred = (values @ parts["W_enc"] + parts["b_enc"]).relu()
    uncentred = uncentred * (uncentred > parts["threshold"])
    torch.testing.assert_close(Dictionary(jump, centred=False).encode(values), uncentred)


@pytest.mark.parametrize("count", [40, CHANNELS, COUNT])
def test_codes_of_a_matrix_rebuild_what_it_spans(count: int, tmp_path: Path) -> None:
    atoms = torch.randn(count, CHANNELS)
    np.save(tmp_path / "atoms.npy", atoms.numpy())
    dictionary = Dictionary(str(tmp_path / "atoms.npy"))
    values = torch.randn(6, count) @ atoms
    close(dictionary.encode(values) @ dictionary.atoms, values, 1e-4)


@pytest.mark.parametrize(
    ("parts", "options", "message"),
    [
        ({"foo": torch.ones(3, 4)}, {}, "no matrix of a known name (W_dec, decoder.weight, "),
        ({"foo": torch.ones(3, 4)}, {"key": "bar"}, "no bar in it; key: one of foo"),
        ({"W_dec": torch.ones(4)}, {}, "[4] is no matrix of atoms [K, C], all finite"),
        ({"W_dec": torch.full((2, 2), torch.nan)}, {}, "[2, 2] is no matrix of atoms"),
        (
            {"W_dec": torch.ones(3, 4), "W_enc": torch.ones(5, 3)},
            {},
            "the encoder is [3, 5] for atoms [3, 4]",
        ),
        ({"W_dec": torch.ones(3, 4), "b_dec": torch.ones(3)}, {}, "b_dec is [3] and not [4]"),
        ({"W_dec": torch.ones(3, 4)}, {"top": 0}, "top 0: give 1 or more"),
    ],
)
def test_a_file_that_will_not_do_is_refused(
    parts: dict[str, Tensor], options: dict[str, object], message: str, tmp_path: Path
) -> None:
    save_file(parts, tmp_path / "sae.safetensors")
    with pytest.raises(InputError) as error:
        Dictionary(str(tmp_path / "sae.safetensors"), **options)  # type: ignore[arg-type]
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'no\.pt' is no file"):
        Dictionary("no.pt")
    for name in ("a.pt", "a.npy", "a.safetensors"):
        (tmp_path / name).write_text("nothing of the kind")
        with pytest.raises(InputError, match="holds no arrays of numbers that can be read"):
            Dictionary(str(tmp_path / name))


# --- attributions ---


@pytest.mark.parametrize(
    ("model", "layer", "feature", "channels"),
    [
        ("vetoed_shapes_resnet", "layer3", "fc:3", 128),
        ("test_vit", "blocks.2", "head:3", 64),
        ("test_convnext", "stages.1.blocks.0.mlp.act/input", "head.fc:3", None),
    ],
)
def test_atoms_and_rest_add_up_to_act_grad(
    model: str, layer: str, feature: str, channels: int | None, tmp_path: Path
) -> None:
    backbone = Backbone(model, **({} if "vetoed" in model else {"weights": "random"}))
    site = backbone.layout(Layer.parse(layer))
    save_file(autoencoder(channels or site.channels), tmp_path / "sae.safetensors")
    dictionary = Dictionary(str(tmp_path / "sae.safetensors"))
    pictures = torch.rand(3, 3, *backbone.preprocessing.size)
    bound_feature = BoundFeature(Feature.parse(feature), backbone)
    found = attribute_atoms(backbone, pictures, bound_feature, Layer.parse(layer), dictionary)
    expected = run(backbone, pictures, feature, layer, ActGrad()).sum(site.channel_dim)
    close(found.attribution.sum(1) + found.rest, expected.flatten(1))
    assert found.attribution.shape == (3, COUNT, expected.flatten(1).shape[1])
    whole = run(backbone, pictures, feature, layer, AtomGradient(dictionary, rest=True))
    close(whole, run(backbone, pictures, feature, layer, ActGrad()))
    # Atom by atom the same by both ways.
    atoms = [int(found.attribution.abs().sum((0, 2)).argmax()), 7]
    some = run(backbone, pictures, feature, layer, AtomGradient(dictionary, atoms))
    close(some.sum(site.channel_dim).flatten(1), found.attribution[:, atoms].sum(1))


@pytest.mark.parametrize("model", ["channels last", "channels first"])
def test_maps_as_wide_as_they_have_channels(model: str, tmp_path: Path) -> None:
    swin = {"embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2), "window_size": 4}
    backbone, layer = {
        "channels last": (
            Backbone("swin_tiny_patch4_window7_224", "random", 0, (64, 64), swin),
            Layer("layers.0"),  # [N, 16, 16, 16]
        ),
        "channels first": (Backbone("test_resnet", "random", 0, (128, 128)), Layer("layer1")),
    }[model]
    site = backbone.layout(layer)
    assert site.shape[0] == site.shape[1] == site.shape[2]
    np.save(tmp_path / "channels.npy", np.eye(site.channels, dtype=np.float32))
    dictionary = Dictionary(str(tmp_path / "channels.npy"))
    pictures = torch.rand(2, 3, *backbone.preprocessing.size)
    feature = "head.fc:3" if model == "channels last" else "fc:3"
    bound_feature = BoundFeature(Feature.parse(feature), backbone)
    expected = run(backbone, pictures, feature, str(layer), ActGrad())
    found = attribute_atoms(backbone, pictures, bound_feature, layer, dictionary)
    close(found.attribution, expected.movedim(site.channel_dim, 1).flatten(2))
    method = AtomGradient(dictionary, [3])
    some = run(backbone, pictures, feature, str(layer), method)
    only = torch.zeros_like(expected)
    only.select(site.channel_dim, 3).copy_(expected.select(site.channel_dim, 3))
    close(some, only)


def test_an_atom_s_excitation_inhibition_and_tension(path: str) -> None:
    backbone, pictures = Backbone("vetoed_shapes_resnet"), shapes(3)
    bound_feature = BoundFeature(Feature("fc", 3), backbone)
    atoms = attribute_atoms(backbone, pictures, bound_feature, Layer("layer3"), Dictionary(path))
    parts = atoms.attribution.numpy()  # [N, K, P]
    close(atoms.excitation, torch.from_numpy(np.where(parts > 0, parts, 0).sum(2)))
    close(atoms.inhibition, torch.from_numpy(np.where(parts < 0, -parts, 0).sum(2)))
    close(atoms.excitation - atoms.inhibition, atoms.attribution.sum(2))
    both = (parts > 0).any(2) & (parts < 0).any(2)
    assert torch.equal(atoms.tension > 0, torch.from_numpy(both))
    close(atoms.tension**2, atoms.excitation * atoms.inhibition)


def test_it_keeps_its_word() -> None:
    check_attribution(AtomGradient())


def test_channels_as_atoms_are_act_grad(tmp_path: Path) -> None:
    backbone, pictures = Backbone("vetoed_shapes_resnet"), shapes(3)
    np.save(tmp_path / "channels.npy", np.eye(CHANNELS, dtype=np.float32))
    dictionary = Dictionary(str(tmp_path / "channels.npy"))
    bound_feature = BoundFeature(Feature("fc", 3), backbone)
    found = attribute_atoms(backbone, pictures, bound_feature, Layer("layer3"), dictionary)
    expected = run(backbone, pictures, "fc:3", "layer3", ActGrad())
    close(found.attribution, expected.flatten(2))
    assert torch.equal(run(backbone, pictures, "fc:3", "layer3", AtomGradient()), expected)


def test_its_own_derivative_equals_finite_differences(path: str) -> None:
    backbone = Backbone("vetoed_shapes_resnet").to(torch.float64)
    method = AtomGradient(Dictionary(path), [3, 17, 40])
    bound_feature, pictures = BoundFeature(Feature("fc", 3), backbone), shapes(2).double()

    def total(pictures: Tensor, create_graph: bool) -> Tensor:
        found = attribute(
            backbone, pictures, [bound_feature] * 2, Layer("layer3"), method, create_graph
        )[1]
        return found.square().sum()

    pictures.requires_grad_()
    (gradient,) = torch.autograd.grad(total(pictures, True), pictures)
    direction = torch.randn_like(pictures)
    with torch.no_grad():
        ahead, behind = (total(pictures + step * direction, False) for step in (1e-7, -1e-7))
    slope = (ahead - behind) / 2e-7
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-3, atol=1e-7)


def test_what_does_not_fit_is_refused(path: str) -> None:
    backbone = Backbone("vetoed_shapes_resnet")
    with pytest.raises(InputError, match=r"128 channels, the layer's activations \[192, 6,"):
        run(backbone, shapes(1), "fc:3", "layer4", AtomGradient(Dictionary(path)))
    with pytest.raises(InputError, match=r"atoms: 300 is out of range; there are atoms 0\.\.299"):
        AtomGradient(Dictionary(path), [2, 300])
    with pytest.raises(InputError, match="they are those of a dictionary"):
        AtomGradient(atoms=[1])


# --- commands ---


def test_in_the_embedded_world_a_shape_s_atom_excites_and_its_veto_s_inhibits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone, world = Backbone("vetoed_shapes_resnet"), VetoedShapes(600, seed=3)
    pictures = torch.stack([world[index]["picture"] for index in range(600)])
    present = torch.stack([world[index]["present"] for index in range(600)]).float()  # [N, 8]
    pooled = backbone.run(pictures, [Layer("layer4")])[Layer("layer4")].detach().mean((2, 3))
    # What each shape adds to the layer, all else being equal.
    known = torch.cat([present, torch.ones(600, 1)], 1)
    np.save(tmp_path / "shapes.npy", torch.linalg.lstsq(known, pooled).solution.numpy())
    arguments = ["rank", "--backbone.name=vetoed_shapes_resnet", "--feature=fc:3"]
    arguments += ["--attribution_layer=layer4", f"--dictionary.path={tmp_path / 'shapes.npy'}"]
    arguments += ["--data=VetoedShapesPictures", "--data.size=64", "--data.contents=tense"]
    arguments += ["--count=1", f"--out={tmp_path / 'atoms.csv'}"]
    arguments += [f"--summary={tmp_path / 'summary.csv'}"]
    command(arguments)
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == [str(tmp_path / "atoms.csv"), str(tmp_path / "summary.csv")]
    assert printed[2].startswith("+ atom 3: +")
    with (tmp_path / "atoms.csv").open() as file:
        rows = list(csv.DictReader(file))
    pictures_named = list(dict.fromkeys(row["picture"] for row in rows))
    assert len(pictures_named) == 64
    mine = pictures_named[3::8]  # those that hold shape 3 and its veto
    strongest = {
        sign: [int(row["atom"]) for row in rows if row["picture"] in mine and row["sign"] == sign]
        for sign in "+-"
    }
    assert strongest == {"+": [3] * 8, "-": [veto_of(3)] * 8}
    for row in rows:
        assert (float(row["attribution"]) > 0) == (row["sign"] == "+")
        net = float(row["excitation"]) - float(row["inhibition"])
        assert net == pytest.approx(float(row["attribution"]), rel=1e-3, abs=1e-4)
        assert 0 <= int(row["row"]) < backbone.layout(Layer("layer4")).grid[0]
    with (tmp_path / "summary.csv").open() as file:
        summary = list(csv.DictReader(file))
    assert [int(row["atom"]) for row in summary] == [*range(9)]
    said = re.search(r"E\+ (\S+), E- (\S+), tension (\S+)", printed[2])
    assert said is not None
    for name, value in zip(("excitation", "inhibition", "tension"), said.groups(), strict=True):
        assert float(summary[3][name]) == pytest.approx(float(value), rel=1e-3)
    with pytest.raises(SystemExit):
        command(arguments)
    assert "atoms.csv exists; give --out another name" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command([*arguments, f"--out={tmp_path / 'other.csv'}"])
    assert "summary.csv exists; give --summary another name" in capsys.readouterr().err


def test_exported_directions_are_features(path: str, tmp_path: Path) -> None:
    out = tmp_path / "encoder.npy"
    command(["export", f"--dictionary.path={path}", f"--out={out}"])
    backbone, pictures, dictionary = Backbone("vetoed_shapes_resnet"), shapes(2), Dictionary(path)
    bound_feature = BoundFeature(Feature.parse(f"layer3:{out}#17@2,5"), backbone)
    activations = backbone.run(pictures, [Layer("layer3")])[Layer("layer3")]
    before = activations[:, :, 2, 5] @ dictionary.encoder[17]
    torch.testing.assert_close(bound_feature(activations), before)
    constant = dictionary.encoder_bias[17] - dictionary.encoder[17] @ dictionary.bias
    codes = dictionary.encode(activations[:, :, 2, 5])[:, 17]
    torch.testing.assert_close((before + constant).relu(), codes)


def _pictures(folder: Path) -> None:
    folder.mkdir()
    for number in range(2):
        noise = np.random.default_rng(number).integers(0, 256, (80, 80, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")


def test_the_configurations_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _pictures(Path("pictures"))
    save_file(autoencoder(1024), "sae.safetensors")
    network = ["--{}backbone.weights=random", "--{}backbone.input_size=[64,64]"]
    command(["rank", "--config", str(CONFIGS / "sae_atoms.yaml")] + [n.format("") for n in network])
    with Path("atoms.csv").open() as file:
        atoms = sorted({int(row["atom"]) for row in csv.DictReader(file)})
    assert len(atoms) >= 10
    short = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    short += ["--trainer.max_epochs=1", "--model.steps_per_epoch=2", "--model.coherent=false"]
    short += [f"--model.attribution.atoms={atoms}"]
    short += [n.format("model.") for n in network]
    main(["fit", "--config", str(CONFIGS / "sae_inversions.yaml"), *short])
    folder = Path("tb_logs/sae_inversions/version_0")
    main(["fit", "--config", str(folder / "config.yaml"), "--name=replayed"])
    first, second = (
        (path / "results.csv").read_text() for path in (folder, Path("tb_logs/replayed/version_0"))
    )
    assert first == second


def test_tables_are_whole_and_hold_no_formula(path: str, tmp_path: Path) -> None:
    _pictures(tmp_path / "pictures")
    (tmp_path / "pictures/0.png").rename(tmp_path / "pictures/=1+1.png")
    arguments = ["rank", "--backbone.name=vetoed_shapes_resnet", "--feature=fc:3"]
    arguments += ["--attribution_layer=layer3", f"--dictionary.path={path}", "--count=1"]
    arguments += ["--data=PictureFolder", f"--data.path={tmp_path / 'pictures'}"]
    with pytest.raises(SystemExit) as stopped:
        command([*arguments, f"--out={tmp_path / 'none/there'}", "--summary=/proc/x.csv"])
    assert stopped.value.code == 2
    command([*arguments, f"--out={tmp_path / 'atoms.csv'}"])
    with (tmp_path / "atoms.csv").open() as file:
        found = {(row["picture"], row["sign"]) for row in csv.DictReader(file)}
    assert found == {(key, sign) for key in ("'=1+1.png", "1.png") for sign in "+-"}
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file() and p.name[0] == ".") == []
