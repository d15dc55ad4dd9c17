"""Every subcommand on a GPU, its numbers beside the CPU's: is anything wrong there?

`python -m benchmarks.on_gpu gpu.json`, in some minutes on a machine with a GPU and 16 cores.
Nothing is fetched. What fails does not stop the rest; the exit code is 1 if anything did. On a
machine without a GPU, `--device cpu` compares the CPU with itself: the script's own test.

What is computed from the same numbers has to agree (sweeps, rankings, measures of sources, layers);
images drift apart, as rounding and noise are other ones, so only their means are compared.
"""

import argparse
import csv
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.step_cost import made, ours
from mti_lightning import PositiveInversion, Sweep
from mti_lightning.images.views import Views

ROOT = Path(__file__).resolve().parents[1]
SAME = 2e-3  # of the largest value of a column: what has to agree
DRIFT = 0.25  # of the mean over images that were made from noise
_MADE_FOR = {
    "positive": ("excitation", "cosine"),
    "negative": ("inhibition", "cosine"),
    "mti": ("excitation", "inhibition", "tension"),
}
MTI = (sys.executable, "-m", "mti_lightning")


@dataclass
class Case:
    """A command that is run on the GPU and on the CPU.

    Attributes:
        name: What it is called.
        words: The command; `{device}` becomes `gpu` or `cpu`, `{FOLDER}` the newest that matches.
        needs: Cases that have to have run.
        compare: Compares two working folders; returns figures, and raises where they disagree.
        codes: Exit codes that are none of a failure.
        once: Whether it has no device.
    """

    name: str
    words: Sequence[str]
    needs: Sequence[str] = ()
    compare: Callable[[Path, Path], Mapping[str, float]] | None = None
    codes: Sequence[int] = (0,)
    once: bool = False


@dataclass
class Outcome:
    """What came of a case."""

    name: str
    seconds: dict[str, float] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    failure: str = ""


def mti(*words: str) -> tuple[str, ...]:
    """Return a command of `mti`."""
    return (*MTI, *words)


def run_of(name: str, *more: str, command: str = "fit") -> tuple[str, ...]:
    """Return a run by one of the repository's configurations."""
    config = str(ROOT / "configs" / f"{name}.yaml")
    return mti(command, "--config", config, "--trainer.accelerator", "{device}", *more)


def newest(folder: Path, pattern: str) -> Path:
    """Return the file that matches and was written last."""
    found = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(f"no {pattern} in {folder}")
    return found[-1]


