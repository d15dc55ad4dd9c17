"""Pictures of two photographs: what they show is true of the networks."""

from pathlib import Path

import pytest
import torch
import yaml
from mti_efficientnet_lite import photographs
from mti_efficientnet_lite.photographs import SCENES, Scene
from PIL import Image, ImageChops
from timm.data import ImageNetInfo

from mti_lightning import Backbone
from mti_lightning.data.decode import prepare

CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.mark.parametrize("size", [0, 1, 2])
@pytest.mark.parametrize("cover", ["grey", "blur"])
def test_one_half_excites_and_the_other_inhibits(size: int, cover: photographs.Cover) -> None:
    backbone = Backbone(f"efficientnet_lite{size}_in1k")
    for scene in SCENES:
        whole = scene.picture()
        without = [scene.picture(half, cover) for half in (scene.excites, 1 - scene.excites)]
        pictures = [prepare(picture, backbone.preprocessing) for picture in (whole, *without)]
        with torch.no_grad():
            logits = backbone(torch.stack(pictures))
        both, without_exciting, without_inhibiting = logits[:, scene.label].tolist()
        effect = 0.5 if size else 2  # they were chosen for Lite0
        assert without_exciting + effect < both < without_inhibiting - effect, scene.name
        # Without the half that inhibits, the class is among the first.
        ranks = (logits > logits[:, [scene.label]]).sum(1)
        assert ranks[2] <= 1, scene.name
        assert ranks[1] > 100, scene.name


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
@pytest.mark.parametrize("covered", [0, 1])
def test_a_cover_hides_its_half_alone(scene: Scene, covered: int) -> None:
    change = ImageChops.difference(scene.picture(), scene.picture(covered)).getbbox()
    assert change
    left, top, right, bottom = change
    half = photographs.SIDE // 2
    assert (left >= half or top >= half) if covered else (right <= half or bottom <= half)
    assert scene.picture(covered, "blur") != scene.picture(covered, "grey")


def test_the_pictures_lie_in_the_order_of_the_demo_s_features(tmp_path: Path) -> None:
    written = photographs.write(tmp_path / "deeper" / "pictures")
    assert written == sorted(written)
    assert [path.name for path in written][:2] == ["1_Egyptian_cat.png", "2_bell_cote.png"]
    with Image.open(written[0]) as picture:
        assert picture.size == (photographs.SIDE, photographs.SIDE)
    config = yaml.safe_load((CONFIGS / "demo_photographs.yaml").read_text())
    features = config["model"]["init_args"]["features"]
    names = ImageNetInfo()
    for feature, scene in zip(features, SCENES, strict=True):
        called = feature.removeprefix("classifier:")
        words = names.index_to_description(scene.label).split(", ")
        assert called in (str(scene.label), *words)
    assert config["data"]["init_args"]["path"] == "tb_logs/photographs"


def test_the_command_takes_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photographs.main([str(tmp_path)])
    assert len([*tmp_path.glob("*.png")]) == len(SCENES)
    with pytest.raises(SystemExit):
        photographs.main([])
    assert "usage: " in capsys.readouterr().err


def test_pairs_are_of_two_photographs_and_the_same_each_time(tmp_path: Path) -> None:
    photographs.main([str(tmp_path / "a"), "--pairs=5"])
    paths = sorted((tmp_path / "a").iterdir())
    assert paths == photographs.write_pairs(tmp_path / "a", 5)
    again = photographs.write_pairs(tmp_path / "b", 3)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths[:3]]
    for path in paths:
        names = {name.partition(".")[0] for name in photographs.PHOTOGRAPHS}
        first = next(n for n in names if path.stem[6:].startswith(f"{n}_"))
        assert path.stem[7 + len(first) :] in names - {first}


def test_without_the_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photographs, "find_spec", lambda _: None)
    with pytest.raises(FileNotFoundError, match="pip install scikit-image scikit-learn"):
        SCENES[0].picture()
