"""Decoded images in a file that is mapped into memory: written once, read by every later run.

An entry is two files: ``DIGEST.npy`` with the images, and ``DIGEST.json`` with what else is known of them. The digest
is that of the listing they were made from, so an entry is never stale, only unused; the second file, written last, is
what makes it one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import torch
from torch import Tensor

from graphaug.contrastive.runs.files import PART, alone, make_folder, write_file, write_text
from graphaug.errors import DataError

VERSION = 2
"""Of the format and of the decoding; entries of another version are not looked at."""

SAMPLED = 64
"""How many images the checksum covers, evenly spread: reading all of them would cost what the cache saves."""


class CacheUnusable(UserWarning):
    """Decoded images cannot be kept on the disk; they are in memory, for this run only."""


@dataclass(frozen=True)
class Contents:
    """What is known of decoded images.

    ``labels``: one for each; ``train``: so many, the first, are for training; ``skipped``: "path: reason" of what could
    not be read.
    """

    labels: list[int]
    train: int
    skipped: list[str]


class Source(Protocol):
    """Images to be kept: at most ``most``, of ``size`` × ``size`` pixels; ``settle`` is called behind the last."""

    most: int
    size: int

    def __iter__(self) -> Iterator[np.ndarray]:
        """The images, ``(3, size, size)`` uint8 each."""

    def settle(self) -> tuple[Contents, Sequence[int] | None]:
        """What they are, and in which order they are wanted, if not in theirs."""


def data_root() -> Path:
    """Where data are kept: ``$GRAPHAUG_DATA``, else ``~/.cache/graphaug``."""
    return Path(os.environ.get("GRAPHAUG_DATA") or Path.home() / ".cache" / "graphaug")


def cache_root() -> Path:
    """Where decoded images are kept: ``$GRAPHAUG_CACHE``, else ``folders`` beside other data."""
    return Path(os.environ.get("GRAPHAUG_CACHE") or data_root() / "folders")


def cached(folder: Path, digest: str, make: Callable[[], Source]) -> tuple[Tensor, Contents, Path | None]:
    """Find decoded images in the cache, or decode them into it.

    Args:
        folder: of the cache, for all listings of one data folder at one size; entries of other listings are removed.
        digest: of the listing.
        make: gives the images, where there is no undamaged entry.

    Returns:
        ``(N, 3, size, size)`` uint8 images, what is known of them, and the file that they are mapped from: None, with a
        warning (`CacheUnusable`), if the cache cannot be written, and they are in memory.

    Raises:
        DataError: what ``settle`` raises.

    """
    entry = _Entry(folder / f"{digest}.npy", folder / f"{digest}.json")
    found = entry.find()
    if found is None:
        try:
            make_folder(folder)
            # Where files cannot be locked, two processes make the same entry, and the last one counts.
            with alone(folder / "lock") as locked:
                for left in folder.glob(PART + "*") if locked else ():
                    with suppress(OSError):
                        left.unlink()  # of a process that was killed: no live one is here
                found = entry.find()  # another process may just have made it
                if found is None:
                    entry.write(make())
                    found = entry.find()
            if found is None:
                raise OSError(errno.EIO, f"{entry.images} is not what was written")
        except OSError as error:  # a RunDirectoryError is one
            warnings.warn(
                f"the images are decoded into memory, for this run only, as {str(folder)!r} cannot keep them: "
                f"{str(error).rstrip('.')}. GRAPHAUG_CACHE names another directory.",
                CacheUnusable,
                stacklevel=2,
            )
            return *_in_memory(make()), None
    return *found, entry.images


def map_images(file: Path) -> Tensor:
    """The images of a file of the cache, ``(N, 3, size, size)`` uint8, to be read only.

    Raises:
        DataError: there is no such file, or it is not whole.

    """
    try:
        # Not copy-on-write, which Linux counts as memory: a file larger than that could not be mapped.
        array = np.lib.format.open_memmap(file, mode="r")
        whole = array.ndim == 4 and file.stat().st_size == array.offset + array.nbytes
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{str(file)!r} cannot be read: {error}.") from error
    if array.dtype != np.uint8 or not whole:
        raise DataError(f"{str(file)!r} is damaged.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch knows no tensors that are only read
        return torch.from_numpy(array)


@dataclass(frozen=True)
class _Entry:
    """The two files of an entry."""

    images: Path
    index: Path

    def find(self) -> tuple[Tensor, Contents] | None:
        """What the entry holds; None if there is none, or if it is damaged."""
        try:
            index = json.loads(self.index.read_text(encoding="utf-8"))
            contents = Contents(index["labels"], index["train"], index["skipped"])
            images = map_images(self.images)
            good = len(images) == len(contents.labels) and _checksum(images) == index["sample_sha256"]
        except (OSError, ValueError, KeyError, TypeError):  # a DataError is a ValueError
            return None
        return (images, contents) if good else None

    def write(self, source: Source) -> None:
        """Write the files, the index last.

        Raises:
            OSError: the disk is full, or cannot be written.
            DataError: what ``settle`` raises.

        """
        needed, free = source.most * 3 * source.size**2, shutil.disk_usage(self.images.parent).free
        if needed > free:
            raise OSError(errno.ENOSPC, f"{needed:,} bytes are needed, and {free:,} are free")
        settled: list[Contents] = []

        def write(path: Path) -> None:
            _write_rows(path, source, source.most, source.size)
            contents, order = source.settle()
            settled.append(contents)
            if order is not None:
                rows = map_images(path).numpy()
                sorted_path = path.with_name(path.name + "-sorted")
                try:
                    _write_rows(sorted_path, (rows[row] for row in order), len(order), source.size)
                    os.replace(sorted_path, path)
                finally:
                    sorted_path.unlink(missing_ok=True)

        write_file(self.images, write)
        index = {**asdict(settled[0]), "sample_sha256": _checksum(map_images(self.images))}
        write_text(self.index, json.dumps(index))
        for other in self.index.parent.iterdir():
            if other.suffix in (".npy", ".json") and other.stem != self.index.stem:
                other.unlink(missing_ok=True)


def _in_memory(source: Source) -> tuple[Tensor, Contents]:
    images = np.empty((source.most, 3, source.size, source.size), np.uint8)
    count = 0
    for count, image in enumerate(source, 1):
        images[count - 1] = image
    contents, order = source.settle()
    return torch.from_numpy(images[:count] if order is None else images[order]), contents


def _write_rows(path: Path, rows: Iterable[np.ndarray], most: int, size: int) -> None:
    # With plain writes a full disk is an error; through a mapping it would be a SIGBUS.
    count = 0
    with open(path, "wb") as file:
        _write_header(file, most, size)
        for row in rows:
            file.write(row.data)
            count += 1
        file.seek(0)
        _write_header(
            file, count, size
        )  # of the same length: NumPy leaves room for the first dimension to grow


def _write_header(file: BinaryIO, count: int, size: int) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, 3, size, size)}
    np.lib.format.write_array_header_1_0(file, header)


def _checksum(images: Tensor) -> str:
    rows = np.linspace(0, len(images) - 1, min(len(images), SAMPLED)).astype(int)
    digest = hashlib.sha256(str(tuple(images.shape)).encode())
    for row in rows:
        digest.update(images.numpy()[row].data)
    return digest.hexdigest()
