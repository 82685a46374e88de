"""Labelled images for pretraining and probing: digits, CIFAR-10/100, Fashion-MNIST, IDX files, folders of images.

A data set is uint8, in memory or mapped from a file, and is the same in every run: where one has no test split, a
stratified one is drawn with a fixed seed of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphaug.contrastive.runs.files import alone, make_folder
from graphaug.errors import DataError, InvalidOption, did_you_mean
from graphaug.terminal.printable import printable
from graphaug.vision.data.folder import Folder, read_folder, split_roots
from graphaug.vision.data.idx import PARTS, read_part
from graphaug.vision.data.image_cache import data_root, map_images
from graphaug.vision.data.splits import SPLIT_SEED, stratified_split
from graphaug.vision.data.user_data import numbered, own_data, read_rows
from graphaug.vision.user_models import is_own

NAMES = ("digits", "cifar10", "cifar100", "fashion-mnist")
"""The data sets known by name; others are a path behind ``idx:`` or one of `FOLDERS`."""

FOLDERS = {"folder:": True, "folder-as-stored:": False}
"""How a folder is spelled, and whether its images are turned as their EXIF orientation says."""


@dataclass(frozen=True)
class ImageSet:
    """Images ``(N, C, H, W)`` uint8, and labels ``(N,)`` int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class MappedSet(ImageSet):
    """Images that are the rows of a file, from ``first`` on; only to be read."""

    file: Path
    first: int

    def __reduce__(self) -> tuple[Any, ...]:
        # A process that is started for a run maps the file itself: the images would not fit into a pipe.
        return _mapped, (self.file, self.first, self.labels)


def _mapped(file: Path, first: int, labels: Tensor) -> MappedSet:
    return MappedSet(map_images(file)[first : first + len(labels)], labels, file, first)


