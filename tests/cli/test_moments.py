"""Kills, signals and full disks at chosen moments: no file in part, one line, the same bits."""

import io
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from mti_lightning import SweepStore
from tests.cli.test_mistakes import BASE, REPORT, STORE, SWEEP
from tests.tools.moments import Deed, Ended, Moments

WRITING: dict[str, tuple[str, ...]] = {
    "fit": ("fit", "--config=base.yaml"),
    "predict": (
        *(*SWEEP, "--model.keep=1", "--model.rivals=0", "--model.block=4"),
        "--model.units=true",
    ),
    "validate": (*REPORT, "--model.rendered=0", "--model.pictures=8", "--model.features=[fc:3]"),
    "rank": ("rank", STORE, "--feature=fc:3", "--sheet=rank.png"),
    "sheet": ("sheet", "tb_logs/small"),
    "inhibitors": (
        "inhibitors",
        STORE,
        "--feature=fc:3",
        "--count=2",
        "--icons=0",
        "--figure=units.png",
    ),
    "explain": (
        *("explain", "good.png", "--model=test_resnet", "--weights=random", "--accelerator=cpu"),
        *("--steps=1", "--classes=1"),
    ),
    "atlas": (
        *("atlas", "mine", "--model=test_resnet", "--weights=random", "--accelerator=cpu"),
        *("--feature=fc:3", "--steps=5"),
    ),
    "signs": ("signs", "test_resnet", "--weights=random", "--figure=signs.png"),
}
NEEDS = {"rank": "predict", "sheet": "fit", "inhibitors": "predict"}
RUNS = ("fit", "validate", "atlas")
# Where something is there, by --overwrite.
REPLACES = ("rank", "sheet", "explain", "inhibitors", "signs")


class Whole(NamedTuple):
    """What a command leaves that nothing happens to, and after how many moments."""

    folder: Path
    left: Mapping[str, bytes]
    ended: Ended


class Wholes:
    """The commands that nothing happens to, each run when it is first asked for."""

    def __init__(self, moments: Moments, desk: Path) -> None:
        self.moments, self._desk = moments, desk
        self._known: dict[str, Whole] = {}

    def begin(self, command: str) -> Path:
        """Return a new folder in which a command can be run."""
        folder = self._desk / f"{command}_{random.getrandbits(32):08x}"
        if command in NEEDS:
            shutil.copytree(self[NEEDS[command]].folder, folder)
        else:
            folder.mkdir()
            (folder / "base.yaml").write_text(BASE)
            (folder / "mine").mkdir()
            pixels = np.random.default_rng(0).integers(0, 256, (4, 40, 48, 3), dtype=np.uint8)
            for name, values in zip(("good", "mine/a", "mine/b", "mine/c"), pixels, strict=True):
                Image.fromarray(values).save(folder / f"{name}.png")
        return folder

    def __getitem__(self, command: str) -> Whole:
        if command not in self._known:
            folder = self.begin(command)
            ended = self.moments.run(folder, WRITING[command])
            assert ended.code in ((0, 1) if command == "validate" else (0,)), ended.said
            self._known[command] = Whole(folder, left_by(command, folder), ended)
        return self._known[command]


def left_by(command: str, folder: Path) -> dict[str, bytes]:
    """Return what a command leaves under its files' names, of a run the newest version's."""
    if command == "predict":
        if not (folder / STORE).exists():
            return {}
        store = SweepStore(folder / STORE)
        done = store.status.tobytes()
        if not store.complete:
            return {"status": done}
        maps = store.maps(range(len(store.features))).tobytes()
        return {"status": done, "tension": store.values("tension").tobytes(), "maps": maps}
    here = str(folder.absolute()).encode()  # another one each time, where a file names it
    if command in RUNS:
        versions = sorted(folder.glob("tb_logs/*/version_*"), key=lambda path: int(path.name[8:]))
        if not versions:
            return {}
        folder = versions[-1]
    endings = (".csv", ".png", ".md", ".json", ".yaml", ".html")
    found = [path for path in folder.rglob("*") if path.suffix in endings]
    kept = {str(path.relative_to(folder)): path for path in found if path.name[0] != "."}
    mine = {name: path for name, path in kept.items() if command in RUNS or "/" not in name}
    if command == "atlas":  # it goes on, so that an earlier version has what is of earlier epochs
        mine = {n: path for n, path in mine.items() if not re.search("config|epoch00[0-3]", n)}
    return {n: path.read_bytes().replace(here, b"") for n, path in sorted(mine.items())}


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wholes]:
    with Moments() as moments:
        yield Wholes(moments, tmp_path_factory.mktemp("moments"))


def check_pictures(left: Mapping[str, bytes]) -> None:
    """Make sure that no picture is cut off."""
    for name, held in left.items():
        if name.endswith(".png"):
            Image.open(io.BytesIO(held)).load()


