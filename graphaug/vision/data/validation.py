"""Images to choose by: a part of the training images that no encoder is trained on, and no test reads."""

from __future__ import annotations

from dataclasses import replace

from graphaug.errors import DataError
from graphaug.vision.data.images import ImageData, ImageSet
from graphaug.vision.data.splits import stratified_split

VALIDATION_SEED = 1
"""Of the draw; not the seed of a run, so that all runs of a sweep hold out the same images."""


def held_out(data: ImageData, share: float) -> ImageData:
    """The data with a share of the training images of every class as ``validation``; with 0 as they are.

    Args:
        data: whose training images become fewer.
        share: in [0, 1); at least one image of every class is held out, and one is left.

    Raises:
        DataError: a class has a single image, there are no labels to choose by, or some are held out already.

    """
    if not share:
        return data
    if data.validation is not None:
        raise DataError(
            f"{data.name} has {len(data.validation)} validation images already: leave out validation={share!r}."
        )
    if len(data.classes) < 2:
        raise DataError(
            f"the images of {data.name} have no labels: there is no accuracy on held-out ones to choose by. Leave out "
            "validation."
        )
    labels = data.train.labels
    kept, chosen = stratified_split(labels, data.classes, share, VALIDATION_SEED)
    train, validation = (ImageSet(data.train.images[rows], labels[rows]) for rows in (kept, chosen))
    return replace(data, train=train, validation=validation)
