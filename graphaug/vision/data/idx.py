"""IDX files, the format of MNIST and its successors: four of them, plain or gzipped, are a data set."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from graphaug.errors import DataError

PARTS = {"train": "train", "test": "t10k"}
"""How the names of the files of each part begin."""

_BYTES = 8
"""The code of unsigned bytes, the only type that images and labels are stored in."""


def read_idx(path: Path) -> Tensor:
    """The uint8 array of an IDX file: two zero bytes, the type, the number of dimensions, their sizes, the values.

    Raises:
        DataError: it cannot be read, is of another type, or is not as long as it says.

    """
    try:
        raw = path.read_bytes()
        content = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{str(path)!r} cannot be read: {error}.") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _BYTES:
        raise DataError(f"{str(path)!r} is no IDX file of bytes.")
    start = 4 + 4 * content[3]
    shape = [int(n) for n in np.frombuffer(content[4 : min(start, len(content) // 4 * 4)], dtype=">u4")]
    if len(shape) != content[3] or len(content) != start + math.prod(shape):
        raise DataError(
            f"{str(path)!r} is damaged: it has {len(content)} bytes, which its head does not say."
        )
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape).copy())


def read_part(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images ``(N, 1, H, W)`` uint8 and labels ``(N,)`` int64 of the ``"train"`` or ``"test"`` part in a folder.

    Raises:
        DataError: a file is missing or damaged, or images and labels are not equally many.

    """
    images = read_idx(_file(folder, f"{PARTS[part]}-images-idx3-ubyte"))
    labels = read_idx(_file(folder, f"{PARTS[part]}-labels-idx1-ubyte"))
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or not len(labels):
        raise DataError(
            f"{str(folder)!r}: images of the shape {(*images.shape,)} and labels of {(*labels.shape,)} in the {part} "
            "part are no data set: (N, H, W) and (N,) are needed."
        )
    return images[:, None], labels.long()


def _file(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(
        f"{str(folder)!r} has no {name}, nor that with .gz. Four files make a data set: train-images-idx3-ubyte, "
        "train-labels-idx1-ubyte and the same with t10k. Fashion-MNIST's authors give them at "
        "github.com/zalandoresearch/fashion-mnist; 'fashion-mnist' in the place of 'idx:DIR' downloads them."
    )
