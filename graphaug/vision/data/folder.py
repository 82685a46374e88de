"""Images in folders, one folder a class: torchvision's ImageFolder layout, decoded once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from graphaug.errors import DataError, did_you_mean
from graphaug.vision.data.decoding import decoded
from graphaug.vision.data.image_cache import VERSION, Contents, cache_root, cached

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""What counts as an image, as for torchvision's ImageFolder; other files are not looked at."""

TEST_NAMES = ("test", "val", "valid", "validation")
"""What the test set beside ``train`` may be called, the first that is there."""

SHOWN = 5
"""How many unreadable files an error names; the rest are counted."""

Split = Callable[[Tensor, Sequence[str]], tuple[Tensor, Tensor]]
"""Labels, and the classes' names → indices of a training and of a test set, sorted."""


@dataclass(frozen=True)
class Folder:
    """What a folder holds: images ``(N, 3, size, size)`` uint8, of which the first ``train`` are for training.

    ``skipped``: "path: reason" for each unreadable file. ``file``: what the images are mapped from, None where they are
    in memory.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    train: int
    skipped: tuple[str, ...]
    file: Path | None


def split_roots(path: Path) -> tuple[Path, Path | None]:
    """The folders of the training and the test set below ``path``.

    ``PATH/train/CLASS/…`` gives two with one of `TEST_NAMES` beside it, and itself and None without any;
    ``PATH/CLASS/…`` gives ``path`` and None, also if a class is called ``train``.

    Raises:
        DataError: there is no such folder, or beside ``train/CLASS/`` there are folders of other names only.

    """
    if not path.is_dir():
        siblings = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        what = "is a file, not a folder" if path.exists() else "does not exist"
        raise DataError(f"data folder {str(path)!r} {what}.{did_you_mean(path.name, siblings)}")
    names = _folders(path)
    if "train" not in names or not _folders(path / "train"):
        return path, None
    for name in TEST_NAMES:
        if name in names:
            return path / "train", path / name
    others = [name for name in names if name != "train"]
    if others:
        raise DataError(
            f"{str(path)!r} holds train/ with class folders in it, and beside it {', '.join(others)}: call the test "
            f"set one of {', '.join(TEST_NAMES)}, or leave train/ alone, a part of which is then for testing."
        )
    return path / "train", None


def _folders(path: Path) -> list[str]:
    """The folders in a folder, hidden ones left out, by name.

    Raises:
        DataError: it cannot be listed.

    """
    try:
        return sorted(e.name for e in os.scandir(path) if _is_folder(e) and not e.name.startswith("."))
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror or error}.") from error


def read_folder(
    root: Path, size: int, strict: bool, split: Split | None = None, orient: bool = True
) -> Folder:
    """Read ``root/CLASS/…`` from the cache, or decode it into the cache.

    Images are converted to RGB, the shorter side is resized to ``size`` pixels, and the centre is cut out.

    Args:
        root: the folder.
        size: height and width in pixels.
        strict: refuse unreadable images, instead of skipping them.
        split: which images are for training; all, by default. Training and test images are in the order of names.
        orient: turn images as their EXIF orientation says.

    Raises:
        DataError: no class folders, no readable image in one of them, an unreadable image while ``strict``, or what
            ``split`` raises.

    """
    listing = list_folder(root)
    images, contents, file = cached(
        _place(root.resolve(), size, split, orient),
        listing.digest,
        lambda: _Decoding(listing, size, split, orient),
    )
    if strict and contents.skipped:
        raise DataError(
            f"{len(contents.skipped)} unreadable image(s): {_some(contents.skipped)}. Without strict they are skipped."
        )
    labels = torch.tensor(contents.labels)
    return Folder(images, labels, listing.classes, contents.train, tuple(contents.skipped), file)


def _place(root: Path, size: int, split: Split | None, orient: bool) -> Path:
    """The directory in the cache: named for a reader, told apart by a checksum."""
    key = f"{root}\0{size}\0{split is not None}\0{orient}\0{VERSION}".encode(errors="surrogateescape")
    return cache_root() / f"{root.name[:40]}-{size}-{hashlib.sha256(key).hexdigest()[:16]}"


@dataclass(frozen=True)
class Listing:
    """The image files of a folder in the order of names, the class of each, and a checksum of it all."""

    root: Path
    classes: tuple[str, ...]
    files: list[Path]
    labels: list[int]
    digest: str


def list_folder(root: Path) -> Listing:
    """List ``root/CLASS/…``; the checksum is of names, sizes and times of modification.

    Links are followed. Hidden folders, whose names begin with a dot, are not looked at: what a notebook server or a
    file manager leaves there are copies.

    Raises:
        DataError: no class folders, one without a file that may be an image, or a folder that cannot be listed.

    """
    classes = tuple(_folders(root))
    if not classes:
        raise DataError(
            f"{str(root)!r} holds no class folders: images are expected in {str(root / 'CLASS')!r}, one folder a "
            "class. Hidden folders do not count."
        )
    files: list[Path] = []
    labels: list[int] = []
    digest = hashlib.sha256("\0".join(classes).encode(errors="surrogateescape"))
    for label, name in enumerate(classes):
        before = len(files)
        for file in sorted(_images_below(root / name)):
            found = _state(file)
            line = f"\n{file.relative_to(root)}\0{found.st_size}\0{found.st_mtime_ns}"
            digest.update(line.encode(errors="surrogateescape"))
            files.append(file)
            labels.append(label)
        if len(files) == before:
            raise DataError(
                f"{str(root / name)!r} holds no image, and would be a class of none: remove the folder, or put images "
                f"into it. Files that count end in {', '.join(EXTENSIONS)}."
            )
    return Listing(root, classes, files, labels, digest.hexdigest())


def _images_below(folder: Path, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Path]:
    """The files that may be images in a folder and in those below it, links to folders included, in any order.

    A link to a folder that it lies in would lead round for ever; what is there is listed without it. A link to nothing,
    or to itself, is listed too: it is an image that cannot be read, and not one that was never there.

    Raises:
        DataError: a folder cannot be listed.

    """
    try:
        state = folder.stat()
        entries = list(os.scandir(folder))
    except OSError as error:
        raise DataError(f"{str(folder)!r} cannot be read: {error.strerror or error}.") from error
    above |= {(state.st_dev, state.st_ino)}
    for entry in entries:
        if _is_folder(entry):
            inner = os.stat(entry.path)
            if not entry.name.startswith(".") and (inner.st_dev, inner.st_ino) not in above:
                yield from _images_below(Path(entry.path), above)
        elif Path(entry.name).suffix.lower() in EXTENSIONS and (_dangles(entry) or entry.is_file()):
            yield Path(entry.path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Not so a link that leads to itself, of which the system asks no more than that."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _dangles(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)


def _state(file: Path) -> os.stat_result:
    """Of the file, or of a link to nothing."""
    try:
        return file.stat()
    except OSError:
        return file.lstat()


class _Decoding:
    """The readable images of a listing, the training images first.

    Which they are depends on which can be read. That is not known before: they come in the order that is right if all
    can be, which `settle` corrects.
    """

    def __init__(self, listing: Listing, size: int, split: Split | None, orient: bool) -> None:
        self.listing, self.size, self.split, self.orient = listing, size, split, orient
        self.most = len(listing.files)
        try:
            self.order = self._order(range(self.most))[0]
        except DataError:  # `settle` has more to say, as it knows what could be read
            self.order = list(range(self.most))
        self.read: list[int] = []
        self.errors: dict[int, str] = {}

    def __iter__(self) -> Iterator[np.ndarray]:
        images = decoded([self.listing.files[number] for number in self.order], self.size, self.orient)
        for number, image in zip(self.order, images, strict=True):
            if isinstance(image, DataError):
                self.errors[number] = str(image)
            else:
                self.read.append(number)
                yield image

    def settle(self) -> tuple[Contents, Sequence[int] | None]:
        """The labels of what was read, and where it belongs."""
        readable = sorted(self.read)
        self._check_classes(readable)
        order, train = self._order(readable)
        skipped = [self.errors[number] for number in sorted(self.errors)]
        contents = Contents([self.listing.labels[number] for number in order], train, skipped)
        if order == self.read:
            return contents, None
        rows = {number: row for row, number in enumerate(self.read)}
        return contents, [rows[number] for number in order]

    def _order(self, numbers: Sequence[int]) -> tuple[list[int], int]:
        """Numbers of files in the order of their rows, and how many of them are for training."""
        if self.split is None:
            return list(numbers), len(numbers)
        labels = torch.tensor([self.listing.labels[number] for number in numbers])
        train, test = self.split(labels, self.listing.classes)
        return [numbers[i] for i in torch.cat([train, test]).tolist()], len(train)

    def _check_classes(self, readable: Sequence[int]) -> None:
        found = {self.listing.labels[number] for number in readable}
        for label, name in enumerate(self.listing.classes):
            if label not in found:
                errors = [self.errors[n] for n in sorted(self.errors) if self.listing.labels[n] == label]
                raise DataError(
                    f"{str(self.listing.root / name)!r} holds no readable image. "
                    f"All {len(errors)} could not be read: {_some(errors)}."
                )


def _some(skipped: Sequence[str]) -> str:
    more = f" and {len(skipped) - SHOWN} more" if len(skipped) > SHOWN else ""
    return "; ".join(skipped[:SHOWN]) + more