def table(path: Path) -> list[dict[str, str]]:
    """Read a table."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def column(rows: Sequence[Mapping[str, str]], name: str) -> np.ndarray:
    """Return a column of a table; NaN where there is no number."""
    return np.array([float(row[name] or "nan") for row in rows])


def agree(name: str, own: Any, other: Any, most: float, figures: dict[str, float]) -> None:
    """Note by how much two arrays differ, as a share of the largest value.

    Raises:
        AssertionError: If it is too much.
    """
    own, other = np.asarray(own, np.float64), np.asarray(other, np.float64)
    assert own.shape == other.shape, f"{name}: {own.shape} and {other.shape}"
    assert (np.isfinite(own) == np.isfinite(other)).all(), f"{name}: not finite at other places"
    own, other = own[np.isfinite(own)], other[np.isfinite(other)]
    if own.size:
        scale = max(np.abs(other).max(), 1e-6)
        figures[name] = float(np.abs(own - other).max() / scale)
        assert figures[name] <= most, f"{name} differs by {figures[name]:.2g}, more than {most:g}"


def sweeps(pattern: str, most: float = SAME) -> Callable[[Path, Path], Mapping[str, float]]:
    """Return a comparison of the arrays of two sweeps."""

    def compare(gpu: Path, cpu: Path) -> Mapping[str, float]:
        own, other = (zarr.open_group(newest(one, pattern), mode="r") for one in (gpu, cpu))
        figures: dict[str, float] = {}
        names = [name for name, array in other.arrays() if array.dtype.kind == "f"]
        assert names, "there is nothing to compare"
        for name in names:
            if name in ("interference", "balance"):  # of small differences
                continue
            agree(name, own[name][:], other[name][:], most, figures)
        return figures

    return compare


def sources(folder: str) -> Callable[[Path, Path], Mapping[str, float]]:
    """Return a comparison of what sources measure, and of the means over pictures."""

    def compare(gpu: Path, cpu: Path) -> Mapping[str, float]:
        figures: dict[str, float] = {}
        tables = [table(newest(one, f"tb_logs/{folder}/*/sources.csv")) for one in (gpu, cpu)]
        for name in ("response", "excitation", "inhibition", "tension"):
            agree(f"source {name}", *(column(t, name) for t in tables), SAME, figures)
        return {**figures, **images(folder)(gpu, cpu)}

    return compare


def images(folder: str, most: float = DRIFT) -> Callable[[Path, Path], Mapping[str, float]]:
    """Return a comparison of the means over a run's images, of what each was made for.

    What is left of the other sign in an inversion is small, and another each time.
    """

    def compare(gpu: Path, cpu: Path) -> Mapping[str, float]:
        figures: dict[str, float] = {}
        tables = [table(newest(one, f"tb_logs/{folder}/*/results.csv")) for one in (gpu, cpu)]
        ids = [[row["id"] for row in rows] for rows in tables]
        assert ids[0] == ids[1], "other images"
        for kind, names in _MADE_FOR.items():
            of_kind = [[row for row in rows if row["objective"] == kind] for rows in tables]
            for name in names if of_kind[1] else ():
                means = [[float(np.nanmean(column(rows, name)))] for rows in of_kind]
                agree(f"{kind}: mean {name}", *means, most, figures)
        return figures

    return compare


def resumed(gpu: Path, _cpu: Path) -> Mapping[str, float]:
    """Compare a run that was continued on the GPU with the same one in one go, there."""
    figures: dict[str, float] = {}
    rows = [table(newest(gpu, f"tb_logs/{n}/*/results.csv")) for n in ("resumed", "whole")]
    for name in ("response", "tension", "cosine"):
        agree(name, *(column(of, name) for of in rows), 0.02, figures)
    return figures


def rankings(gpu: Path, cpu: Path) -> Mapping[str, float]:
    """Compare the top pictures of two rankings."""
    tops = [{row["key"] for row in table(one / "rank.csv")[:10]} for one in (gpu, cpu)]
    shared = len(tops[0] & tops[1]) / len(tops[1])
    assert shared >= 0.9, f"{shared:.0%} of the top ten are the same"
    return {"others among the top ten": 1 - shared}


def reports(gpu: Path, cpu: Path) -> Mapping[str, float]:
    """Compare the checks of natural pictures in two reports."""
    figures: dict[str, float] = {}
    pages = [
        json.loads(newest(one, "tb_logs/demo_validate/*/validity.json").read_text("utf-8"))
        for one in (gpu, cpu)
    ]
    for feature, rows in pages[1]["features"].items():
        for own, other in zip(pages[0]["features"][feature], rows, strict=True):
            name = other["check"]
            assert own["check"] == name
            drifts = any(word in name for word in ("views", "seeds", "re-attribution", "judge"))
            for key, value in other["values"].items():
                if value is not None and own["values"][key] is not None:
                    most = 0.5 if drifts else 0.05
                    agree(f"{name}: {key}", [own["values"][key]], [value], most, figures)
    return figures


def explained(gpu: Path, cpu: Path) -> Mapping[str, float]:
    """Compare what is known of a picture, by the tables that were printed."""
    figures: dict[str, float] = {}
    found = [
        [
            [float(cell) for cell in re.split(r"\s{2,}", row)[3:7]]  # response to tension
            for row in (one / "explain.log").read_text("utf-8").splitlines()
            if row.startswith("classifier:")
        ]
        for one in (gpu, cpu)
    ]
    assert found[1], "there is no table"
    agree("printed", *found, 2 * SAME, figures)
    return figures


def attributed(method: str, *more: str) -> Case:
    """Return a sweep by a plugin's method."""
    words = run_of(
        *("demo_sweep", "--name", method, "--data.size", "24", "--model.keep", "0"),
        *("--model.features", "[fc:3]", "--model.attribution", method, *more),
        command="predict",
    )
    return Case(f"predict: {method}", words, compare=sweeps(f"tb_logs/{method}/sweep.zarr", 5e-3))


