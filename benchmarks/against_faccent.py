"""Side by side with the authors' package `faccent` and with Captum, on the authors' network.

`make bench`, or `python -m benchmarks.against_faccent` in an environment that has both packages.
Everything runs in one process on InceptionV1 with the same random weights, the authors' module and
the plugin's, and on the same pictures, which lie in memory; who is compared takes turns, and
medians over the rounds are reported. What is timed is first shown to compute the same numbers.

The floor is the bare network on the smallest part of the pictures that reaches the feature,
without hooks, gradients of parameters, image parameters, views or loss: once the authors' module,
and once the plugin's, which takes half the time.
"""

import argparse
import json
import operator
import os
import platform
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import mti_inceptionv1  # noqa: F401  registers the network
import torch
from captum.attr import LayerGradientXActivation
from faccent import objectives, param, render, transform
from faccent.cam import (
    actgrad_extractor,
    find_crop_bounds,
    layer_saver,
    posneg_cam_maps_from_dataloader,
)
from faccent.modelzoo import inceptionv1_decomposed
from lightning import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from benchmarks.step_cost import _step, _time, truncated
from mti_lightning import (
    ActGrad,
    AtlasInversion,
    AtlasLog,
    Backbone,
    Chart,
    Feature,
    FourierPhase,
    Layer,
    SignedInversion,
    VetoedShapesPictures,
    attribute,
)
from mti_lightning.callbacks import PictureLog, Results
from mti_lightning.features.bound import BoundFeature
from mti_lightning.sweep.module import Sweep

SEED = 0
LAYER, TARGET, CHANNEL, CHANNELS = "mixed3a", "mixed3b_pre_relu", 379, 480
FEATURE = f"{TARGET}:{CHANNEL}@centre"
CENTRE = 14  # row and column of the position, on a map of 28x28
# Rows and columns 74 to 164 reach that position: 5x5 and 5x5 of the two mixed layers, 3x3 at half
# their stride, 7x7 at a quarter. Out to the next multiples of the stride, so that the crop's grid
# is the picture's.
STRIDE, CROP = 8, slice(72, 168)
TOLERANCE = 1e-5
CANVAS = (512, 512)
ONE, EVERY, STEP = "sweep, one feature", f"sweep, all {CHANNELS} channels", "inversion step"
ICON = "atlas icons"
FLOOR, THEIR_FLOOR = "floor", "floor, authors' module"
EPOCHS, EPOCH = 5, 20  # by default of `mti fit`
OUR_STEPS, THEIR_STEPS = EPOCHS * EPOCH, 201
# What a process does before its first step: it imports the package and builds the network.
STARTS = {
    "faccent": "from faccent import render, param, objectives, cam; "
    "from faccent.modelzoo import inceptionv1_decomposed as build; build(pretrained=False)",
    "ours": "import mti_lightning.cli.mti_cli, mti_inceptionv1; "
    "mti_lightning.Backbone('inceptionv1_tf', 'random')",
}


def authors_network(backbone: Backbone) -> nn.Module:
    """Return the authors' InceptionV1, which names layers before the ReLU, with our weights."""
    network: nn.Module = inceptionv1_decomposed(pretrained=False, redirected_ReLU=False)
    network.load_state_dict(backbone.network.state_dict())
    return network.to(backbone.mean.device).requires_grad_(True)


@dataclass
class Race:
    """What was compared on one job, and how long each took in each round."""

    name: str
    batch: int
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def median(self, who: str) -> float:
        return statistics.median(self.seconds[who])

    def ratio(self, slow: str, quick: str) -> float:
        """Return the median over the rounds: what disturbs the machine disturbs both."""
        pairs = zip(self.seconds[slow], self.seconds[quick], strict=True)
        return statistics.median(a / b for a, b in pairs)


def log_info(text: str) -> None:
    """Report progress; stdout is for the tables."""
    print(text, file=sys.stderr, flush=True)


