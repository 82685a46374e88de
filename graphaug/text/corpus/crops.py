"""Crops of sentences: each pass reads a span of its own instead of the whole sentence."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from graphaug.errors import InvalidOption


class Crops:
    """Draws a span of every sentence: ``share`` of its tokens one after the other, at least one.

    As the crops of SimCSE's Table 1 (Gao et al. 2021, section 3), but of both passes, each for itself, as in COCO-LM
    (Meng et al. 2021, arXiv:2102.08473). Special tokens at either end stay.

    Args:
        share: of the tokens between the special ones, in (0, 1]; rounded to whole tokens.
        special: ids of the tokens that open and close a sentence.

    Raises:
        InvalidOption: a share outside of (0, 1].

    Examples:
        >>> import torch
        >>> from graphaug.text.corpus.crops import Crops
        >>> Crops(0.5, {2, 3})([[2, 10, 11, 12, 13, 3]], torch.Generator().manual_seed(0))
        [[2, 10, 11, 3]]
    """

    def __init__(self, share: float, special: Collection[int]) -> None:
        if not 0 < share <= 1:
            raise InvalidOption(f"the share of a sentence that is read must be in (0, 1], not {share!r}.")
        self.share, self.special = share, frozenset(special)

    def __call__(self, rows: Sequence[Sequence[int]], generator: torch.Generator) -> list[list[int]]:
        """A span of each row; ``generator`` gives one number a row."""
        draws = torch.rand(len(rows), generator=generator, dtype=torch.float64).tolist()
        return [self._span(list(row), draw) for row, draw in zip(rows, draws, strict=True)]

    def _span(self, row: list[int], draw: float) -> list[int]:
        first, last = 0, len(row)
        while first < last and row[first] in self.special:
            first += 1
        while last > first and row[last - 1] in self.special:
            last -= 1
        count = last - first
        kept = max(1, round(self.share * count)) if count else 0
        start = first + int(draw * (count - kept + 1))
        return [*row[:first], *row[start : start + kept], *row[last:]]
