# ruff: noqa: T201  a command line prints
"""`mti-sae rank`: which atoms excite and inhibit a feature; `mti-sae export`: atoms as features."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jsonargparse import auto_cli
from torch import Tensor

from mti_lightning import (
    Backbone,
    BoundFeature,
    Feature,
    InputError,
    Layer,
    MtiError,
    PictureData,
    at_home,
    check_path,
    replacing,
    taking,
    writing_table,
)
from mti_sae.atoms import Atoms, attribute_atoms
from mti_sae.dictionary import Dictionary

SPLIT = ("excitation", "inhibition", "tension")
COLUMNS = (
    *("picture", "response", "rest", "sign", "atom", "attribution", *SPLIT),
    *("row", "column"),  # where it is strongest
)
Row = tuple[object, ...]


def rank(
    backbone: Backbone,
    feature: str,
    attribution_layer: str,
    dictionary: Dictionary,
    data: PictureData,
    count: int = 5,
    out: str = "atoms.csv",
    summary: str | None = None,
    overwrite: bool = False,
) -> None:
    """Rank the atoms of a dictionary by how much they excite and inhibit a feature.

    Writes a table, for each picture its most exciting and most inhibiting atoms, and prints those
    that do so on the average. An atom's attribution is its excitation (E+) less its inhibition
    (E-); it has both, and tension, where it excites in one place and inhibits in another.

    Args:
        backbone: The frozen network.
        feature: The feature, `LAYER[/input]:CHANNEL[@POSITION]`.
        attribution_layer: The layer whose activations the dictionary was made for.
        dictionary: The dictionary.
        data: The pictures.
        count: Atoms of each sign.
        out: The table to write.
        summary: Another table to write, of all atoms: excitation, inhibition and tension, each the
            average over the pictures.
        overwrite: Replace what is there.
    """
    _check_free(overwrite, out=out, summary=summary)
    tables = [at_home(path) for path in (out, summary) if path is not None]
    with taking(*tables, overwrite=overwrite):
        _rank(backbone, feature, attribution_layer, dictionary, data, count, tables)


def _rank(
    backbone: Backbone,
    feature: str,
    attribution_layer: str,
    dictionary: Dictionary,
    data: PictureData,
    count: int,
    tables: Sequence[Path],
) -> None:
    bound_feature, layer = (
        BoundFeature(Feature.parse(feature), backbone),
        Layer.parse(attribution_layer),
    )
    check_path(backbone, bound_feature, layer)
    data.use(backbone.preprocessing)
    total, pictures = torch.zeros(len(SPLIT), len(dictionary.atoms)), 0
    with writing_table(tables[0], COLUMNS) as write:
        grid = backbone.layout(layer).grid
        for batch in data.loader(range(len(data.pictures))):
            if not len(batch.indices):
                continue
            atoms = attribute_atoms(backbone, batch.pictures, bound_feature, layer, dictionary)
            keys = [data.pictures.keys[index] for index in batch.indices.tolist()]
            split = torch.stack([atoms.excitation, atoms.inhibition, atoms.tension])  # [3, N, K]
            for number, key in enumerate(keys):
                for row in _rows(atoms, split[:, number], number, count, grid):
                    write((key, *row))
            total += split.sum(1)
            pictures += len(keys)
    mean = total / max(pictures, 1)
    print(tables[0])
    for summary in tables[1:]:
        with writing_table(summary, ("atom", *SPLIT)) as write:
            for atom, numbers in enumerate(mean.T.tolist()):
                write((atom, *numbers))
        print(summary)
    net = mean[0] - mean[1]
    for sign, atom in _strongest(net, count):
        excited, inhibited, tension = mean[:, atom].tolist()
        print(
            f"{sign} atom {atom}: {net[atom]:+.4g} on the average of {pictures} pictures; "
            f"E+ {excited:.4g}, E- {inhibited:.4g}, tension {tension:.4g}"
        )


def _check_free(overwrite: bool, **outputs: str | None) -> None:
    for name, path in outputs.items():
        if path is not None and at_home(path).exists() and not overwrite:
            raise InputError(f"{path} exists; give --{name} another name, or --overwrite true")


def _strongest(attribution: Tensor, count: int) -> Iterator[tuple[str, int]]:
    """Find the atoms that excite and that inhibit most, [K]."""
    for sign, signed in (("+", attribution), ("-", -attribution)):
        found = signed.topk(min(count, len(signed)))
        for value, atom in zip(found.values.tolist(), found.indices.tolist(), strict=True):
            if value > 0:
                yield sign, atom


def _rows(
    atoms: Atoms, split: Tensor, number: int, count: int, grid: tuple[int, int] | None
) -> Iterator[Row]:
    """Describe a picture's strongest atoms, each with its `split`, [3, K], and where it is most."""
    attribution = atoms.attribution[number]  # [K, P]
    summed = attribution.sum(1)
    response, rest = float(atoms.responses[number]), float(atoms.rest[number].sum())
    for sign, atom in _strongest(summed, count):
        place = int((attribution[atom] * (1 if sign == "+" else -1)).argmax())
        # Tokens that stand before the grid, such as the class token, have no row.
        place -= 0 if grid is None else attribution.shape[1] - grid[0] * grid[1]
        row, column = ("", "") if grid is None or place < 0 else divmod(place, grid[1])
        of_atom = (float(summed[atom]), *split[:, atom].tolist())
        yield (response, rest, sign, atom, *of_atom, row, column)


def export(
    dictionary: Dictionary,
    out: str,
    side: Literal["encoder", "atoms"] = "encoder",
    overwrite: bool = False,
) -> None:
    """Write a dictionary's directions as a .npy file, for features such as `layer3:FILE.npy#17`.

    Args:
        dictionary: The dictionary.
        out: The file to write, [K, C].
        side: `encoder`: what each code reads off the activations, its value before the ReLU but
            for a constant. `atoms`: what it writes.
        overwrite: Replace what is there.
    """
    directions = dictionary.atoms if side == "atoms" else dictionary.encoder
    if directions is None:
        raise InputError(f"dictionary {dictionary.path} has no encoder; give --side atoms")
    if not out.endswith(".npy"):
        raise InputError(f"out {out!r}: features read .npy files")
    _check_free(overwrite, out=out)
    path = at_home(out)
    with taking(path, overwrite=overwrite), replacing(path) as part:
        np.save(part, directions.contiguous().numpy())
    print(f"{out}: {len(directions)} directions of {directions.shape[1]} channels")


def main(args: list[str] | None = None) -> None:
    """Run the command line with `args`, by default those of the process."""
    try:
        auto_cli([rank, export], args=args, prog="mti-sae", as_positional=False)
    except MtiError as error:
        print(f"mti-sae: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
