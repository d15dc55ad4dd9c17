"""Maps' pictures for TensorBoard's projector."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from PIL import Image
from torch.nn.functional import interpolate

from mti_lightning.atlas.data_set import data_set_of, labels_of
from mti_lightning.atlas.layout import thinned
from mti_lightning.atlas.map import Map
from mti_lightning.compose import to_image
from mti_lightning.data.datasets import Pictures
from mti_lightning.files import file_name, replacing

_SPRITE: Final = 8192  # TensorBoard's largest, pixels a side
_MOST_PROJECTED: Final = 10_000


def project(maps: Iterable[Map], folder: Path) -> None:
    """Give pictures, numbers and pooled attributions to TensorBoard's projector.

    PyTorch's `add_embedding` would hold all pictures in memory, several times over.

    Args:
        maps: At least one.
        folder: Of TensorBoard's events.
    """
    told = []
    for found in maps:
        name = file_name(found.name + (found.sign or ""))
        place = Path("projector", name)
        (folder / place).mkdir(parents=True, exist_ok=True)
        chosen = thinned(len(found.rows), _MOST_PROJECTED)
        pictures, sprite = data_set_of(found), ""
        if pictures:
            side = _write_sprite(folder / place / "sprite.png", found, pictures, chosen)
            path = json.dumps(f"{place}/sprite.png", ensure_ascii=False)
            sprite = f"sprite {{ image_path: {path} {f'single_image_dim: {side} ' * 2}}}"
        with replacing(folder / place / "tensors.tsv") as part, part.open("w") as file:
            for of in chosen:
                file.write("\t".join(f"{value:.6g}" for value in found.vectors[of].tolist()) + "\n")
        _write_metadata(folder / place / "metadata.tsv", found, pictures, chosen)
        names = (f"{place}/tensors.tsv", f"{place}/metadata.tsv")
        paths = [json.dumps(text, ensure_ascii=False) for text in (name, *names)]
        keys = ("tensor_name", "tensor_path", "metadata_path")
        lines = [*(f"{key}: {path}" for key, path in zip(keys, paths, strict=True)), sprite]
        told.append("embeddings {\n  " + "\n  ".join(filter(None, lines)) + "\n}\n")
    with replacing(folder / "projector_config.pbtxt") as part:
        part.write_text("".join(told), encoding="utf-8")


def _write_sprite(path: Path, found: Map, pictures: Pictures, chosen: range) -> int:
    """Write all pictures small, in a square; return the side of each in pixels."""
    across = math.isqrt(len(chosen) - 1) + 1
    side = min(64, _SPRITE // across)
    sprite = Image.new("RGB", (across * side, across * side))
    for number, place in enumerate(chosen):
        picture = pictures[int(found.layout.pictures[place])]["picture"]
        small = to_image(interpolate(picture[None], (side, side), mode="area")[0])
        sprite.paste(small, (number % across * side, number // across * side))
    with replacing(path) as part:
        sprite.save(part, compress_level=1)
    return side


def _write_metadata(path: Path, found: Map, pictures: Pictures | None, chosen: range) -> None:
    keys = found.store.keys
    columns = {name: [f"{value:.4g}" for value in of] for name, of in found.columns.items()}
    if names := found.feature_names:
        columns["feature"] = [*names]
    if labels := labels_of(found, pictures):
        columns["label"] = labels
    with replacing(path) as part, part.open("w", encoding="utf-8") as file:
        file.write("\t".join(["picture", *columns]) + "\n")
        for place in chosen:
            texts = keys[int(found.layout.pictures[place])], *(of[place] for of in columns.values())
            # A tab or a line's end would begin another column or row.
            file.write("\t".join(" ".join(text.split()) for text in texts) + "\n")