def race(name: str, batch: int, runs: dict[str, Callable[[], float]], rounds: int) -> Race:
    """Let each take its turn, once to warm up and then in every round, in alternating order."""
    result = Race(name, batch, {who: [] for who in runs})
    for number in range(rounds + 1):
        log_info(
            f"{name}, batch {batch}: " + (f"round {number} of {rounds}" if number else "warm up")
        )
        for who in list(runs) if number % 2 else reversed(runs):
            seconds = runs[who]()
            if number:
                result.seconds[who].append(seconds)
    return result


# --- the others ---


def reach(network: nn.Module, layer: str, inputs: Tensor) -> Tensor:
    """Run a network up to the end of a layer, and return what that puts out."""
    return truncated(network, [Layer(layer)], inputs)[0]


def faccent_attribution(
    network: nn.Module, inputs: Tensor, channel: int = CHANNEL
) -> tuple[Tensor, Tensor]:
    """Return attribution and response by `actgrad_extractor`, as the authors' atlas sweeps.

    There the network runs to its end, and the backward pass visits the parameters, too.
    """
    with (
        layer_saver(network, TARGET, detach=False) as target,
        actgrad_extractor(network, [LAYER], concat=False) as extractor,
    ):
        network.zero_grad()
        response = target(inputs)[TARGET][:, channel, CENTRE, CENTRE]
        response.sum().backward()
        return extractor.activations[LAYER] * extractor.gradients[LAYER], response.detach()


def captum_attribution(network: nn.Module, inputs: Tensor, channel: int = CHANNEL) -> Tensor:
    """Return attribution by Captum; the network ends at the target, as Captum lets it."""

    def respond(inputs: Tensor) -> Tensor:
        return reach(network, TARGET, inputs)[:, channel, CENTRE, CENTRE]

    found: Tensor = LayerGradientXActivation(respond, network.get_submodule(LAYER)).attribute(
        inputs
    )
    return found.detach()


