"""How fast a sweep of a folder of photographs is, end to end, and what limits it.

`python -m benchmarks.reading`. The photographs are scikit-image's, enlarged or reduced and saved as
JPEGs. `whole` decodes all their pixels in the main process, `as it is` does what a sweep does by
default; the last two write and read a cache of resized pictures.
"""

import argparse
import json
import logging
import shutil
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import skimage
import torch
from lightning import Trainer
from PIL import Image

from mti_lightning import ActGrad, Backbone, PictureFolder, Sweep

SIZES = {"12 megapixels": (4000, 3000), "500 x 375": (500, 375)}
NAMES = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png")


def make_photographs(folder: Path, size: tuple[int, int], count: int) -> None:
    """Write photographs of one size: crops of a few, each another one."""
    folder.mkdir(parents=True)
    found = [Path(skimage.data_dir) / name for name in NAMES]
    photographs = [Image.open(path).convert("RGB") for path in found if path.is_file()]
    for index in range(count):
        photograph = photographs[index % len(photographs)]
        left, top = index % 7, index % 11
        box = (left, top, photograph.width - 10 + left % 3, photograph.height - 10 + top % 3)
        shown = photograph.resize(size, Image.Resampling.BICUBIC, box)
        shown.save(folder / f"{index:04d}.jpg", quality=90)


def sweep(backbone: Backbone, store: Path, device: str, **reading: Any) -> dict[str, float]:
    """Sweep a folder, and return seconds: of all, and of each part of the pass itself."""
    data = PictureFolder(batch_size=16, **reading)
    count = len(data.names)
    model = Sweep(
        *(backbone, ["classifier:0"], "blocks.4", ActGrad()),
        store=str(store),
        calibrate=count // 4,
        rivals=0,
    )
    trainer = Trainer(
        accelerator="gpu" if device == "cuda" else device,
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    start = time.perf_counter()
    trainer.predict(model, data, return_predictions=False)
    whole = time.perf_counter() - start
    return {"all": whole, "pictures_per_second": count / whole, **model.pace.seconds}


def main() -> None:
    """Print a table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=64, help="photographs of each size")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    backbone, rows = Backbone("efficientnet_lite0", "random"), []
    print("| photographs | how | s | beside whole | pictures / s | reading | network | writing |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        for name, size in SIZES.items():
            folder, cache = Path(place, name), Path(place, "cache of " + name)
            make_photographs(folder, size, given.count)
            ways: dict[str, dict[str, Any]] = {
                "whole": {"reduced": False, "num_workers": 0},
                "as it is": {},
                "filling the cache": {"cache": cache},
                "from the cache": {"cache": cache},
            }
            found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
            for turn in range(given.rounds):
                shutil.rmtree(cache, ignore_errors=True)  # each round fills it anew
                for number, (way, reading) in enumerate(ways.items()):
                    store = Path(place, f"{name} {number} {turn}.zarr")
                    found[way].append(sweep(backbone, store, given.device, path=folder, **reading))
            for way, runs in found.items():
                row: dict[str, Any] = {"photographs": name, "how": way, "count": given.count}
                row |= {of: statistics.median(run[of] for run in runs) for of in runs[0]}
                row["ratio"] = statistics.median(
                    run["all"] / whole["all"]
                    for run, whole in zip(runs, found["whole"], strict=True)
                )
                rows.append(row)
                whole_pass = sum(row[part] for part in ("reading", "network", "writing"))
                shares = " | ".join(
                    f"{row[part] / whole_pass:.0%}" for part in ("reading", "network", "writing")
                )
                print(
                    f"| {name} | {way} | {row['all']:.1f} | {row['ratio']:.2f} | "
                    f"{row['pictures_per_second']:.1f} | {shares} |",
                    flush=True,
                )
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
