"""What a step of an objective, or a batch of a sweep, costs beside bare passes.

`python -m benchmarks.step_cost`. The bare passes go through the same truncated backbone at the same
batch size, as timm makes it; all are timed in turn in one process, and the median of their ratios
is what counts: of the network with its batch norms folded into convolutions, and without.
Attribution is act × grad, one pass: of integrated gradients a tense image takes one for each step.
"""

import argparse
import json
import logging
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mti_inceptionv1  # noqa: F401  registers the network
import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mti_lightning import (
    ActGrad,
    Backbone,
    Layer,
    MaximallyTense,
    Objective,
    PositiveInversion,
    Sweep,
    VetoedShapesPictures,
)
from mti_lightning.features.bound import BoundFeature
from mti_lightning.objectives.turns import Step

CASES = [
    ("vetoed_shapes_resnet", "pretrained", "fc:0", "layer4", 1),
    ("vetoed_shapes_resnet", "pretrained", "fc:0", "layer4", 16),
    ("vetoed_shapes_resnet", "pretrained", "fc:0", "layer3", 64),
    ("resnet18", "random", "layer4.0.act2/input:0@mean", "layer3", 8),
    ("resnet50", "random", "layer4.0.act3/input:0@mean", "layer3", 1),
    ("resnet50", "random", "layer4.0.act3/input:0@mean", "layer3", 8),
    ("efficientnet_lite0", "random", "classifier:0", "blocks.4", 8),
    ("convnext_tiny", "random", "stages.3.blocks.1.mlp.act/input:0@mean", "stages.2", 8),
    ("inceptionv1_tf", "random", "mixed4d_pre_relu:0@mean", "mixed4a", 8),
    ("vit_tiny_patch16_224", "random", "blocks.9.mlp.act/input:0@mean", "blocks.8", 1),
    ("vit_tiny_patch16_224", "random", "blocks.9.mlp.act/input:0@mean", "blocks.8", 8),
]
KINDS = (PositiveInversion, MaximallyTense, Sweep)


def step_of(objective: Objective) -> Callable[[], None]:
    """Return one optimisation step as the trainer takes it."""
    optimizer = objective.configure_optimizers()
    objective.optimizers = lambda: optimizer

    def run() -> None:
        optimizer.zero_grad()
        objective.training_step(Step(0, 0), 0).backward()
        optimizer.step()

    return run


class _Reached(Exception):  # noqa: N818  it ends a forward pass, it reports no error
    """Says that the last layer that is needed has run."""


def truncated(
    network: nn.Module, layers: Sequence[Layer], inputs: Tensor, *, cloned: bool = False
) -> list[Tensor]:
    """Run a plain network as far as the last of its layers, and return what comes there.

    Args:
        network: The network.
        layers: In the order in which they run.
        inputs: [N, 3, H, W], normalised.
        cloned: Of what a later operation in place may overwrite.
    """
    found: list[Tensor] = []

    def note(value: Tensor) -> Tensor:
        found.append(value.clone() if cloned else value)
        if len(found) == len(layers):
            raise _Reached
        return found[-1].clone() if cloned else value

    handles = []
    for layer in layers:
        module = network.get_submodule(layer.module)
        if layer.side == "input":
            handles.append(module.register_forward_pre_hook(lambda _, given: (note(given[0]),)))
        else:
            handles.append(module.register_forward_hook(lambda _m, _i, output: note(output)))
    try:
        network(inputs)
    except _Reached:
        return found
    finally:
        for handle in handles:
            handle.remove()
    raise ValueError(f"{layers} did not all run")


def _bare(model: Objective | Sweep, count: int) -> Callable[[], None]:
    """Return the bare passes of the network as timm makes it, without anything of ours."""
    network, backbone = model.backbone.network, model.backbone
    pictures = torch.rand(count, 3, *backbone.preprocessing.size, device=model.device)
    tense, sweeps = isinstance(model, MaximallyTense), isinstance(model, Sweep)
    feature, reads = model.bound_features[0], not isinstance(model, PositiveInversion)
    layers = [model.layer, *([feature.layer] if reads else ())]

    def run() -> None:
        shown = pictures.clone().requires_grad_()
        with sdpa_kernel(SDPBackend.MATH if tense else list(SDPBackend.__members__.values())[1:]):
            if sweeps:
                _swept(network, layers, pictures, feature)
                return
            found = truncated(network, layers, shown, cloned=tense)
            if tense:
                response = feature(found[1]).sum()
                (gradient,) = torch.autograd.grad(response, found[0], create_graph=True)
                (found[0] * gradient).sum().backward()
            else:
                found[0].sum().backward()

    return run


