"""Batches of sentences in a few shapes only, so that a compiled step is compiled a few times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from graphaug.errors import DataError, InvalidOption


def widths(max_length: int, step: int = 8) -> tuple[int, ...]:
    """Return the lengths that batches are padded to: multiples of ``step``, and ``max_length``.

    Raises:
        InvalidOption: a number below 1.

    """
    if max_length < 1 or step < 1:
        raise InvalidOption(f"max_length and step must be at least 1, not {max_length} and {step}.")
    return (*range(step, max_length, step), max_length)


def pad(rows: Sequence[Sequence[int]], sizes: Sequence[int], pad_id: int) -> tuple[Tensor, Tensor]:
    """Pad rows on the right to the smallest of ``sizes`` that holds them all.

    Returns:
        ``(rows, size)`` ids, and the mask: 1 for a token, 0 for padding.

    Raises:
        DataError: a row is longer than the largest size.

    """
    longest = max(map(len, rows))
    size = min((size for size in sizes if size >= longest), default=None)
    if size is None:
        raise DataError(
            f"a sentence of {longest} tokens fits none of the lengths up to {max(sizes)}: truncate it."
        )
    ids = torch.full((len(rows), size), pad_id)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask


def epoch(count: int, batch_size: int, generator: torch.Generator | None = None) -> Iterator[list[int]]:
    """Indices of the batches of one epoch, in an order drawn from the generator.

    Sentences are not grouped by length, on which their negatives would depend. All batches are full; the sentences that
    remain at the end are left out of this epoch.

    Raises:
        InvalidOption: a batch of fewer than 2 sentences.
        DataError: fewer sentences than a batch.

    """
    if batch_size < 2:
        raise InvalidOption(f"a batch needs at least 2 sentences for its negatives, not {batch_size}.")
    if count < batch_size:
        raise DataError(
            f"batch_size={batch_size} is larger than the {count} sentences there are: give at most {count}."
        )
    order = torch.randperm(count, generator=generator).tolist()
    for start in range(0, count - batch_size + 1, batch_size):
        yield order[start : start + batch_size]
