"""Write `docs/speed.md` from what the benchmarks wrote as JSON.

`python -m benchmarks.speed_page STEPS.json READING.json --linear LINEAR.json`, of
`benchmarks.step_cost`, `benchmarks.reading` and `benchmarks.linear_heads`.
"""

import argparse
import json
import platform
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "docs" / "speed.md"
HEAD = """# Speed

What the benchmarks of steps and of reading measured on {machine}. Each ratio is of times of one
run. `make bench` measures anew and writes this page.

## A step, and a batch of a sweep

Beside the bare passes of the network as timm makes it, up to the same layer and at the same batch
size. Where nothing is read between a convolution and the batch norm behind it, the convolution does
the norm's work ([`fold`](your-model.md#your-model-modelbackbone)); the last column is without that.
Convolutions of single pixels go to oneDNN in batches of all sizes, which PyTorch does from 16
pictures or two threads on: of one thread, as here, that is a good part of what is gained.

| network | layer | pictures | what | ms | beside bare passes | not folded |
|---|---|---|---|---|---|---|
"""
READING = """
## A folder of photographs

A sweep from end to end, of EfficientNet-Lite0: `whole` decodes all pixels, `as it is` reads
[as it does by default](your-model.md#your-pictures-data). The shares are of the pass itself.

| photographs | how | pictures / s | time beside whole | reading | network | writing |
|---|---|---|---|---|---|---|
"""
LINEAR = """
## All channels of a layer

Where the head, from the attribution layer to the features, is one linear map, all channels of a
layer need no backward pass: beside one feature, and by backward passes.

| network | attribution layer | channels | one, ms | all beside one | by backward passes |
|---|---|---|---|---|---|
"""


def step_row(row: dict[str, Any]) -> str:
    """Return a line of the first table."""
    cells = [row["backbone"], row["layer"], row["batch"], row["objective"]]
    cells += [f"{row['step_ms']:.0f}", f"{row['ratio']:.2f}", f"{row['unfolded_ratio']:.2f}"]
    return "| " + " | ".join(map(str, cells)) + " |"


def reading_row(row: dict[str, Any]) -> str:
    """Return a line of the second table."""
    parts = ("reading", "network", "writing")
    whole = sum(row[part] for part in parts)
    cells = [row["photographs"], row["how"], f"{row['pictures_per_second']:.0f}"]
    cells += [f"{row['ratio']:.2f}", *(f"{row[part] / whole:.0%}" for part in parts)]
    return "| " + " | ".join(cells) + " |"


def linear_row(row: dict[str, Any]) -> str:
    """Return a line of the third table."""
    cells = [row["backbone"], row["layer"], row["channels"], f"{row['one_ms']:.0f}"]
    cells += [f"{row['ratio']:.2f}", f"{row['backward_ratio']:.1f}"]
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("steps", type=Path, nargs="+", help="and the reading's, which is the last")
    parser.add_argument("--linear", type=Path)
    parser.add_argument("--machine", default=f"a CPU, {platform.machine()}")
    parser.add_argument("--note", default="", help="what else is to be known of the figures")
    given = parser.parse_args()
    *steps, reading = (json.loads(path.read_text()) for path in given.steps)
    lines = [step_row(row) for rows in steps for row in rows]
    text = HEAD.format(machine=given.machine) + "\n".join(lines) + "\n" + READING
    tail = ""
    if given.linear:
        rows = json.loads(given.linear.read_text())
        tail = LINEAR + "\n".join(map(linear_row, rows)) + "\n"
    note = f"\n{given.note}\n" if given.note else ""
    PAGE.write_text(text + "\n".join(map(reading_row, reading)) + "\n" + tail + note)


if __name__ == "__main__":
    main()
