"""What `--config` names: a file, one that is shipped, or the configuration itself."""

from pathlib import Path

import pytest

from mti_lightning.cli import main
from mti_lightning.cli.files import check, class_paths, files, locate, shipped
from mti_lightning.errors import InputError

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(autouse=True)
def desk(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_configurations_of_a_clone_are_those_that_are_shipped():
    assert shipped() == {path.stem: path for path in sorted(CONFIGS.glob("*.yaml"))}


def test_a_name_stands_for_a_shipped_configuration_unless_a_file_has_it():
    Path("vit").write_text("name: mine")
    Path("mti").mkdir()
    given = ["--config", "mti", "-c", "vit", "--config=sweep.yaml", "--name", "atlas", "-c", "nix"]
    assert locate(given) == [
        *("--config", str(CONFIGS / "mti.yaml"), "-c", "vit"),
        *(f"--config={CONFIGS / 'sweep.yaml'}", "--name", "atlas", "-c", "nix"),
    ]
    assert locate(["--config"]) == ["--config"]


def test_a_configuration_may_stand_on_the_command_line_itself():
    given = ["--config", "{name: mine}", "--config=name: [mine]"]
    assert files(given) == []
    check(given)


def test_class_paths_are_found_in_files_and_arguments():
    Path("a.yaml").write_text(
        "# mti_lightning.Comment\nmodel: {class_path: mti_lightning.a.B}\n"
        "list: [mti_lightning.C, mti_lightning, see mti_lightning.D]\n"
    )
    given = ["--config=a.yaml", "--data=mti_lightning.e.F", "--model", "mti_lightning.G", "x.mti"]
    assert class_paths(given, "mti_lightning") == {
        f"mti_lightning.{name}" for name in ("a.B", "C", "e.F", "G")
    }


def test_anchors_of_anchors_are_read_once():
    lines = ["a0: &a0 [mti_lightning.A]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    Path("some.yaml").write_text("\n".join(lines[:4]))
    assert class_paths(["--config=some.yaml"], "mti_lightning") == {"mti_lightning.A"}
    for bomb in (lines, ["a: &a [*a]"]):
        Path("bomb.yaml").write_text("\n".join(bomb))
        with pytest.raises(InputError, match="stands for more than 100000 values"):
            check(["--config=bomb.yaml"])


def test_configs_are_listed_with_their_first_line_and_printed(capsys):
    main(["configs"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(path.stem for path in CONFIGS.iterdir())
    (told,) = [line for line in lines if line.startswith("demo_mti ")]
    assert told.endswith(
        "  Maximally tense images of every class of the vetoed shapes, made from noise"
    )
    for name in ("sweep", "sweep.yaml"):
        main(["configs", name])
        assert capsys.readouterr().out == (CONFIGS / "sweep.yaml").read_text()


@pytest.mark.parametrize(
    ("name", "told"),
    [("demo-mti", "did you mean 'demo_mti'"), ("xyz", "; mti configs lists them")],
)
def test_an_unknown_configuration(capsys, name, told):
    with pytest.raises(SystemExit) as stopped:
        main(["configs", name])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mti: error: no configuration {name!r} is shipped")
    assert told in line
