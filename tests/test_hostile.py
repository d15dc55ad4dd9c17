"""What strangers may give: none of it is run, read beyond its folder, shown as markup or formula.

Each case gives one hostile input the way a user would. Python itself tells what happens meanwhile
(audit hooks): programs that start, connections, modules of that name, files that are none of its.
"""

import csv
import io
import json
import os
import pickle
import sys
import tarfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mti_lightning import Backbone, InputError, PictureFolder, PictureShards, SweepPictures
from mti_lightning.atlas.page import write_page
from mti_lightning.cli import main
from mti_lightning.compose import Run
from mti_lightning.data.decode import decode
from mti_lightning.errors import printable
from mti_lightning.features.bound import BoundFeature
from mti_lightning.features.feature import Feature
from mti_lightning.sweep.measures import COLUMNS
from mti_lightning.sweep.store import SweepStore
from mti_lightning.sweep.writing import SweepWriter
from mti_lightning.tables import in_markdown, read_table, write_table
from tests.atlas.test_page import world
from tests.sweep.test_store import MADE

SECRET = "of_no_concern"
_STARTS = (
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn"),
    *("subprocess.Popen", "socket.connect", "socket.getaddrinfo", "urllib.Request"),
    "webbrowser.open",
)
_seen: list[str] | None = None  # while a case runs


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    started = event in _STARTS
    imported = event == "import" and str(args[0]).partition(".")[0] in ("evil", "antigravity")
    opened = event == "open" and SECRET in os.fsdecode(
        args[0] if isinstance(args[0], str | bytes | os.PathLike) else ""
    )
    if started or imported or opened:
        _seen.append(f"{event} {args!r:.200}")


@pytest.fixture(scope="module", autouse=True)
def _hooked() -> None:
    sys.addaudithook(_watch)  # for good


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in, beside a file that is nobody's concern."""
    global _seen  # noqa: PLW0603
    here = tmp_path / "here"
    here.mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / f"{SECRET}.png")
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(str(here))
    Path("evil.py").write_text("from pathlib import Path\nPath('ran').touch()\nclass Evil: ...\n")
    _seen = []
    try:
        yield here
        assert _seen == []
        assert not Path("ran").exists()
    finally:
        _seen = None
        sys.modules.pop("evil", None)