def norms(attribution: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the maps that a sweep keeps: excitation, inhibition and the vector's norm."""
    return attribution.relu().sum(1), (-attribution).relu().sum(1), attribution.norm(dim=1)


def faccent_steps(
    network: nn.Module, attribution: Tensor, steps: int, device: str
) -> Callable[[], float]:
    """Return what renders + and - inversions by `render_vis`, and gives the seconds of a step.

    Objective, views and optimizer are those of the authors' atlas.

    Args:
        network: The authors' network.
        attribution: A of the source pictures, [N / 2, C, H, W].
        steps: Steps to time, apart from the first and the last, which set up and wrap up.
        device: Where to.
    """
    targets = torch.stack([attribution.relu(), (-attribution).relu()], 1).flatten(0, 1)
    targets /= targets.flatten(1).norm(dim=1)[:, None, None, None]
    bounds = find_crop_bounds(attribution.abs().sum((0, 1)), 0.0)
    objective = objectives.Objective.sum(
        [
            objectives.spatial_channel_cosim(
                LAYER, target, relu_act=False, cosine_power=1.0, crop_bounds=bounds, batch=index
            )
            for index, target in enumerate(targets)
        ]
    )
    views = [transform.box_crop(0.9, 0.99, 0.05), transform.uniform_gaussian_noise()]

    def run() -> float:
        stamps: list[float] = []

        def stamp(*_: Any) -> None:
            if device == "cuda":
                torch.cuda.synchronize()
            stamps.append(perf_counter())

        def adam(parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
            optimizer = torch.optim.Adam(parameters, lr=0.06)
            optimizer.register_step_post_hook(stamp)
            return optimizer

        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            pictures, *_ = render.render_vis(
                network,
                objective,
                parameterizer=param.fourier_phase(
                    device=device, img_size=CANVAS, batch_size=len(targets), seed=SEED
                ),
                transforms=views,
                optimizer=adam,
                out_thresholds=[0, steps + 1],
                inline_thresholds=[],
                nb_transforms=1,
                img_size=CANVAS,
                progress=False,
            )
        # `render_vis` passes over errors in the network.
        assert not torch.equal(pictures[0], pictures[-1]), "faccent's pictures stay as they are"
        return statistics.median(later - earlier for earlier, later in pairwise(stamps[:-1]))

    return run


# --- do all compute the same? ---


def error(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, in shares of the largest value."""
    return ((found.cpu() - expected.cpu()).abs().max() / expected.abs().max()).item()


def agreement(
    backbone: Backbone,
    network: nn.Module,
    pictures: Tensor,
    sweep: Sweep,
    whole: Sweep,
    channels: Sequence[int],
) -> dict[str, float]:
    """Compare everybody's numbers with those of faccent.

    Raises:
        SystemExit: If they are not the same.
    """
    inputs = pictures * 255 - 117
    attribution, response = faccent_attribution(network, inputs)
    bound_feature, layer = BoundFeature(Feature.parse(FEATURE), backbone), Layer.parse(LAYER)
    _, ours, own_response = attribute(
        backbone, pictures, [bound_feature] * len(pictures), layer, ActGrad()
    )
    with torch.no_grad():
        cropped = reach(network, TARGET, inputs[..., CROP, CROP])
    centre = CENTRE - CROP.start // STRIDE
    excitation, inhibition, _ = posneg_cam_maps_from_dataloader(
        [(inputs, None)], network, TARGET, CHANNEL, [LAYER], position="middle"
    )
    errors = {
        "Captum, attribution": error(captum_attribution(network, inputs), attribution),
        "faccent's + minus - map": error(excitation[LAYER] - inhibition[LAYER], attribution.sum(1)),
        "attribute(), attribution": error(ours, attribution),
        "attribute(), response": error(own_response, response),
        "cropped network, response": error(cropped[:, CHANNEL, centre, centre], response),
    }
    for name, swept, columns in (
        ("one feature", sweep, {0: CHANNEL}),
        ("all channels", whole, {channel: channel for channel in channels}),
    ):
        measured = swept.measure(pictures)
        for column, channel in columns.items():
            expected, response = faccent_attribution(network, inputs, channel)
            excited, inhibited = swept.tension.split(expected)
            for what, value in (
                ("response", response),
                ("excitation", excited),
                ("inhibition", inhibited),
            ):
                key = f"sweep of {name}, {what}"
                found = error(measured[what][:, column], value)
                errors[key] = max(found, errors.get(key, 0.0))
    if wrong := [f"{name} {value:.1e}" for name, value in errors.items() if not value <= TOLERANCE]:
        raise SystemExit(f"not the same numbers as faccent's: {', '.join(wrong)}")
    return errors


# --- the races ---


def sweep_races(
    backbone: Backbone, device: str, batch: int, channels: Sequence[int], rounds: int
) -> tuple[dict[str, float], list[Race]]:
    """Sweep one feature and all channels, of one batch of pictures."""
    pictures = source_pictures(backbone, batch).to(device)
    inputs = pictures * 255 - 117
    network = authors_network(backbone)
    frozen = authors_network(backbone).requires_grad_(False)
    sweep = Sweep(backbone, [FEATURE], LAYER).to(device)
    whole = Sweep(backbone, [f"{TARGET}:*@centre"], LAYER).to(device)
    for swept in (sweep, whole):
        swept.prepare()
    log_info("comparing the numbers")
    errors = agreement(backbone, network, pictures[:4], sweep, whole, channels)

    @torch.no_grad()
    def bare(network: nn.Module) -> None:
        reach(network, TARGET, inputs[..., CROP, CROP])

    def faccent(channel: int = CHANNEL) -> None:
        norms(faccent_attribution(network, inputs, channel)[0])

    def maps() -> None:
        posneg_cam_maps_from_dataloader(
            [(inputs, None)], network, TARGET, CHANNEL, [LAYER], position="middle"
        )

    def few() -> None:
        for channel in channels:
            faccent(channel)

    def timed(run: Callable[[], object]) -> Callable[[], float]:
        return partial(_time, run, device == "cuda")  # type: ignore[arg-type]

    one = race(
        ONE,
        batch,
        {
            "faccent": timed(faccent),
            "faccent, cut off": timed(maps),
            "Captum": timed(lambda: norms(captum_attribution(frozen, inputs))),
            "ours": timed(lambda: sweep.measure(pictures)),
            THEIR_FLOOR: timed(partial(bare, frozen)),
            FLOOR: timed(partial(bare, backbone.network)),
        },
        rounds,
    )
    every = race(
        EVERY,
        batch,
        {
            "faccent": timed(few),
            "ours": timed(lambda: whole.measure(pictures)),
            "ours, one feature": timed(lambda: sweep.measure(pictures)),
            FLOOR: timed(partial(bare, backbone.network)),
        },
        rounds,
    )
    every.seconds["faccent"] = [
        seconds * CHANNELS / len(channels) for seconds in every.seconds["faccent"]
    ]
    return errors, [one, every]


def inversion_race(backbone: Backbone, device: str, batch: int, steps: int, rounds: int) -> Race:
    """Take a step of `batch` + and - inversions, of half as many pictures."""
    pictures = source_pictures(backbone, batch // 2).to(device)
    objective = SignedInversion(
        backbone, [FEATURE], LAYER, image=FourierPhase(CANVAS), batch_size=batch
    )
    objective.trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    objective.log = lambda *_, **__: None  # outside a loop there is nothing to log to
    objective.build_bank(VetoedShapesPictures(batch // 2, SEED))
    objective.to(device)
    network, cuda = authors_network(backbone), device == "cuda"
    frozen = authors_network(backbone).requires_grad_(False)
    attribution, _ = faccent_attribution(network, pictures * 255 - 117)
    shown = (pictures * 255 - 117).repeat_interleave(2, 0)[..., CROP, CROP].clone()

    def bare(network: nn.Module) -> None:
        inputs = shown.clone().requires_grad_()
        reach(network, LAYER, inputs).sum().backward()

    return race(
        STEP,
        batch,
        {
            "faccent": faccent_steps(network, attribution, steps, device),
            "ours": partial(_time, _step(objective), cuda),
            THEIR_FLOOR: partial(_time, partial(bare, frozen), cuda),
            FLOOR: partial(_time, partial(bare, backbone.network), cuda),
        },
        rounds,
    )


class _Stamps(Callback):
    """Notes when each step ended."""

    def __init__(self, cuda: bool) -> None:
        self.cuda, self.ends = cuda, list[float]()

    def on_train_batch_end(self, *_: Any) -> None:
        if self.cuda:
            torch.cuda.synchronize()
        self.ends.append(perf_counter())


class _Closing(Callback):
    """Notes when the callbacks before it were done with an epoch."""

    end = 0.0

    def on_train_epoch_end(self, *_: Any) -> None:
        self.end = perf_counter()


def start_up(who: str) -> float:
    """Start a process that does what comes before the first step, and return the seconds."""
    start = perf_counter()
    subprocess.run([sys.executable, "-c", STARTS[who]], check=True, capture_output=True)
    return perf_counter() - start


def icon_race(
    backbone: Backbone, device: str, batch: int, swept: int, steps: int, rounds: int
) -> Race:
    """Make icons of an atlas, from the start of a process to the finished run.

    faccent makes `batch` of them in one process, whose start is timed, as are some steps; all its
    steps are extrapolated. Of ours everything is timed for the atlas of `swept` pictures: the start
    of a process, the opening of the map, some steps of each chunk as the trainer takes them, what
    comes at an epoch's end (TensorBoard, atlas) and at the run's (page, results). Steps and epochs
    are extrapolated, and its share for `batch` icons is reported. Sweep and UMAP are left out.
    """
    cuda = device == "cuda"
    pictures = source_pictures(backbone, batch // 2).to(device)
    network = authors_network(backbone)
    attribution, _ = faccent_attribution(network, pictures * 255 - 117)
    their_step = faccent_steps(network, attribution, steps, device)
    with TemporaryDirectory() as folder:
        chart = Chart(f"{folder}/sweep.zarr", size=(10, 10), minimum=2)
        data: VetoedShapesPictures | None = VetoedShapesPictures(swept, SEED, contents="random")

        def parts() -> tuple[int, float, float, float]:
            """Return icons, and seconds spent once, per step of all, and per epoch's end."""
            start = perf_counter()
            objective = AtlasInversion(
                backbone,
                [FEATURE],
                LAYER,
                chart=chart,
                faint=0.0,
                keep=swept,
                image=FourierPhase(CANVAS),
                steps_per_epoch=steps + 1,
            )
            objective.build_bank(data)
            begun = perf_counter() - start
            stamps = _Stamps(cuda)
            # The callbacks of `mti fit`, between two that note the time.
            Trainer(
                max_epochs=1,
                accelerator="gpu" if cuda else "cpu",
                devices=1,
                logger=TensorBoardLogger(folder, "run", default_hp_metric=False),
                enable_progress_bar=False,
                enable_model_summary=False,
                enable_checkpointing=False,
                callbacks=[stamps, PictureLog(), AtlasLog(), Results(), closing := _Closing()],
            ).fit(objective)
            turns = [stamps.ends[place :: steps + 1] for place in range(steps + 1)]
            taken = [
                sum(after - before for before, after in zip(*pair, strict=True))
                for pair in pairwise(turns)  # the first step of a chunk is not timed
            ]
            once = begun + perf_counter() - closing.end
            ended = closing.end - stamps.ends[-1]
            return len(objective.entries), once, statistics.median(taken), ended

        parts()  # makes the sweep and the map
        data = None
        longer = []  # with as many steps as faccent takes

        def ours() -> float:
            icons, once, step, ended = parts()
            other = start_up("ours") + once + EPOCHS * ended
            longer.append((other + THEIR_STEPS * step) * batch / icons)
            return (other + OUR_STEPS * step) * batch / icons

        runs = {"faccent": lambda: start_up("faccent") + THEIR_STEPS * their_step(), "ours": ours}
        result = race(ICON, batch, runs, rounds)
        result.seconds[f"ours, {THEIR_STEPS} steps"] = longer[-rounds:]
        return result


def source_pictures(backbone: Backbone, count: int) -> Tensor:
    """Return pictures of the vetoed shapes at the network's input size, [N, 3, 224, 224]."""
    data = VetoedShapesPictures(count, SEED)
    data.use(backbone.preprocessing)
    return torch.stack([sample["picture"] for sample in data.samples()])


# --- the report ---

# Case, batch where it matters, numerator, denominator, and what their ratio has to be.
WANTED = (
    (ONE, None, "faccent", "ours", ">= 15"),
    (ONE, None, "faccent, cut off", "ours", ""),
    (ONE, None, "Captum", "ours", ""),
    (ONE, None, "ours", FLOOR, "<= 1.3"),
    (ONE, None, "ours", THEIR_FLOOR, ""),
    (EVERY, None, "faccent", "ours", ">= 200"),
    (EVERY, None, "ours", "ours, one feature", "<= 30"),
    (STEP, 4, "faccent", "ours", ">= 8"),
    (STEP, 16, "faccent", "ours", ">= 12"),
    (STEP, 4, "ours", FLOOR, "<= 1.3"),
    (STEP, 16, "ours", FLOOR, "<= 1.3"),
    (STEP, 4, "ours", THEIR_FLOOR, "<= 1.3"),
    (STEP, 16, "ours", THEIR_FLOOR, "<= 1.3"),
    (ICON, None, "faccent", "ours", ">= 10"),
    (ICON, None, "faccent", f"ours, {THEIR_STEPS} steps", ""),
)

NOTES = """\
- faccent: `actgrad_extractor` and `layer_saver` as in the authors' atlas. The network runs to its
  end, and gradients of the parameters before the target are computed, too.
- faccent, cut off: its `posneg_cam_maps_from_dataloader`, whose network ends at the target.
- Captum: `LayerGradientXActivation`, the network frozen and ending at the target.
- All three get pictures that are already normalised; excitation, inhibition and the authors' norm
  are reduced from the attribution, as maps. Ours are the columns of a sweep, tension among them.
- faccent, all channels: extrapolated from the time of {few} channels.
- faccent, inversion: `render_vis` at nb_transforms=1, set-up left out; it runs the network to its
  end, and one view serves all images. It and ours sum up the pixels' gradients for transparency.
- Floor: the bare network on {crop}x{crop} of 224x224 pixels, forward to the target; for the
  inversion forward to the attribution layer and back to the pixels.
- Atlas icons: seconds for {icons} of them on a canvas of 512x512. faccent: one process, whose start
  is timed, and {theirs} steps, extrapolated from {steps}. Ours: their share of a whole atlas in one
  process, all of which is timed (its start, every chunk of 16, TensorBoard, pictures and page), but
  for {ours} steps, the default, extrapolated from {steps}, and {epochs} epochs' ends from one; then
  the same with {theirs} steps. Sweep and UMAP, which both need once, are left out."""


def machine(device: str) -> dict[str, Any]:
    """Return where this runs."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": named[0] if named else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "faccent", "captum", "mti-lightning")},
    }


def ratios(races: Sequence[Race]) -> list[dict[str, Any]]:
    """Return the ratios that matter, with what is wanted of them."""
    found = []
    for name, batch, above, below, wanted in WANTED:
        for run in (one for one in races if one.name == name and batch in (None, one.batch)):
            value = run.ratio(above, below)
            sense, _, bound = wanted.partition(" ")
            reached = {">=": operator.ge, "<=": operator.le}
            found.append(
                {
                    "case": name,
                    "batch": run.batch,
                    "ratio": f"{above} / {below}",
                    "value": value,
                    "wanted": wanted,
                    "met": reached[sense](value, float(bound)) if wanted else None,
                }
            )
    return found


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)


def report(given: dict[str, Any], errors: dict[str, float], races: Sequence[Race]) -> str:
    """Return everything as Markdown."""
    where = ", ".join(f"{name} {value}" for name, value in given.items())
    timings = [
        [
            run.name,
            run.batch,
            who,
            f"{run.median(who) * 1e3:.1f}",
            f"{run.batch / run.median(who):.3g}",
            f"{run.ratio(who, 'ours'):.2f}",
            f"{run.ratio(who, FLOOR):.2f}" if FLOOR in run.seconds else "",
        ]
        for run in races
        for who in run.seconds
    ]
    met = {True: "yes", False: "no", None: ""}
    reached = [
        [*list(row.values())[:3], f"{row['value']:.2f}", row["wanted"], met[row["met"]]]
        for row in ratios(races)
    ]
    parts = [
        where,
        table(["against faccent's numbers", "error"], [[k, f"{v:.1e}"] for k, v in errors.items()]),
        table(["case", "batch", "who", "ms", "pictures / s", "× ours", "× floor"], timings),
        table(["case", "batch", "ratio", "measured", "wanted", "met"], reached),
        NOTES.format(
            few=given["channels timed"],
            crop=CROP.stop - CROP.start,
            icons=races[-1].batch,
            steps=given["steps timed"],
            ours=OUR_STEPS,
            theirs=THEIR_STEPS,
            epochs=EPOCHS,
        ),
    ]
    return "\n\n".join(parts)


def main() -> None:
    """Print the tables, and write them as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="small batches, to try it out")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    # Torch says that no input of a layer that concatenates needs a gradient, which is so.
    warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
    # Crop and whole picture have to agree to 1e-5.
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(SEED)
    batch, steps = (4, 2) if asked.quick else (32, 3)
    channels = [0, CHANNEL] if asked.quick else [0, 200, CHANNEL, 450]
    backbone = Backbone("inceptionv1_tf", "random", seed=SEED).to(asked.device)
    given = {
        **machine(asked.device),
        "seed": SEED,
        "rounds": asked.rounds,
        "channels timed": len(channels),
        "steps timed": steps,
    }
    errors, races = sweep_races(backbone, asked.device, batch, channels, asked.rounds)
    for images in (4,) if asked.quick else (4, 16):
        races.append(inversion_race(backbone, asked.device, images, steps, asked.rounds))
    icons, swept = (4, 64) if asked.quick else (30, 300)
    rounds = max(asked.rounds // 3, 1)  # each takes a minute
    races.append(icon_race(backbone, asked.device, icons, swept, steps, rounds))
    print(report(given, errors, races))
    if asked.json:
        timings = [asdict(run) for run in races]
        for timing, run in zip(timings, races, strict=True):
            timing["median"] = {who: run.median(who) for who in run.seconds}
        found = {"given": given, "errors": errors, "timings": timings, "ratios": ratios(races)}
        asked.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