def check(wholes: Wholes, command: str, deed: Deed, share: float) -> None:
    """Do something to a command when that share of its moments has come, then run it again."""
    whole = wholes[command]
    moment = 1 + int(share * (whole.ended.moments - 1))
    folder = wholes.begin(command)
    ended = wholes.moments.run(folder, WRITING[command], deed, moment)
    left = left_by(command, folder)
    if command == "predict":
        assert set(left.get("status", b"\0")) <= {0, 1}
    elif deed == "stop" and command == "atlas":  # it keeps icons as far as they are
        check_pictures(left)
    else:  # no file in part, and none of what is not yet
        assert all(whole.left.get(name) == held for name, held in left.items()), ended
    assert "Traceback" not in ended.said
    if deed == "kill":
        assert ended.code == -9
    elif left != whole.left or ended.code in (2, 143):
        assert ended.code == {"stop": 143, "full": 2}[deed], ended.said
        (line,) = ended.lines
        assert line.startswith({"stop": "mti: stopped by SIGTERM: ", "full": "mti: error: "}[deed])
        assert deed == "stop" or "full" in line, line
    again = [*WRITING[command], *(["--overwrite"] if command in REPLACES else [])]
    assert wholes.moments.run(folder, again).code == whole.ended.code
    assert left_by(command, folder) == whole.left
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("command", "deed", "share"),
    [
        ("rank", "kill", 0.5),
        ("rank", "kill", 0.75),
        ("rank", "stop", 0.3),
        ("rank", "full", 0.9),
        ("sheet", "kill", 0.6),
        ("sheet", "full", 0.3),
        ("fit", "kill", 0.97),
        ("fit", "full", 0.8),
        ("predict", "kill", 0.5),
        ("predict", "stop", 0.7),
    ],
)
def test_nothing_is_lost_at_a_moment(
    wholes: Wholes, command: str, deed: Deed, share: float
) -> None:
    check(wholes, command, deed, share)


DRAW = random.Random(0)
DRAWN = [
    (command, deed, round(DRAW.random(), 4))
    for command, count in {**dict.fromkeys(WRITING, 5), "fit": 7, "predict": 7}.items()
    for deed in ("kill", "stop", "full")
    for _ in range(count)
]


@pytest.mark.slow
@pytest.mark.parametrize(("command", "deed", "share"), DRAWN)
def test_nothing_is_lost_at_any_moment(
    wholes: Wholes, command: str, deed: Deed, share: float
) -> None:
    check(wholes, command, deed, share)


# --- a disk that is really small ---

ON_DISK: dict[str, tuple[str, ...]] = {  # of those that do not write to tb_logs
    "rank": ("--out=disk/rank.csv", "--sheet=disk/rank.png"),
    "sheet": ("--out=disk/sheet.png",),
    "inhibitors": ("--out=disk/units.csv", "--figure=disk/units.png", "--tensorboard=disk/board"),
    "explain": ("--out=disk/explain.png",),
    "signs": ("--out=disk/signs.csv", "--figure=disk/signs.png"),
}


@contextmanager
def mounted(disk: Path) -> Iterator[Callable[[int], None]]:
    """Mount a disk of 64 MiB; yield what gives it another size."""
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk can be mounted by root only")

    def resize(size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)

    try:
        yield resize
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def check_disk(wholes: Wholes, command: str, shares: Iterable[float]) -> None:
    """Run a command on disks too small for what it writes, and again when room is made."""
    folder = wholes.begin(command)
    disk, place, run = folder / "disk", folder, wholes.moments.run
    arguments = (*WRITING[command], *ON_DISK.get(command, ()))
    if command in ON_DISK:
        place = disk
    else:
        (folder / "tb_logs").symlink_to("disk")
    with mounted(disk) as resize:
        ended = run(folder, arguments)
        whole, sizes = left_by(command, place), os.statvfs(disk)
        assert whole, ended.said
        code, used = ended.code, (sizes.f_blocks - sizes.f_bfree) * sizes.f_frsize
        for share in shares:
            for path in disk.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            resize(int(share * used))
            ended = run(folder, arguments)
            left = left_by(command, place)
            if ended.code != code or left != whole:
                assert ended.code == 2, ended.said
                (line,) = ended.lines
                assert line.startswith("mti: error: "), line
                assert "full" in line, line
                assert "Traceback" not in ended.said
            if command == "predict":
                assert set(left.get("status", b"\0")) <= {0, 1}
            elif command == "atlas":  # it keeps icons as far as they are
                check_pictures(left)
            else:
                # One picture that cannot be written costs none of the others, and the table says
                # so; Lightning's own file of hyperparameters may be cut off.
                may = ("results.csv", "hparams.yaml")
                other = {n: held for n, held in left.items() if n not in may and whole[n] != held}
                assert not other, (share, ended)
            assert not [*disk.rglob("*.part.*")]
            resize(2**26)
            again = [*arguments, *(["--overwrite"] if command in REPLACES else [])]
            assert run(folder, again).code == code
            assert left_by(command, place) == whole
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("command", WRITING)
def test_nothing_is_lost_on_a_small_disk(wholes: Wholes, command: str) -> None:
    check_disk(wholes, command, (0.1, 0.5, 0.9))


# --- the same command twice at once ---


def check_pair(wholes: Wholes, command: str, gap: float) -> None:
    """Run a command twice: one of them ends as it does alone, and so does the other or says why."""
    whole, folder = wholes[command], wholes.begin(command)
    first = wholes.moments.start(folder, WRITING[command])
    time.sleep(gap)
    second = wholes.moments.start(folder, WRITING[command])
    ended = [wholes.moments.end(process) for process in (first, second)]
    codes = [one.code for one in ended]
    assert whole.ended.code in codes, ended
    if command in ("fit", "validate"):  # each has a version of its own
        assert codes == [whole.ended.code] * 2
        assert len([*folder.glob("tb_logs/*/version_*")]) == 2
    for one in ended:
        if one.code != whole.ended.code:
            assert one.code == 2, one.said
            (line,) = one.lines
            assert " is being written by process " in line or " exists; give " in line
    assert left_by(command, folder) == whole.left
    shutil.rmtree(folder)


@pytest.mark.parametrize("command", ["rank", "sheet"])
def test_of_a_pair_one_works(wholes: Wholes, command: str) -> None:
    check_pair(wholes, command, 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("command", WRITING)
def test_of_each_of_ten_pairs_one_works(wholes: Wholes, command: str) -> None:
    gaps = random.Random(command)
    for _ in range(10):
        check_pair(wholes, command, gaps.uniform(0, 3) ** 2 / 3)