def cases(quick: bool) -> list[Case]:
    """Return all cases, long ones first; quick ones for the script's own test."""
    few = ("--trainer.max_epochs", "1") if quick else ()
    size = "40" if quick else "400"
    lite = "efficientnet_lite0_in1k"
    half = ("--trainer.max_epochs", "1" if quick else "3")
    still = ("--model.views.noise", "0", "--model.steps_per_epoch", "10")
    each = str(ROOT / "benchmarks" / "every_epoch.yaml")
    two = ("--trainer.max_epochs", "2", "--model.steps_per_epoch", "10")
    return [
        Case("photographs", (sys.executable, "-m", "mti_efficientnet_lite.photographs",
                             "photographs")),
        Case("tests", (sys.executable, "-m", "pytest", "-q", "-x", "--rootdir", str(ROOT), "-p",
                       "no:cacheprovider", "-o", "filterwarnings=default",
                       str(ROOT / "tests" / "test_device.py")), once=True),
        Case("fit: photographs", run_of("demo_photographs", "--data.path", "photographs", *half),
             ["photographs"], sources("demo_photographs")),
        Case("fit: MTI of photographs", run_of("demo_photographs_mti", *half),
             compare=images("demo_photographs_mti", 0.4)),
        Case("fit: an atlas", run_of(
            "demo_atlas", "--data.size", size, "--model.keep", size, "--trainer.max_epochs", "1",
            "--model.chart.size", "[5,5]"), compare=sweeps("tb_logs/demo_atlas/sweep.zarr")),
        Case("validate", run_of(
            "demo_validate", "--data.size", "48" if quick else "128", "--model.features",
            "[fc:3]", *(("--model.rendered", "1", "--model.steps", "5") if quick else ()),
            command="validate"), compare=reports, codes=(0, 1)),
        Case("fit: inversions", run_of("demo_inversions", *few),
             compare=sources("demo_inversions")),
        Case("fit: every epoch kept", run_of(
            "demo_inversions", "--config", each, "--name", "whole", *two)),
        Case("predict", run_of("demo_sweep", "--data.size", size, command="predict"),
             compare=sweeps("tb_logs/demo_sweep/sweep.zarr")),
        Case("rank", mti("rank", "tb_logs/demo_sweep/sweep.zarr", "--feature", "fc:3", "--sheet",
                         "rank.png"), ["predict"], rankings),
        Case("predict: photographs", mti(
            "predict", "--name", "lite", "--trainer.accelerator", "{device}", "--model", "Sweep",
            "--model.backbone.name", lite, "--model.features",
            "[classifier:285,classifier:698]", "--model.attribution_layer", "blocks.6",
            "--model.rivals", "12", "--model.keep", "2", "--data", "PictureFolder", "--data.path",
            "photographs"), ["photographs"], sweeps("tb_logs/lite/sweep.zarr")),
        Case("predict: bf16", run_of(
            "demo_sweep", "--name", "bf16", "--data.size", "64", "--trainer.precision",
            "bf16-mixed", command="predict"), compare=sweeps("tb_logs/bf16/sweep.zarr", 0.2)),
        Case("predict: compiled", run_of(
            "demo_sweep", "--name", "compiled", "--data.size", "64", "--model.backbone.compile",
            "true", command="predict"), compare=sweeps("tb_logs/compiled/sweep.zarr")),
        Case("predict: a network in bf16", run_of(
            "demo_sweep", "--name", "half", "--data.size", "64", "--model.backbone.precision",
            "bf16", command="predict"), compare=sweeps("tb_logs/half/sweep.zarr", 0.2)),
        Case("predict: two layers", run_of(
            "demo_sweep", "--name", "layers", "--data.size", "64", "--model.further_layers",
            "[layer3]", command="predict"), compare=sweeps("tb_logs/layers/sweep_layer3.zarr")),
        Case("fit: inversions, compiled", run_of(
            "demo_inversions", "--name", "inv_compiled", "--model.backbone.compile", "true", *few),
            compare=sources("inv_compiled")),
        Case("fit: MTI, a compiled network in bf16", run_of(
            "demo_mti", "--name", "mti_half", "--model.backbone.precision", "bf16",
            "--model.backbone.compile", "true", *half), compare=images("mti_half", 0.4)),
        Case("fit: MTI", run_of("demo_mti", *half), compare=images("demo_mti")),
        Case("fit: MTI, without noise", run_of(
            "demo_mti", "--name", "still", "--trainer.max_epochs", "1", *still),
            compare=images("still", 0.05)),
        Case("fit: MTI, bf16", run_of(
            "demo_mti", "--name", "mti16", "--trainer.precision", "bf16-mixed", *half),
            compare=images("mti16", 0.4)),
        Case("fit: inversions, bf16", run_of(
            "demo_inversions", "--name", "inv16", "--trainer.precision", "bf16-mixed", *few),
            compare=images("inv16", 0.4)),
        Case("fit: accentuation", run_of(
            "demo_inversions", "--name", "accent", "--model.accentuate", "true", *few),
            compare=sources("accent")),
        Case("fit: a ViT", run_of(
            "demo_mti", "--name", "vit", "--trainer.max_epochs", "1", "--model.backbone.name",
            "vit_tiny_patch16_224", "--model.backbone.weights", "random", "--model.features",
            "[blocks.9.mlp.act/input:0@mean]", "--model.attribution_layer", "blocks.8", *still),
            compare=images("vit", 0.2)),
        Case("fit: resumed", run_of(
            "demo_inversions", "--name", "resumed", *two, "--ckpt_path",
            "{tb_logs/whole/*/checkpoints/epoch=0*.ckpt}"), ["fit: every epoch kept"], resumed),
        Case("fit: a toy", run_of(
            "superposition_xor", "--name", "toy", "--model.steps_per_epoch", "50",
            "--trainer.max_epochs", "1")),
        Case("fit: training", run_of(
            "train_vetoed_shapes", "--name", "train", "--trainer.deterministic", "false",
            "--trainer.limit_train_batches", "3", "--trainer.limit_val_batches", "1",
            "--trainer.val_check_interval", "1.0", "--data.train_size", "512")),
        Case("sheet", mti("sheet", "tb_logs/demo_inversions", "tb_logs/demo_mti"),
             ["fit: inversions", "fit: MTI"]),
        Case("explain", mti(
            "explain", "photographs/1_Egyptian_cat.png", "--model", lite, "--accelerator",
            "{device}", "--steps", "10"), ["photographs"], explained),
        Case("explain: labels", mti(
            "explain", "photographs/5_palace.png", "--model", "vetoed_shapes_resnet", "--labels",
            "labels.txt", "--accelerator", "{device}", "--steps", "5", "--out", "shapes.png"),
            ["photographs"]),
        attributed("IntegratedGradients"),
        attributed("SmoothGrad"),
        attributed("Relevance"),
        Case("layers", mti("layers", "vetoed_shapes_resnet"), once=True),
        Case("configs", mti("configs"), once=True),
        Case("plugins", mti("plugins"), once=True),
    ]  # fmt: skip