class Evil:
    """Runs what it holds when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.what = function, args

    def __reduce__(self) -> Any:
        return self.what


EVILS = {
    "os.system": Evil(os.system, "touch ran"),
    "exec": Evil(exec, "open('ran', 'w')"),
    "an import": Evil(__import__, "evil"),
    "a file": Evil(open, f"../{SECRET}.png"),
}


def case(function: Callable[..., Any], *args: Any) -> Any:
    return pytest.param(
        function,
        args,
        id=f"{function.__name__}: {args[0]}"[:60].encode("ascii", "replace").decode(),
    )


# --- names ---

FORMULAS = (
    *("=HYPERLINK(1)", "+1+cmd|'/C calc'!A0", "-2+3", "@SUM(1)", " =1", "\t=1", "\r@x", "\n+x"),
    *("＝1+1", "＠SUM(1)", "'=1", "''-2+3"),
)
STEERING = (
    *("\x1b]0;title\x07", "\x9b31m", "a\rb", "a\nb", "\u202egnp.exe", "\x08\x08", "\u2028"),
    "\udc9b31m",
)
MARKUP = (
    *("<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", "<!--<script>"),
    "]]><svg onload=alert(1)>",
)


def a_cell(name: str) -> None:
    write_table(Path("t.csv"), [{"picture": name, name: 1.0}])
    rows = list(csv.reader(io.StringIO(Path("t.csv").read_bytes().decode(), newline="")))
    for cell in (rows[0][1], rows[1][0]):
        assert cell.lstrip()[0] not in "=+-@＝＋－＠"
    assert read_table(Path("t.csv"))[0]["picture"] == name


def a_name_at_the_terminal(name: str) -> None:
    folder = Path("pictures")
    folder.mkdir()
    with suppress(ValueError, OSError):  # not every file system takes each
        Path(folder, f"{name}.png").write_bytes(b"no picture")
    Path(folder, "other.png").write_bytes(b"no picture")
    with redirect_stderr(io.StringIO()) as told, pytest.raises(SystemExit):
        main(["explain", str(folder / f"{name}.png"), "--model", "test_resnet", "--weights", name])
    for text in (told.getvalue(), printable(name)):
        assert all(one.isprintable() for one in text.strip("\n").replace("\n", ""))
    assert len(told.getvalue().splitlines()) == 1


def a_name_in_a_page(name: str) -> None:
    given = world()
    given["keys"][:1], given["kinds"]["label"][:1] = [name], [name]
    write_page(Path("a.html"), **given | {"title": name})
    text = Path("a.html").read_text(encoding="utf-8").replace("many <img> would be", "")
    assert text.count("<script") == text.count("</script") == 2
    assert "<img" not in text
    assert "<svg" not in text


def a_name_in_a_report(name: str) -> None:
    told = in_markdown(f"[{name}](http://x) ![{name}](x) | `{name}`")
    assert "<" not in told
    assert "](" not in told.replace("\\]", "")


def a_run_called(name: str) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--config", "demo_mti", "--name", name])
    assert not [path for path in Path("..").iterdir() if path.name not in ("here", f"{SECRET}.png")]


# --- pictures ---

PICTURES = {
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(ran) (w) file closefile\n",
    "PostScript for Windows": b"\xc5\xd0\xd3\xc6" + bytes(28) + b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "a drawing of Windows": b"\xd7\xcd\xc6\x9a" + bytes(40),
    "SVG": f"<svg><image href='../{SECRET}.png'/></svg>".encode(),
    "a PDF": b"%PDF-1.7\n1 0 obj <</OpenAction <</S /Launch /F (touch ran)>>>>",
    "a playlist": f"#EXTM3U\nfile://../{SECRET}.png".encode(),
    "GRIB": b"GRIB" + bytes(3) + b"\x01" + bytes(60),
    "10^10 pixels": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\1\x86\xa0\0\1\x86\xa0\x08\2\0\0\0" + bytes(8),
    "a pickle": pickle.dumps(EVILS["os.system"]),
}  # fmt: skip


def a_picture_that_is(what: str) -> None:
    Path("p.jpg").write_bytes(PICTURES[what])
    with pytest.raises(InputError):
        decode(Path("p.jpg"))


def a_folder_with(what: str) -> None:
    folder = Path("pictures")
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "own.png")
    if what == "a pipe":
        os.mkfifo(folder / "p.png")
    elif what == "a loop of links":
        (folder / "p.png").symlink_to("p.png")
        (folder / "down").symlink_to(".")
    else:
        (folder / "p.png").mkdir()
    data = PictureFolder(str(folder))
    data.use(Backbone("test_resnet", "random").preprocessing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of what was skipped
        assert [sample["key"] for sample in data.samples()] == ["own.png"]


# --- shards ---


def a_shard_with(what: str) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (64, 64)).save(picture, "PNG")
    members = {
        "a path upwards": tarfile.TarInfo(f"../{SECRET}.png"),
        "an absolute path": tarfile.TarInfo("/tmp/ran.png"),
        "a link": tarfile.TarInfo("link.png"),
        "a hard link": tarfile.TarInfo("hard.png"),
        "a device": tarfile.TarInfo("device.png"),
    }
    member, plain = members[what], tarfile.TarInfo("own.png")
    kinds = {"a link": tarfile.SYMTYPE, "a hard link": tarfile.LNKTYPE, "a device": tarfile.CHRTYPE}
    member.type = kinds.get(what, tarfile.REGTYPE)
    member.linkname = f"../{SECRET}.png"
    with tarfile.open("s.tar", "w") as tar:
        for one in (plain, member):
            one.size = len(picture.getvalue()) if one.isreg() else 0
            tar.addfile(one, io.BytesIO(picture.getvalue()) if one.isreg() else None)
    data = PictureShards("s.tar")
    data.use(Backbone("test_resnet", "random").preprocessing)
    assert len([*data.samples()]) == (2 if member.isreg() else 1)
    assert not Path("/tmp/ran.png").exists()


def shards_at(pattern: str) -> None:
    with pytest.raises(InputError):
        PictureShards(pattern).use(Backbone("test_resnet", "random").preprocessing)


# --- weights, arrays, checkpoints ---


def weights_that_hold(what: str) -> None:
    for save, name in ((torch.save, "w.pth"), (_plain, "p.pth"), (_plain, "s.safetensors")):
        save({"state_dict": EVILS[what]}, name)
        with pytest.raises(InputError):
            Backbone("test_resnet", name)


def _plain(value: Any, path: str) -> None:
    Path(path).write_bytes(pickle.dumps(value))


def an_array_that_holds(what: str) -> None:
    backbone = Backbone("test_resnet", "random")
    np.save("a.npy", np.array([EVILS[what]], dtype=object), allow_pickle=True)
    torch.save([EVILS[what]], "a.pt")
    for path in ("a.npy", "a.pt"):
        feature = Feature.parse({"layer": "layer4", "direction": path})
        with pytest.raises(InputError):
            BoundFeature(feature, backbone)


def a_checkpoint_that_holds(what: str) -> None:
    torch.save({"state_dict": {}, "loops": EVILS[what]}, "c.ckpt")
    with pytest.raises(SystemExit):
        main(["fit", "--config", "demo_mti", "--trainer.logger", "false", "--ckpt_path", "c.ckpt"])


def a_checkpoint_that_names(class_path: str) -> None:
    told = {"_class_path": class_path, "class_path": class_path, "_instantiator": "evil.Evil"}
    torch.save({"state_dict": {}, "hyper_parameters": told, "bank": {}}, "c.ckpt")
    with pytest.raises(SystemExit):
        main(["fit", "--config", "demo_mti", "--trainer.logger", "false", "--ckpt_path", "c.ckpt"])


# --- stores ---


def _store(**told: Any) -> Path:
    path = Path("s.zarr")
    writer = SweepWriter.begin(path, MADE, ["a.png", "b.png"], np.ones(4, np.float32), 2)
    columns: dict[str, Any] = {name: np.ones((2, 2), np.float32) for name in COLUMNS}
    columns |= {"reason": np.zeros(2, np.dtypes.StringDType()), "stamp": np.zeros((2, 3), np.int64)}
    writer.write(0, columns, np.ones(2, np.uint8))
    writer.tell(sweep={**MADE, **told})
    return path


def a_store_of(class_path: str, arguments: Any) -> None:
    store = _store(data={"class_path": class_path, "init_args": arguments})
    with pytest.raises(InputError):
        SweepPictures(store, count=1)
    with pytest.raises(SystemExit):
        main(["rank", str(store), "--feature", "fc:0", "--sheet", "s.png"])


def a_store_with(what: str) -> None:
    store = _store()
    if what == "a pickle as codec":
        (store / "zarr.json").unlink()
        held = {"zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|O", "fill_value": 0}
        held |= {"order": "C", "compressor": None, "filters": [{"id": "pickle"}]}
        for name in ("status", "key"):
            (store / name / "zarr.json").unlink()
            (store / name / ".zarray").write_text(json.dumps(held))
            (store / name / "0").write_bytes(pickle.dumps(EVILS["os.system"]))
        (store / ".zgroup").write_text('{"zarr_format": 2}')
        (store / ".zattrs").write_text(json.dumps({"sweep": MADE, "block": 2, "complete": True}))
    elif what == "a codec of another package":
        path = store / "response" / "zarr.json"
        told = json.loads(path.read_text())
        told["codecs"] = [{"name": "evil.Evil", "configuration": {}}, *told["codecs"]]
        path.write_text(json.dumps(told))
    else:
        chunk = store / "response" / "c" / "0" / "0"
        chunk.unlink()
        chunk.symlink_to(Path(f"../{SECRET}.png").absolute())
    with pytest.raises(InputError):
        SweepStore(store).values("response")


def results_of(path: str) -> None:
    Path("results.csv").write_text(f"id,source,feature,objective,file\n1,,fc:0,mti,{path}\n")
    run = Run.read(Path())
    with pytest.raises(InputError):
        run.picture(run.rows[0])


# --- configurations and entry points ---


def a_configuration_with(text: str) -> None:
    Path("c.yaml").write_text(text)
    Path("other.yaml").write_text("model: {class_path: evil.Evil}")
    with pytest.raises(SystemExit):
        main(["fit", "--config", "demo_mti", "--trainer.logger", "false", "--config", "c.yaml"])


def an_option_with_a_file(key: str) -> None:
    Path("part.yaml").write_text("class_path: evil.Evil")
    with pytest.raises(SystemExit):
        main(["fit", "--config", "demo_mti", "--trainer.logger", "false", f"--{key}", "part.yaml"])


def an_entry_point(name: str, value: str) -> None:
    folder = Path("hostile-1.dist-info")
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: hostile\nVersion: 1\n")
    told = f"[mti_lightning.attributions]\n{name} = {value}\n"
    (folder / "entry_points.txt").write_text(told)
    with redirect_stderr(io.StringIO()) as said, pytest.raises(SystemExit):
        main(["layers", "test_resnet"])
    assert all(one.isprintable() for one in said.getvalue().replace("\n", ""))


CASES = [
    *(case(a_cell, name) for name in FORMULAS),
    *(case(a_name_at_the_terminal, name) for name in STEERING),
    *(case(a_name_in_a_page, name) for name in MARKUP),
    *(case(a_name_in_a_report, name) for name in MARKUP[:2]),
    *(case(a_run_called, name) for name in ("../ran", "/tmp/ran", "a/../../ran", "a\0b")),
    *(case(a_picture_that_is, what) for what in PICTURES),
    *(case(a_folder_with, what) for what in ("a pipe", "a loop of links", "a folder called so")),
    *(
        case(a_shard_with, what)
        for what in ("a path upwards", "an absolute path", "a link", "a hard link", "a device")
    ),
    *(
        case(shards_at, path)
        for path in ("pipe:touch ran", "http://127.0.0.1:9/{0..1}.tar", "$(touch ran){0..1}.tar")
    ),
    *(case(weights_that_hold, what) for what in EVILS),
    *(case(an_array_that_holds, what) for what in EVILS),
    *(case(a_checkpoint_that_holds, what) for what in EVILS),
    *(
        case(a_checkpoint_that_names, name)
        for name in ("evil.Evil", "os.system", "antigravity.fly")
    ),
    case(a_store_of, "subprocess.getoutput", {"cmd": "touch ran"}),
    case(a_store_of, "os.system", {"command": "touch ran"}),
    case(a_store_of, "evil.Evil", {}),
    case(a_store_of, "antigravity.fly", {}),
    case(a_store_of, "mti_lightning.SweepPictures", {"sweep": "s.zarr"}),
    case(a_store_of, "mti_lightning.PictureFolder", [1]),
    *(
        case(a_store_with, what)
        for what in ("a pickle as codec", "a codec of another package", "chunks that lie elsewhere")
    ),
    *(case(results_of, path) for path in (f"../{SECRET}.png", "/etc/passwd", "a/../../x.png")),
    *(
        case(a_configuration_with, text)
        for text in (
            "!!python/object/apply:os.system ['touch ran']",
            "model: !!python/name:evil.Evil",
            "model: {class_path: subprocess.getoutput, init_args: {cmd: touch ran}}",
            "model: {class_path: evil.Evil}",
            "data: {class_path: os.system, init_args: {command: touch ran}}",
            "model: {init_args: {attribution: {class_path: antigravity.fly}}}",
            "model: {init_args: {backbone: {class_path: evil.Evil}}}",
            "trainer: {callbacks: [{class_path: subprocess.Popen, init_args: {args: touch}}]}",
            "model.class_path: evil.Evil",
            "model.init_args.image.class_path: evil.Evil",
            "model: {init_args: {views: evil.Evil}}",
            "model: {init_args: {tension: evil.Evil}}",
            "model: {init_args: {backbone: evil.Evil}}",
            "config: other.yaml",
            "model: {class_path: mti_lightning.__main__.main}",
            "model: {class_path: mti_lightning.files.os.system}",
            "model: {init_args: {optimizer: unittest.__main__.main}}",
        )
    ),
    *(case(an_option_with_a_file, key) for key in ("data", "model.image", "trainer.callbacks")),
    case(an_entry_point, "Evil", "os:system"),
    case(an_entry_point, "Evil\x1b[31m", "os:system"),
    case(an_entry_point, "Evil", "json:loads"),
]


@pytest.mark.parametrize(("give", "args"), CASES)
def test_nothing_hostile_gets_anywhere(
    give: Callable[..., None], args: tuple[Any, ...], watched: Path
) -> None:
    give(*args)
