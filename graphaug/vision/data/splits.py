"""Which images are for training and which for testing, where a data set does not say."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from graphaug.errors import DataError

SPLIT_SEED = 0
"""Seed of the train/test split of data without one; not the seed of a run, so that runs compare."""


def stratified_split(
    labels: Tensor, classes: Sequence[str] = (), test_share: float = 0.2, seed: int = SPLIT_SEED
) -> tuple[Tensor, Tensor]:
    """Indices of a training and a test set, with ``test_share`` of every class in the second, at least one image.

    Args:
        labels: ``(N,)`` class numbers.
        classes: their names, for the error.
        test_share: in (0, 1).
        seed: of the draw; the same split for the same labels and seed.

    Returns:
        Two sorted index tensors that share nothing and together are all N.

    Raises:
        DataError: a class has a single image.

    """
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in torch.unique(labels):
        members = (labels == label).nonzero()[:, 0]
        if len(members) < 2:
            name = repr(classes[int(label)]) if classes else int(label)
            raise DataError(f"class {name} has one image: it cannot be both trained on and tested.")
        count = min(max(1, round(test_share * len(members))), len(members) - 1)
        held_out[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]
