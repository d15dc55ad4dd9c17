"""Picture files for tests: good ones, broken ones, and tar files of them."""

import io
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import sklearn
from PIL import Image

from mti_lightning.backbone import Preprocessing
from mti_lightning.data.decode import decode

PHOTOGRAPHS = Path(sklearn.__file__).parent / "datasets" / "images"
WHOLE = Preprocessing((32, 32), 1.0, "center", "bilinear")
GREYS = np.linspace(0, 1, 64)[None].repeat(8, 0)  # [8, 64], a ramp from left to right


def colours(rng, height=24, width=36) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def levels(path: Path) -> np.ndarray:
    """Return what a file decodes to, [H, W, 3] in 0..1."""
    return np.asarray(decode(path)).astype(float) / 255


def save_cut_off(path: Path, rng) -> None:
    """Write a picture whose header is whole and whose end is missing."""
    Image.fromarray(colours(rng, 64, 64)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def save_bomb(path: Path) -> None:
    """Write a small PNG that claims 40,000 x 40,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def write_tar(path: Path, members: dict[str, bytes], **options) -> Path:
    """Write members under whatever names, as tar does."""
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


SHARDED = [
    "shard-000.tar/0000.png",
    "shard-000.tar/0001.jpg",
    "shard-000.tar/0002.webp",
    "shard-001.tar/0003.png",
    "shard-001.tar/0004.jpg",
    "shard-001.tar/0005.webp",
    "shard-002.tar/0006.png",
]
