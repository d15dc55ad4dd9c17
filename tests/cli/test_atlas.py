"""`mti atlas`: what it says and writes before the run, and how it goes on."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from mti_lightning import Backbone
from mti_lightning.cli import main, runs
from mti_lightning.features.classes import in_network, read_feature

OPTIONS = ("--model=test_resnet", "--weights=random", "--feature=fc:3", "--accelerator=cpu")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five pictures, one of them in a folder below, and a file that is none."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for name in ("a.png", "b.png", "c.png", "d.png", "below/e.png"):
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (40, 40, 3), np.uint8)).save(path)
    (tmp_path / "mine/0.png").write_text("no picture")
    return tmp_path / "mine"


def test_it_says_what_it_takes_and_writes_what_repeats_it(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(runs, "fit", called.append)
    main(["atlas", "mine", *OPTIONS, "--cost"])
    assert called == []  # it says so, and stops
    config = Path("tb_logs/atlas/atlas.yaml")
    assert capsys.readouterr().out.split() == [str(config)]
    assert "6 pictures: about" in caplog.text
    assert "MB on the disk; then about 12 icons" in caplog.text
    made = yaml.safe_load(config.read_text())
    assert made["data"]["init_args"] == {"path": str(folder), "recursive": True}
    assert made["model"]["init_args"]["features"] == ["fc:3"]
    assert made["model"]["init_args"]["chart"] == {"apart": True}

    main(["atlas", str(folder), *OPTIONS])
    assert called.pop() == ["--config", str(config)]
    # A run that was stopped goes on, the last one.
    for version in (2, 10):
        kept = tmp_path / f"tb_logs/atlas/version_{version}/checkpoints/unfinished.ckpt"
        kept.parent.mkdir(parents=True)
        kept.touch()
    main(["atlas", "mine", *OPTIONS])
    assert called.pop()[2:] == [
        "--ckpt_path",
        "tb_logs/atlas/version_10/checkpoints/unfinished.ckpt",
    ]
    # Another atlas does not take this one's place.
    with pytest.raises(SystemExit):
        main(["atlas", "mine", *OPTIONS, "--steps=7"])
    assert "tb_logs/atlas/atlas.yaml is of another atlas" in capsys.readouterr().err
    assert called == []


def test_several_features_share_a_map_and_two_layers_stand_side_by_side(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(runs, "fit", called.append)
    more = ("--feature=fc:1", "--layer=layer2", "--layer=layer3.0.conv1/input")
    main(["atlas", "mine", *OPTIONS, *more])
    configs = [Path("tb_logs", name, "atlas.yaml") for name in ("atlas_layer2", SECOND)]
    assert called == [["--config", str(config)] for config in configs]
    made = [yaml.safe_load(config.read_text())["model"]["init_args"] for config in configs]
    assert [of["features"] for of in made] == [["fc:3", "fc:1"]] * 2
    assert [of["attribution_layer"] for of in made] == ["layer2", "layer3.0.conv1/input"]
    assert [of.get("beside") for of in made] == [None, "tb_logs/atlas_layer2"]
    # The first is not made again once it is finished.
    called.clear()
    finished = configs[0].parent / "version_0"
    finished.mkdir()
    for name, text in (
        ("atlas_pictures.csv", "map,row,column,x,y,picture\nexcites,0,0,0,0,a.png\n"),
        ("atlas_excites.html", ""),
    ):
        (finished / name).write_text(text)
    main(["atlas", "mine", *OPTIONS, *more])
    assert called == [["--config", str(configs[1])]]
    for wrong in (("--layer=layer1", *more), ("--model=resnet18", "--model=resnet34")):
        with pytest.raises(SystemExit):
            main(["atlas", "mine", *OPTIONS, *wrong])
        assert "give one, or two to be shown side by side" in capsys.readouterr().err


SECOND = "atlas_layer3.0.conv1-input"


def test_a_class_of_another_network_is_that_of_its_name(folder: Path) -> None:
    names = [f"n{place}" for place in range(10)]
    for file, order in (("one.txt", names), ("other.txt", names[::-1])):
        Path(file).write_text("\n".join(order))
    one, same, other = (
        Backbone("test_resnet", "random", labels=file, arguments={"num_classes": 10})
        for file in ("one.txt", "one.txt", "other.txt")
    )
    feature = read_feature("fc:n3", one)
    assert str(in_network(feature, one, same)) == "fc:3"
    assert str(in_network(feature, one, other)) == "fc:6"
    plain = read_feature("layer2:3@centre", one)
    assert in_network(plain, one, other) == plain