@dataclass(frozen=True)
class ImageData:
    """A training and a test set with the names of their classes.

    ``view_size``: height and width in pixels that a network should see; ``mirror``: whether a mirrored image is of the
    same class (no for digits); ``skipped``: what could not be read, "path: reason"; ``validation``: images that are
    trained on and tested on by nobody, where some were held out of the training set.
    """

    name: str
    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    view_size: int
    mirror: bool = True
    skipped: tuple[str, ...] = ()
    validation: ImageSet | None = None

    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of the training images per channel, in units of [0, 1]."""
        mean, std = self._statistics
        return list(mean), list(std)

    @cached_property
    def _statistics(self) -> tuple[list[float], list[float]]:
        # In chunks: the float64 copy of a whole data set may not fit.
        images = self.train.images
        sums = torch.zeros(2, images.shape[1], dtype=torch.float64)
        for chunk in torch.split(images, max(1, min(1024, 2**24 // images[0].numel()))):
            x = chunk.double() / 255
            sums += torch.stack([x.sum((0, 2, 3)), x.square().sum((0, 2, 3))])
        mean, square = sums / (images.numel() / images.shape[1])
        std = (square - mean.square()).clamp(min=1e-12).sqrt()
        return mean.tolist(), std.clamp(min=1e-3).tolist()


def load(
    spec: str, *, root: str | os.PathLike[str] | None = None, size: int | None = None, strict: bool = False
) -> ImageData:
    """Load a data set.

    Args:
        spec: ``digits``, ``cifar10``, ``cifar100``, ``fashion-mnist``, ``idx:DIR`` (four IDX files, plain or gzipped,
            as MNIST has them), ``folder:PATH``, or ``folder-as-stored:PATH``, which leaves pixels as they lie in the
            file: EXIF orientation is not applied, as in torchvision's ImageFolder. Images from ``idx:`` are not
            mirrored for training: digits and letters come in such files. Or ``FILE.py:NAME``, the user's own, see
            `graphaug.vision.data.user_data`.
        root: where downloads are kept; by default ``$GRAPHAUG_DATA``, else ``~/.cache/graphaug``.
        size: height and width in pixels that images of a folder are brought to (default 32), and those of one's own if
            their sizes differ; and that a network sees.
        strict: refuse data with an unreadable image, instead of skipping it.

    Raises:
        DataError: an unknown name, no such folder, nothing in it, an unreadable image with ``strict``, or a data set
            that is neither on disk nor to be downloaded.
        InvalidOption: ``size`` is below 1.

    """
    if size is not None and size < 1:
        raise InvalidOption(f"the image size must be at least 1 pixel, not {size}.")
    if spec in (*FOLDERS, "idx:"):
        raise DataError(f"{spec} needs a path, such as {spec}images; {spec}. is the current directory.")
    for prefix in FOLDERS:
        if spec.startswith(prefix):
            return _folder(prefix, Path(spec.removeprefix(prefix)), size or 32, strict)
    if is_own(spec):
        return _own(spec, size, strict)
    if spec == "digits":
        return _digits(size or 16)
    if spec in ("cifar10", "cifar100"):
        return _cifar(spec, Path(root) if root is not None else data_root(), size or 32)
    if spec == "fashion-mnist":
        return _fashion_mnist(Path(root) if root is not None else data_root(), size or 28)
    if spec.startswith("idx:"):
        return _idx(Path(spec.removeprefix("idx:")), size)
    if Path(spec).is_dir():
        raise DataError(f"{spec!r} is a folder: write 'folder:{spec}'.")
    raise DataError(
        f"no data set is called {spec!r}.{did_you_mean(spec, NAMES)} There are {', '.join(NAMES)}, idx:DIR, "
        "folder:PATH, and your own as FILE.py:NAME."
    )


def fewer(data: ImageData, count: int | None) -> ImageData:
    """The data with ``count`` training images, the same share of every class; all of them with None.

    Which ones does not depend on a run's seed; a smaller number is a part of a larger one.

    Raises:
        DataError: there are not so many.

    """
    if count is None or count == len(data.train):
        return data
    if count > len(data.train):
        most = len(data.train)
        raise DataError(
            f"{data.name} has {most} training images, not {count}: ask for {most} or fewer (--images)."
        )
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    place = torch.empty(len(data.train), dtype=torch.float64)
    for label in torch.unique(data.train.labels):
        members = (data.train.labels == label).nonzero()[:, 0]
        ranks = torch.randperm(len(members), generator=generator)
        place[members] = (ranks.double() + 0.5) / len(members)
    chosen = place.argsort(stable=True)[:count].sort().values
    # indexed first: what is mapped from a file is copied, and only as much as is kept
    train = ImageSet(data.train.images[chosen], data.train.labels[chosen])
    return replace(data, train=train)


def _split(images: Tensor, labels: Tensor, classes: Sequence[str]) -> tuple[ImageSet, ImageSet]:
    train, test = stratified_split(labels, classes)
    return ImageSet(images[train], labels[train]), ImageSet(images[test], labels[test])


def _digits(view_size: int) -> ImageData:
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.from_numpy(np.round(raw.images * (255 / 16)).astype(np.uint8))[:, None]
    classes = tuple("0123456789")
    train, test = _split(images, torch.from_numpy(raw.target).long(), classes)
    return ImageData("digits", train, test, classes, view_size, mirror=False)


def _cifar(name: str, root: Path, view_size: int) -> ImageData:
    from torchvision.datasets import CIFAR10, CIFAR100

    dataset = CIFAR10 if name == "cifar10" else CIFAR100

    def pixels(data: Any) -> Tensor:
        return torch.from_numpy(data).permute(0, 3, 1, 2).contiguous()

    return _of_torchvision(dataset, name, dataset.base_folder, root, view_size, pixels)


def _fashion_mnist(root: Path, view_size: int) -> ImageData:
    from torchvision.datasets import FashionMNIST

    def pixels(data: Any) -> Tensor:
        return data[:, None].contiguous()  # type: ignore[no-any-return]

    return _of_torchvision(FashionMNIST, "fashion-mnist", "FashionMNIST", root, view_size, pixels)


def _of_torchvision(
    dataset: Any, name: str, folder: str, root: Path, view_size: int, pixels: Callable[[Any], Tensor]
) -> ImageData:
    """Both parts of a data set of torchvision's; ``pixels`` makes ``(N, C, H, W)`` of how it holds its images."""

    def part(train: bool) -> tuple[ImageSet, tuple[str, ...]]:
        raw = _downloaded(dataset, name, folder, root, train)
        return ImageSet(pixels(raw.data), torch.as_tensor(raw.targets).long()), tuple(raw.classes)

    train, classes = part(True)
    return ImageData(name, train, part(False)[0], classes, view_size)


