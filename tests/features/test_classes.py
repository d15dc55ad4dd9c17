"""Class names: which class is meant, what is shown, and what a hostile name cannot do."""

import unicodedata
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mti_lightning import Backbone, Feature, InputError, Layer
from mti_lightning.features.bound import BoundFeature, expand
from mti_lightning.features.classes import (
    ClassNames,
    class_layer,
    class_names,
    display,
    gives_classes,
    one_line,
    read_feature,
)
from mti_lightning.tables import read_table, write_table
from mti_lightning.vetoed_shapes.shapes import KINDS


@pytest.fixture(scope="module")
def imagenet() -> Backbone:
    return Backbone("test_resnet", "random")


@pytest.fixture(scope="module")
def shapes() -> Backbone:
    return Backbone("vetoed_shapes_resnet")


def labelled(folder: Path, *names: str) -> Backbone:
    file = folder / "labels.txt"
    file.write_text("\n".join(names), encoding="utf-8")
    arguments = {"num_classes": len(names)}
    return Backbone("test_resnet", "random", arguments=arguments, labels=str(file))


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("peacock", 84),
        ("PEACOCK", 84),
        ("Egyptian cat", 285),
        (" egyptian  cat ", 285),
        ("tabby", 281),
        ("tabby cat", 281),
        ("tabby, tabby cat", 281),
        ("maillot, tank suit", 639),
        ("84", 84),
    ],
)
def test_a_class_is_named_in_any_case_by_any_synonym(
    imagenet: Backbone, name: str, index: int
) -> None:
    assert read_feature(f"fc:{name}", imagenet) == Feature("fc", channel=index)
    if not name.isdecimal():
        assert read_feature({"layer": "fc", "channel": name}, imagenet).channel == index


def test_a_feature_is_its_index_and_shows_its_name(imagenet: Backbone) -> None:
    feature = read_feature("fc:tabby cat", imagenet)
    assert str(feature) == "fc:281"
    assert BoundFeature(feature, imagenet).shown == "fc:281 (tabby)" == display(feature, "tabby")
    assert display("layer3:12@centre", "") == "layer3:12@centre"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("crane", r"'crane' of test_resnet may be 134 \(crane\) or 517 \(crane\); give the index"),
        ("cardigan", r"264 \(Cardigan, Cardigan Welsh corgi\) or 474 \(cardigan\)"),
        ("pecock", r"no class 'pecock' of test_resnet; near it are 'peacock' \(84\)"),
        ("cat", r"near it are 'tabby' \(281\), 'tiger cat' \(282\)"),
        ("xqzw", "no class 'xqzw' of test_resnet; give its index"),
    ],
)
def test_ambiguous_and_unknown_names_are_one_line(imagenet: Backbone, name: str, told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        read_feature(f"fc:{name}", imagenet)
    assert "\n" not in str(caught.value)


def test_classes_are_named_only_where_the_output_is(imagenet: Backbone) -> None:
    with pytest.raises(InputError, match="named at layer fc, not at layer3"):
        read_feature("layer3:peacock", imagenet)
    vit = Backbone("test_vit", "random", arguments={"num_classes": 64})
    assert vit.layout(Layer("fc_norm")).shape == (64,)  # as many channels, and no classes
    assert not gives_classes(Layer("fc_norm"), vit)
    assert class_layer(vit) == Layer("head")


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        ("test_resnet", "fc"),
        ("test_vit", "head"),
        ("test_convnext", "head.fc"),
        ("test_efficientnet", "classifier"),
    ],
)
def test_the_layer_of_the_classes_is_found(model: str, layer: str) -> None:
    backbone = Backbone(model, "random")
    assert str(class_layer(backbone)) == layer
    assert BoundFeature(Feature(layer, channel=84), backbone).class_name == "peacock"


def test_where_no_layer_gives_the_output_there_are_no_classes() -> None:
    class Mean(nn.Module):
        def forward(self, logits: torch.Tensor) -> torch.Tensor:
            return logits - logits.mean(1, keepdim=True)

    backbone = Backbone("test_resnet", "random", arguments={"num_classes": 8})
    forward = backbone.network.forward
    backbone.network.forward = lambda pictures: Mean()(forward(pictures))  # type: ignore[method-assign]
    assert class_layer(backbone) is None
    assert class_names(backbone) is None  # and eight classes are no ImageNet


