"""What all channels of a layer cost in a sweep beside one of them, where the head is linear.

`python -m benchmarks.linear_heads`. One feature, all channels, and all channels by backward passes
as where a head is not linear, measure the same pictures in turn in one process; what counts is the
median of their ratios.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from mti_lightning import ActGrad, Backbone, Sweep
from mti_lightning.sweep.measuring import Measurement

# The 1×1 convolution of a bottleneck, a 3×3 one, and classes; channels last, and tokens.
CASES = [
    ("resnet50", "layer3.0.act2", "layer3.0.conv3", "@centre"),
    ("resnet50", "layer3.1.act1", "layer3.1.conv2", "@centre"),
    ("resnet50", "global_pool", "fc", ""),
    ("convnext_tiny", "stages.3.blocks.0.mlp.act", "stages.3.blocks.0.mlp.fc2", "@centre"),
    ("vit_tiny_patch16_224", "blocks.9.mlp.act", "blocks.9.mlp.fc2", "@0"),
    ("vit_tiny_patch16_224", "blocks.9.mlp.act", "blocks.9.mlp.fc2", "@mean"),
]


def _measurement(backbone: Backbone, layer: str, features: str) -> Measurement:
    module = Sweep(backbone, [features], layer, ActGrad(), rivals=0)
    module.prepare(torch.linspace(0, 1, module.layout.channels))
    assert module.measurement is not None
    return module.measurement


def _time(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    """Print a table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--only", help="The one backbone that is timed.")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| backbone | layer | channels | one, ms | all / one | by backward passes / one |")
    print("|---|---|---|---|---|---|")
    rows = []
    for name, layer, target, at in CASES:
        if given.only not in (None, name):
            continue
        backbone = Backbone(name, "random")
        one = _measurement(backbone, layer, f"{target}:0{at}")
        every = _measurement(backbone, layer, f"{target}:*{at}")
        backward = replace(every, parts=[replace(part, linear=None) for part in every.parts])
        size = backbone.preprocessing.size
        pictures = torch.rand(given.batch, 3, *size, generator=torch.manual_seed(0))
        runs = [partial(each.measure, pictures) for each in (one, every, backward)]
        for run in runs:
            run()
        times = [[_time(run) for run in runs] for _ in range(given.rounds)]
        row = {
            "backbone": name,
            "layer": layer,
            "channels": len(every.parts[0].places),
            "linear": every.parts[0].linear is not None,
            "one_ms": statistics.median(of[0] for of in times) * 1e3,
            "ratio": statistics.median(of[1] / of[0] for of in times),
            "backward_ratio": statistics.median(of[2] / of[0] for of in times),
        }
        rows.append(row)
        print(
            f"| {name} | {layer} | {row['channels']} | {row['one_ms']:.0f} | {row['ratio']:.2f} | "
            f"{row['backward_ratio']:.1f} |",
            flush=True,
        )
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