def _downloaded(dataset: Any, name: str, folder: str, root: Path, train: bool) -> Any:
    """One part of a data set of torchvision's, downloaded where it is not on disk."""
    try:
        try:
            return dataset(str(root), train=train)
        except RuntimeError:  # it is not there, or not whole
            make_folder(root)
            # The processes of a run come here together: the first one downloads, to the others' benefit.
            with alone(root / f"{name}.lock"):
                return dataset(str(root), train=train, download=True)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a bad checksum is a RuntimeError
        raise DataError(
            f"{name} is not in {str(root)!r} and could not be downloaded ({error}). Put its folder {folder!r} there "
            "(GRAPHAUG_DATA names another place), or use digits, idx:DIR or folder:PATH."
        ) from error


def _idx(path: Path, size: int | None) -> ImageData:
    train, test = (ImageSet(*read_part(path, part)) for part in PARTS)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"{str(path)!r}: training images of {(*train.images.shape[2:],)} pixels and test images of "
            f"{(*test.images.shape[2:],)}."
        )
    count = 1 + int(max(train.labels.max(), test.labels.max()))
    classes = tuple(map(str, range(count)))
    return ImageData(f"idx:{path}", train, test, classes, size or train.images.shape[-1], mirror=False)


def _folder(prefix: str, path: Path, size: int, strict: bool) -> ImageData:
    orient = FOLDERS[prefix]
    train_root, test_root = split_roots(path)
    split = stratified_split if test_root is None else None
    found = read_folder(train_root, size, strict, split, orient)
    name, train = f"{prefix}{path}", _rows(found, 0, found.train)
    if test_root is None:
        test = _rows(found, found.train, len(found.labels))
        return ImageData(name, train, test, found.classes, size, skipped=found.skipped)
    other = read_folder(test_root, size, strict, orient=orient)
    if other.classes != found.classes:
        odd = sorted(set(found.classes) ^ set(other.classes))
        raise DataError(
            f"{str(train_root)!r} and {str(test_root)!r} hold different classes: {printable(', '.join(odd))} is in one "
            "only."
        )
    test = _rows(other, 0, len(other.labels))
    return ImageData(name, train, test, found.classes, size, skipped=found.skipped + other.skipped)


def _own(spec: str, size: int | None, strict: bool) -> ImageData:
    train, test = own_data(spec)
    rows = [read_rows(spec, part, size, strict) for part in (train, test) if part is not None]
    labels, classes = numbered(rows, getattr(train, "classes", None))
    if test is None:
        parts = _split(rows[0].images, labels[0], classes)
    else:
        parts = ImageSet(rows[0].images, labels[0]), ImageSet(rows[1].images, labels[1])
    view_size = size or min(rows[0].images.shape[-2:])
    skipped = tuple(line for part in rows for line in part.skipped)
    return ImageData(spec, *parts, classes, view_size, skipped=skipped)


def _rows(folder: Folder, first: int, end: int) -> ImageSet:
    images, labels = folder.images[first:end], folder.labels[first:end]
    return ImageSet(images, labels) if folder.file is None else MappedSet(images, labels, folder.file, first)