def test_the_vetoed_shapes_have_names(shapes: Backbone) -> None:
    assert read_feature("fc:star", shapes) == Feature("fc", channel=KINDS.index("star"))
    judge = Backbone("vetoed_shapes_judge")
    assert [class_names(judge)[i] for i in range(8)] == list(KINDS)  # type: ignore[index]


def test_every_channel_and_names_may_be_mixed(shapes: Backbone) -> None:
    assert [str(f) for f in expand(["fc:star", "layer4:3@mean", "fc:*"], shapes)] == [
        f"fc:{KINDS.index('star')}",
        "layer4:3@mean",
        *(f"fc:{kind}" for kind in range(8)),
    ]


def test_a_file_of_names(tmp_path: Path) -> None:
    backbone = labelled(tmp_path, "cat, house cat", "dog\r", "", "a@b: c", "7", "cat, wild cat")
    assert [BoundFeature(Feature("fc", channel=i), backbone).class_name for i in range(6)] == [
        "cat, house cat",
        "dog",
        "",
        "a@b: c",
        "7",
        "cat, wild cat",
    ]
    for name, index in {"wild cat": 5, "dog": 1, "a@b: c": 3, "CAT, HOUSE CAT": 0}.items():
        assert read_feature(f"fc:{name}", backbone).channel == index
    with pytest.raises(InputError, match=r"may be 0 .* or 5"):
        read_feature("fc:cat", backbone)
    with pytest.raises(InputError, match="out of range"):  # a number is an index
        BoundFeature(read_feature("fc:7", backbone), backbone)


def test_a_file_of_names_that_does_not_fit(tmp_path: Path) -> None:
    backbone = labelled(tmp_path, "cat", "dog")
    for text, told in (("cat\n", "names 1 classes, one a line; test_resnet has 2"),):
        Path(backbone.labels or "").write_text(text)
        with pytest.raises(InputError, match=told):
            class_names(backbone)
    (tmp_path / "labels.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="no text in UTF-8"):
        class_names(backbone)
    (tmp_path / "labels.txt").unlink()
    with pytest.raises(InputError, match="cannot be read: No such file"):
        class_names(backbone)


def test_names_of_a_models_configuration() -> None:
    synsets = ("n01440764", "n01443537")
    for told, names in (
        ({"label_names": synsets}, ("tench", "goldfish")),
        ({"label_names": ("a", "b"), "label_descriptions": {"a": "ape, monkey"}}, ("ape", "b")),
        ({"label_names": ("a", "b", "c")}, None),  # of other classes
    ):
        backbone = Backbone("test_resnet", "random", arguments={"num_classes": 2})
        backbone.network.pretrained_cfg |= told  # type: ignore[operator, union-attr]
        found = class_names(backbone)
        assert (found and (found[0], found[1])) == names


def test_a_direction_stays_a_direction(imagenet: Backbone, tmp_path: Path) -> None:
    path = tmp_path / "peacock"
    torch.save(torch.ones(1000), tmp_path / "d.pt")
    path.touch()
    for what in (f"{tmp_path}/d.pt", f"{tmp_path}/d.pt#3", "missing.npy", str(path)):
        assert read_feature(f"fc:{what}", imagenet).direction == what


@given(st.lists(st.text(), min_size=1, max_size=6))
@settings(max_examples=60)
def test_no_name_breaks_a_line_or_hides(names: list[str]) -> None:
    known = ClassNames({i: (one_line(name) or "x",) for i, name in enumerate(names)}, "it")
    for index in known.names:
        shown = display(Feature("fc", channel=index), known[index])
        assert len(shown) < 80
        assert not any(unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Cs") for c in shown)


def test_tables_run_no_formula_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    texts = ["=1+1", "+cmd", "-x", "@sum", "\t=a", "plain", "'quoted", "", "a,b", '"', "ü"]
    rows = [{"text": text, "number": -1.5, "told": "-0.25"} for text in texts]
    write_table(path, rows)
    cells = path.read_text(encoding="utf-8")
    assert "'=1+1" in cells
    assert "-1.5,-0.25" in cells
    assert [row["text"] for row in read_table(path)] == texts
