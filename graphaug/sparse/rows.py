"""Some rows of the values that a prefix takes, in the memory format of the whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def take(values: list[Any], dimensions: tuple[int | None, ...], rows: Tensor, count: int) -> list[Any]:
    """The given rows of every value that has rows, once of one that is there twice.

    A mask that broadcasts over them stays whole.
    """
    taken: list[Any] = []
    for i, (value, dimension) in enumerate(zip(values, dimensions, strict=True)):
        if dimension is None or not isinstance(value, Tensor) or value.shape[dimension] != count:
            taken.append(value)
            continue
        before = [taken[j] for j in range(i) if values[j] is value and dimensions[j] == dimension]
        taken.append(before[0] if before else rows_of(value, dimension, rows))
    return taken


def rows_of(value: Tensor, dimension: int, index: Tensor) -> Tensor:
    """Some rows of a tensor, in its own memory format: ``index_select`` alone gives a contiguous one."""
    return like(value.index_select(dimension, index), value)


def like(chosen: Tensor, value: Tensor) -> Tensor:
    """A tensor in the memory format of another: joining and selecting give contiguous ones."""
    if (
        value.dim() == 4
        and not value.is_contiguous()
        and value.is_contiguous(memory_format=torch.channels_last)
    ):
        return chosen.contiguous(memory_format=torch.channels_last)
    return chosen
