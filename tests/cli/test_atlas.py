"""`mti atlas`: what it says and writes before the run, and how it goes on."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from mti_lightning.cli import main, runs

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
