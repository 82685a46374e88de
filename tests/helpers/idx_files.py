"""IDX files, written by the format's own description."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np


def idx(values: np.ndarray, kind: int = 8) -> bytes:
    head = struct.pack(">BBBB", 0, 0, kind, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
    return head + values.astype(np.uint8).tobytes()


def write_idx(
    folder: Path, zipped: bool = False, train: int = 40, test: int = 10, seed: int = 0
) -> dict[str, np.ndarray]:
    """Noise of 8×8 pixels in four classes, in turns; gives the images of each part."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    found = {}
    for part, count in (("train", train), ("t10k", test)):
        found[part] = generator.integers(0, 256, (count, 8, 8))
        for name, values in (
            (f"{part}-images-idx3-ubyte", found[part]),
            (f"{part}-labels-idx1-ubyte", np.arange(count) % 4),
        ):
            content = idx(values)
            (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(content) if zipped else content)
    return found
