"""What ranking costs on the store of a large sweep: time, peak memory, files.

`python -m benchmarks.rank_at_scale FOLDER`. The store is written block by block by the sweep's own
code, of random numbers. Each command runs in a process of its own; beside it stands one that only
imports what the command does and opens a small store.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from mti_lightning.sweep.measures import COLUMNS
from mti_lightning.sweep.writing import SweepWriter

_BLOCK = 256
# Not getrusage's: a new process starts with that of the one that started it.
_RUN = """
import sys, time
from pathlib import Path
from mti_lightning.cli import main
start = time.perf_counter()
main(sys.argv[1:])
peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
print("took", time.perf_counter() - start, int(peak) / 1024)
"""


def write_store(path: Path, pictures: int, features: int) -> None:
    """Write a complete store of random numbers."""
    made: dict[str, Any] = {
        "features": [f"fc:{number}" for number in range(features)],
        "version": "0",
        "backbone": "none",
        "weights": "0",
        "attribution_layer": "layer4",
        "preprocessing": {"size": [8, 8]},
        "data": {"class_path": "Folder", "init_args": {"path": "/nowhere"}},
    }
    keys = [f"n{number // 1300:08d}/n{number:012d}.JPEG" for number in range(pictures)]
    store = SweepWriter.begin(path, made, keys, np.ones(4, np.float32), _BLOCK)
    random = np.random.default_rng(0)
    for start in range(0, pictures, _BLOCK):
        rows = min(_BLOCK, pictures - start)
        columns: dict[str, Any] = {
            name: random.standard_normal((rows, features), np.float32) for name in COLUMNS
        }
        columns["stamp"] = np.ones((rows, 3), np.int64)
        columns["reason"] = np.zeros(rows, np.dtypes.StringDType())
        store.write(start, columns, np.ones(rows, np.uint8))
    store.finish([], None)  # type: ignore[arg-type]  # no maps are kept


def rank(store: Path, *arguments: str) -> tuple[float, float, float]:
    """Return seconds of `mti rank` without its imports, of all, and its peak memory, MiB."""
    out = store.parent / "rank.csv"
    asked = ["rank", str(store), *arguments, "--out", str(out), "--overwrite"]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *asked], capture_output=True, text=True, check=True
    )
    whole = time.perf_counter() - start
    seconds, peak = done.stdout.split("took")[-1].split()
    return float(seconds), whole, float(peak)


def main() -> None:
    """Print a table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the stores are made, and removed again")
    parser.add_argument("--pictures", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=500)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    small, large = given.folder / "small.zarr", given.folder / "large.zarr"
    given.folder.mkdir(parents=True, exist_ok=True)
    try:
        write_store(small, 1000, 2)
        start = time.perf_counter()
        write_store(large, given.pictures, given.features)
        written = time.perf_counter() - start
        files = [path for path in large.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        print(
            f"{given.pictures:,} pictures × {given.features} features: written in {written:.0f} s, "
            f"{size / 1e9:.1f} GB in {len(files):,} files"
        )
        top = ("--feature", f"fc:{given.features // 2}", "--count", "100")
        cases = {
            "a store of 1,000 × 2": (small, "--feature", "fc:1", "--count", "100"),
            "top 100 by tension": (large, *top),
            "top 100 by balance": (large, *top, "--by", "balance"),
            "all features": (large,),
        }
        rows = []
        print("| mti rank | seconds | with imports | peak memory, MiB |\n|---|---|---|---|")
        for name, (store, *arguments) in cases.items():
            seconds, whole, peak = rank(store, *arguments)
            rows.append({"case": name, "seconds": seconds, "whole": whole, "peak_mib": peak})
            print(f"| {name} | {seconds:.1f} | {whole:.1f} | {peak:.0f} |", flush=True)
        if given.json:
            told = {"files": len(files), "bytes": size, "written_s": written, "rows": rows}
            given.json.write_text(json.dumps(told, indent=2))
    finally:
        for store in (small, large):
            shutil.rmtree(store, ignore_errors=True)


if __name__ == "__main__":
    main()