class Runner:
    """Runs cases on both devices, several at a time."""

    def __init__(self, work: Path, device: str, cores: int) -> None:
        self.work, self.device = work, device
        paths = [ROOT, *sorted(ROOT.glob("plugins/mti-*")), os.environ.get("PYTHONPATH", "")]
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, filter(None, paths))),
            "OMP_NUM_THREADS": str(max(1, cores // 8)),
            "PYTHONUNBUFFERED": "1",
        }
        self.ended: dict[str, Future[Outcome]] = {}
        self.print_lock = threading.Lock()

    def run(self, case: Case) -> Outcome:
        """Run a case on both sides, and compare."""
        outcome = Outcome(case.name)
        try:
            for name in case.needs:
                if self.ended[name].result().failure:
                    raise AssertionError(f"{name} failed")
            sides = ("gpu",) if case.once else ("gpu", "cpu")
            for side in sides:
                began = time.perf_counter()
                self._call(case, side)
                outcome.seconds[side] = time.perf_counter() - began
            if case.compare is not None:
                outcome.figures = dict(case.compare(self.work / "gpu", self.work / "cpu"))
        except Exception as error:  # noqa: BLE001  the others are to be seen, too
            outcome.failure = f"{type(error).__name__}: {error}"
            if not isinstance(error, AssertionError):
                outcome.failure += "\n" + "".join(traceback.format_exc().splitlines(True)[-4:])
        with self.print_lock:
            print(line(outcome), flush=True)
        return outcome

    def _call(self, case: Case, side: str) -> None:
        folder = self.work / side
        words = [self._filled(word, folder, side) for word in case.words]
        hidden = {} if side == "gpu" else {"CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            words,
            cwd=folder,
            env=self.environment | hidden,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=400,
            check=False,
        )
        log = folder / f"{case.name.replace(' ', '_').replace(':', '')}.log"
        log.write_text(done.stdout, encoding="utf-8")
        if done.returncode not in case.codes or "Traceback" in done.stdout:
            tail = "\n".join(done.stdout.strip().splitlines()[-25:])
            raise AssertionError(f"exit {done.returncode} on {side}:\n{tail}")

    def _filled(self, word: str, folder: Path, side: str) -> str:
        if word.startswith("{tb_logs"):
            return str(newest(folder, word[1:-1]).relative_to(folder))
        return word.replace("{device}", self.device if side == "gpu" else "cpu")


def line(outcome: Outcome) -> str:
    """Return an outcome in a line."""
    seconds = "  ".join(f"{side} {time:5.1f} s" for side, time in outcome.seconds.items())
    worst = max(outcome.figures.items(), key=lambda item: item[1], default=None)
    told = "" if worst is None else f"largest difference {worst[1]:.2g} ({worst[0]})"
    if outcome.failure:
        told = outcome.failure.splitlines()[0][:90]
    told += "\n" + "\n".join(outcome.failure.splitlines()[-6:]) if outcome.failure else ""
    return f"{'FAILED' if outcome.failure else 'ok':6}  {outcome.name:34}  {seconds:26}  {told}"


def noise_cost(device: str) -> dict[str, float]:
    """Return what the views of 16 images of 224 pixels cost, in ms: as they are, and without noise.

    `moved` draws the noise on the CPU and moves it, for comparison.
    """
    if device != "gpu" or not torch.cuda.is_available():
        return {}
    shown = torch.rand(16, 3, 224, 224, device="cuda")

    def cost(act: Callable[[int], object]) -> float:
        taken = []
        for step in range(12):
            torch.cuda.synchronize()
            began = time.perf_counter()
            act(step)
            torch.cuda.synchronize()
            taken.append(1e3 * (time.perf_counter() - began))
        return statistics.median(taken[2:])

    def views(noise: float, pictures: torch.Tensor) -> Callable[[int], object]:
        return lambda step: Views(noise=noise)(pictures, range(16), step, (224, 224)).to("cuda")

    return {
        "noise drawn there": cost(views(0.02, shown)),
        "no noise": cost(views(0.0, shown)),
        "noise drawn on the CPU and moved": cost(views(0.02, shown.cpu())),
    }


_WAYS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "bf16, channels last": {"precision": "bf16"},
    "compiled": {"compile": True},
    "compiled, bf16": {"compile": True, "precision": "bf16"},
    "CUDA graphs, bf16": {"compile": "reduce-overhead", "precision": "bf16"},
}