def _swept(
    network: nn.Module, layers: Sequence[Layer], pictures: Tensor, feature: BoundFeature
) -> None:
    """Run forward to a feature, and back from it to the attribution layer."""
    first, _ = (network.get_submodule(layer.module) for layer in layers)
    handle = first.register_forward_hook(lambda _m, _i, output: output.detach().requires_grad_())
    try:
        found = truncated(network, layers, pictures, cloned=True)
    finally:
        handle.remove()
    torch.autograd.grad(feature(found[1]).sum(), found[0])


def _time(run: Callable[[], Any], cuda: bool, clock: Callable[[], float]) -> float:
    start = clock()
    run()
    if cuda:
        torch.cuda.synchronize()
    return clock() - start


def made(kind: Any, case: tuple[Any, ...], device: str, **ways: Any) -> Objective | Sweep:
    """Return an objective or a sweep of a case, ready to run.

    Args:
        kind: Its class.
        case: One of `CASES`.
        device: Where it runs.
        **ways: Of the network, as `Backbone` takes them.
    """
    name, weights, feature, layer, batch = case
    backbone = Backbone(name, weights, **ways)
    if kind is Sweep:
        sweep = Sweep(backbone, [feature], layer, ActGrad(), rivals=0).to(device)
        sweep.prepare()
        return sweep
    # A random network may excite nowhere, on the whole: every position is taken.
    way = {"coherent": False} if kind is PositiveInversion else {}
    objective: Objective = kind(
        *(backbone, [feature], layer, ActGrad()), batch_size=batch, seeds=batch, **way
    )
    objective.trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    objective.log = lambda *_, **__: None  # outside a loop there is nothing to log to
    objective.build_bank(VetoedShapesPictures(size=1) if objective.needs_sources else None)
    return objective.to(device)


def ours(model: Objective | Sweep, count: int) -> Callable[[], Any]:
    """Return a step, or the measuring of a batch of so many pictures."""
    if isinstance(model, Objective):
        return step_of(model)
    pictures = torch.rand(count, 3, *model.backbone.preprocessing.size, device=model.device)
    return lambda: model.measure(pictures)


def main() -> None:
    """Print a table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="+", default=[""], help="backbones; all by default")
    parser.add_argument("--busy", action="store_true", help="count the processor's time alone")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows, cuda = [], given.device == "cuda"
    clock = time.process_time if given.busy else time.perf_counter
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"{given.device}, torch {torch.__version__}"
    )
    print(
        "| backbone | layer | batch | objective | step, ms | bare, ms | step / bare | "
        "unfolded / bare | pictures / s |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for case in CASES:
        name, _, _, layer, batch = case
        if not any(name.startswith(only) for only in given.only):
            continue
        for kind in KINDS:
            models = [made(kind, case, given.device, fold=fold) for fold in (True, False)]
            runs = [*(ours(model, batch) for model in models), _bare(models[0], batch)]
            for _ in range(3):
                for run in runs:
                    run()
            times = [[_time(run, cuda, clock) for run in runs] for _ in range(given.rounds)]
            row = {
                "backbone": name,
                "layer": layer,
                "batch": batch,
                "objective": kind.__name__,
                "step_ms": statistics.median(folded for folded, _, _ in times) * 1e3,
                "bare_ms": statistics.median(bare for _, _, bare in times) * 1e3,
                "ratio": statistics.median(folded / bare for folded, _, bare in times),
                "unfolded_ratio": statistics.median(plain / bare for _, plain, bare in times),
            }
            rows.append(row)
            print(
                f"| {name} | {layer} | {batch} | {kind.__name__} | {row['step_ms']:.1f} | "
                f"{row['bare_ms']:.1f} | {row['ratio']:.2f} | {row['unfolded_ratio']:.2f} | "
                f"{batch / row['step_ms'] * 1e3:.0f} |",
                flush=True,
            )
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
