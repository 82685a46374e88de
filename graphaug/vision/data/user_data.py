"""Data of the user's own: ``my.py:photos`` on the command line is the data set ``photos`` of the file ``my.py``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from graphaug.errors import DataError, an
from graphaug.terminal.printable import printable
from graphaug.vision.data.decoding import to_rgb_image
from graphaug.vision.user_models import own, split_name

TWICE = 8
"""How many images are read twice, to see whether the data set gives the same ones each time."""


@dataclass
class Rows:
    """What was read: images ``(N, 3, H, W)`` uint8, labels ``(N,)`` or None, and "number: reason" of the rest."""

    images: Tensor
    labels: Tensor | None
    skipped: list[str] = field(default_factory=list)


def own_data(name: str) -> tuple[Any, Any]:
    """The training and the test data set that a name says; None for a test set that is to be split off.

    The name is of a data set, of a pair of them, or of a function that is called without arguments and returns that.

    Raises:
        DataError: there is no such name in the file, the call fails, or what comes out is no data set.
        ConfigError: there is no such file, or it cannot be run.

    """
    found = own(name, _is_dataset, DataError)
    train, test = found if _is_pair(found) else (found, None)
    for part in (train,) if test is None else (train, test):
        if not _is_dataset(part):
            missing = "has no length, or no numbers" if hasattr(part, "__iter__") else f"is {an(part)}"
            file, what = split_name(name)
            raise DataError(
                f"{what!r} of {str(file)!r} is no data set: it {missing}. A torch Dataset with __len__ and __getitem__ "
                "is expected, or a pair of them, for training and for testing."
            )
    return train, test


def read_rows(name: str, dataset: Any, size: int | None, strict: bool) -> Rows:
    """Every image of a data set, in its order.

    An entry is an image, or a tuple that begins with an image and its label. Images are PIL's; tensors ``(C, H, W)``
    or ``(H, W)``, and arrays ``(H, W, C)`` or ``(H, W)``, as torchvision reads them: uint8, or floating in [0, 1].
    Images of one size are kept as they are; of different ones the shorter side is resized to ``size``, and the centre
    cut out.

    Raises:
        DataError: an entry is something else, fails, or is not the same when it is asked for again; sizes differ and
            ``size`` is None; some entries have labels and some have none; nothing can be read.

    """
    count = len(dataset)
    _check_same_again(name, dataset, count)
    images: list[np.ndarray] = []
    labels: list[int | None] = []
    skipped: list[str] = []
    for number in range(count):
        try:
            image, label = _entry(name, number, _get(name, dataset, number))
        except OSError as error:  # a file that cannot be read or decoded
            skipped.append(printable(f"{name}[{number}]: {str(error) or type(error).__name__}"))
            continue
        images.append(image)
        labels.append(label)
    if skipped and (strict or not images):
        raise DataError(f"{len(skipped)} unreadable image(s), the first: {skipped[0]}.")
    if not images:
        raise DataError(f"{name!r} is empty.")
    if None in labels and any(label is not None for label in labels):
        without, with_one = labels.index(None), next(i for i, label in enumerate(labels) if label is not None)
        raise DataError(
            f"{name}[{with_one}] has a label, {name}[{without}] has none: give all of them one, or none."
        )
    pixels = torch.from_numpy(np.stack(_of_one_size(name, images, size)))
    return Rows(pixels, None if None in labels else torch.tensor(labels), skipped)


def numbered(parts: Sequence[Rows], named: Any) -> tuple[list[Tensor], tuple[str, ...]]:
    """The labels of all parts as 0, 1, …, and the names of the classes: ``named[label]``, or the label itself.

    Without labels there is one class. Labels that no image has are left out.

    Raises:
        DataError: a negative label, one part has labels and the other none, or a class is in one part only.

    """
    if all(part.labels is None for part in parts):
        return [torch.zeros(len(part.images), dtype=torch.int64) for part in parts], ("all",)
    if any(part.labels is None for part in parts):
        raise DataError("the training images have labels and the test images none, or the other way round.")
    found = [part.labels for part in parts if part.labels is not None]
    values = torch.cat(found).unique()
    if int(values[0]) < 0:
        raise DataError(f"a label is {int(values[0])}: numbers from 0 on are expected.")
    for labels in found:
        if missing := sorted(set(values.tolist()) - set(labels.tolist())):
            raise DataError(f"class {missing[0]} is in one of the training and the test set only.")
    names = list(named) if isinstance(named, (list, tuple)) and len(named) > int(values[-1]) else None
    classes = tuple(str(names[v]) if names else str(v) for v in values.tolist())
    return [torch.searchsorted(values, labels) for labels in found], classes


def _is_dataset(value: Any) -> bool:
    return (
        hasattr(value, "__len__")
        and hasattr(value, "__getitem__")
        and not isinstance(value, (str, bytes, dict))
    )


def _is_pair(value: Any) -> bool:
    """Whether this is a training and a test set, and not a data set of two images."""
    return isinstance(value, (tuple, list)) and len(value) == 2 and not any(map(_is_entry, value))


def _is_entry(value: Any) -> bool:
    image = value[0] if isinstance(value, tuple) and value else value
    return isinstance(image, (Image.Image, np.ndarray, Tensor))


def _get(name: str, dataset: Any, number: int) -> Any:
    try:
        return dataset[number]
    except OSError:
        raise
    except Exception as error:  # whatever a user's own code raises
        raise DataError(f"{name}[{number}] fails: {type(error).__name__}: {error}.") from error


def _check_same_again(name: str, dataset: Any, count: int) -> None:
    """Refuse random augmentations in the data set: one draw of them would be taken for the image."""
    for number in np.linspace(0, count - 1, min(count, TWICE)).astype(int).tolist():
        try:
            one, other = (_entry(name, number, _get(name, dataset, number))[0] for _ in range(2))
        except OSError:
            continue
        if one.shape != other.shape or (one != other).any():
            raise DataError(
                f"{name}[{number}] is another image each time it is asked for. Leave random transforms out of the data "
                "set: each image is read once, and the run makes its own views of it."
            )


def _entry(name: str, number: int, entry: Any) -> tuple[np.ndarray, int | None]:
    """The pixels ``(3, H, W)`` uint8 and the label of an entry."""
    image, label = (entry[0], entry[1] if len(entry) > 1 else None) if _is_labelled(entry) else (entry, None)
    where = f"{name}[{number}]"
    if label is not None:
        if isinstance(label, (Tensor, np.ndarray, np.generic)) and np.prod(label.shape) == 1:
            label = label.item()
        if isinstance(label, bool) or not isinstance(label, int):
            raise DataError(f"the label of {where} is {label!r}: a whole number is expected, or no label.")
    return _pixels(where, image), label


def _is_labelled(entry: Any) -> bool:
    return isinstance(entry, (tuple, list)) and len(entry) > 0


def _pixels(where: str, image: Any) -> np.ndarray:
    if isinstance(image, Image.Image):
        try:
            return np.asarray(to_rgb_image(image, image.format)).transpose(2, 0, 1)
        except ValueError as error:
            raise DataError(f"{where}: {error}.") from error
    if isinstance(image, Tensor):
        values = image.detach().cpu().numpy() if image.dtype != torch.bfloat16 else image.float().numpy()
        channels_first = values[None] if values.ndim == 2 else values
    elif isinstance(image, np.ndarray):
        values = image
        channels_first = values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0)
    else:
        raise DataError(
            f"{where} is {an(image)}: an image is expected (PIL, tensor or array), or an image and a label."
        )
    if channels_first.ndim != 3 or channels_first.shape[0] not in (1, 3) or 0 in channels_first.shape:
        order = "(C, H, W)" if isinstance(image, Tensor) else "(H, W, C)"
        raise DataError(
            f"{where} has the shape {tuple(values.shape)}: {order} with 1 or 3 channels is expected."
        )
    return np.broadcast_to(_bytes(where, channels_first), (3, *channels_first.shape[1:]))


def _bytes(where: str, values: np.ndarray) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    if not np.issubdtype(values.dtype, np.floating):
        raise DataError(f"{where} is of {values.dtype}: uint8 is expected, or floating in [0, 1].")
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # NaN too
        raise DataError(
            f"{where} has values from {low:.3g} to {high:.3g}: uint8 is expected, or floating in [0, 1]. Leave "
            "normalisation out of the data set: the run normalises its views."
        )
    rounded: np.ndarray = np.round(values.astype(np.float64) * 255).astype(np.uint8)
    return rounded


def _of_one_size(name: str, images: list[np.ndarray], size: int | None) -> list[np.ndarray]:
    shapes = {image.shape for image in images}
    if len(shapes) == 1:
        return images
    if size is None:
        one, other = sorted(shapes)[:2]
        raise DataError(
            f"the images of {name!r} have different sizes, {one[1]} × {one[2]} and {other[1]} × {other[2]} pixels: "
            "give size= (--size), to which they are brought."
        )
    return [_resized(image, size) for image in images]


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    whole = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    return np.asarray(ImageOps.fit(whole, (size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