def step_costs(device: str, quick: bool) -> list[dict[str, Any]]:
    """Time steps and batches of sweeps in all ways a network can be run.

    A wait for the device within one is an error. The share is that of the card's peak, for
    `--peak` of 10¹² operations a second.

    Args:
        device: `cuda`, or `cpu` to try this itself.
        quick: Of the small network alone.
    """
    small = ("vetoed_shapes_resnet", "pretrained", "fc:0", "layer4", 16)
    large = ("resnet50", "random", "layer4.0.act3/input:0@mean", "layer3", 32)
    rows = []
    for case in (small,) if quick else (small, large):
        for kind in (PositiveInversion, Sweep):
            with FlopCounterMode(display=False) as counter:
                ours(made(kind, case, device), case[4])()
            for name, how in _WAYS.items():
                row: dict[str, Any] = {"backbone": case[0], "what": kind.__name__, "how": name}
                rows.append(row)
                try:
                    row |= _step_cost(made(kind, case, device, **how), case[4], device)
                    row["10^12 a second"] = counter.get_total_flops() / row["ms"] / 1e9
                except Exception as error:  # noqa: BLE001  the others are to be seen, too
                    row["failure"] = f"{type(error).__name__}: {error}"[:300]
                print(row, flush=True)
    return rows


def _step_cost(model: Any, count: int, device: str) -> dict[str, float]:
    run, cuda = ours(model, count), device == "cuda"
    for _ in range(5):
        run()
    taken = []
    try:
        for _ in range(20 if cuda else 2):
            if cuda:
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode("error")
            began = time.perf_counter()
            run()
            if cuda:
                torch.cuda.set_sync_debug_mode("default")
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - began)
    finally:
        if cuda:
            torch.cuda.set_sync_debug_mode("default")
    return {"ms": 1e3 * statistics.median(taken)}


def main() -> None:
    """Run all, print the table, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("json", type=Path, help="Where the outcomes are written.")
    parser.add_argument("--device", default="gpu", choices=("gpu", "cpu"))
    parser.add_argument("--only", nargs="*", help="Names of cases; what they need is run, too.")
    parser.add_argument("--at-once", type=int, default=10, help="Commands at a time.")
    parser.add_argument("--peak", type=float, help="Of the card, in 10^12 operations a second.")
    parser.add_argument("--quick", action="store_true", help="Fewer steps and pictures.")
    given = parser.parse_args()
    if given.device == "gpu" and not torch.cuda.is_available():
        sys.exit("there is no GPU; --device cpu tries the script itself")
    known = {case.name: case for case in cases(given.quick)}
    wanted = set(given.only or known)
    while more := {need for name in wanted for need in known[name].needs} - wanted:
        wanted |= more
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        runner = Runner(Path(temporary), given.device, os.cpu_count() or 1)
        for side in ("gpu", "cpu"):
            (runner.work / side).mkdir()
            names = "\n".join(f"shape {number}" for number in range(8))
            (runner.work / side / "labels.txt").write_text(names, encoding="utf-8")
        with ThreadPoolExecutor(given.at_once) as pool:
            # What others need stands before them: none waits for one behind it.
            for case in (known[name] for name in known if name in wanted):
                runner.ended[case.name] = pool.submit(runner.run, case)
            outcomes = [future.result() for future in runner.ended.values()]
    failed = [outcome for outcome in outcomes if outcome.failure]
    print("\n" + "\n".join(line(outcome) for outcome in outcomes))
    noise = noise_cost(given.device)
    device = "cuda" if given.device == "gpu" else "cpu"
    steps = [] if given.only else step_costs(device, given.quick)
    failed += [Outcome(row["how"], failure=row["failure"]) for row in steps if "failure" in row]
    for row in steps if given.peak else ():
        row["share of the peak"] = row.get("10^12 a second", 0.0) / given.peak
    found = {
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "seconds": time.perf_counter() - began,
        "views, ms": noise,
        "steps": steps,
        "cases": [asdict(outcome) for outcome in outcomes],
    }
    given.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(f"\n{len(outcomes) - len(failed)} of {len(outcomes)} hold, in {found['seconds']:.0f} s")
    print(f"views of 16 images, ms: {noise}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
