"""What graphs call where rows are skipped: which are kept, their part of a value, and zeros for the others.

What is closed may give None in a call where the example had a tensor, as a mask function does where nothing is masked:
of nothing there is no part, and None stays None.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graphaug.augment.choices import check_probability
from graphaug.augment.rows import Rows
from graphaug.errors import BatchError
from graphaug.surgery.called.plain import where_counted


class KeptRows(nn.Module):
    """Draws the rows that a branch runs on: ``max(1, round((1 - rate) * rows))`` of them, in random order.

    Args:
        rate: the share of rows that is skipped, in [0, 1).
        place: where the rows lie in the value that it is given.
    """

    def __init__(self, rate: float, place: Rows) -> None:
        super().__init__()
        self.spelled = repr(check_probability("rate", rate))  # as text: see `Augmentation._subset`
        self.place = place
        self.kept: Tensor | None = None

    @property
    def rate(self) -> float:
        """The share of rows that is skipped."""
        return float(self.spelled)

    def draw(self, rows: int, device: torch.device) -> Tensor:
        """The indices of the kept ones of so many rows."""
        return torch.randperm(rows, device=device)[: max(1, round((1 - self.rate) * rows))]

    def forward(self, value: Tensor) -> Tensor:
        """Draw for a value with rows; indices of the kept ones."""
        rows = self.place.count(value.shape)
        if rows < 1:
            raise BatchError("rows are skipped of a batch, and this one has 0 rows.")
        kept = self.draw(rows, value.device)
        if not torch.compiler.is_exporting():
            self.kept = kept
        return kept

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "kept": None}

    def extra_repr(self) -> str:
        """Show the rate."""
        return f"rate={self.rate:g}"


def taken(
    value: Tensor | None, kept: Tensor, dim: int, outer: int, inner: int, whole: Tensor, at: int
) -> Tensor | None:
    """The kept rows of a value; dimension ``at`` of an input, ``whole``, counts all of them.

    Raises:
        BatchError: the value has not as many slices of each.
    """
    if value is None:
        return None
    place = Rows(dim, outer, inner)
    place.check(value.shape, whole.shape[at])
    return place.take(value, kept)


def counted(value: Any, kinds: Any, kept: Tensor, whole: Tensor, dim: int, slices: int) -> Any:
    """A plain value for the kept rows; ``kinds`` says which of its numbers count rows ("sum")."""

    def of_kept(number: int) -> int:
        return number // (whole.shape[dim] // slices) * kept.shape[0]

    return where_counted(kinds, "sum", of_kept, value)


def put_back(
    part: Tensor | None, kept: Tensor, whole: Tensor, at: tuple[int, int, int], to: tuple[int, int, int]
) -> Tensor | None:
    """Zeros of all rows, with the kept ones in their places, times all rows by kept ones.

    Args:
        part: the branch's result for the kept rows.
        kept: which they are.
        whole: a value of all rows.
        at: (dim, outer, inner) of the rows in it.
        to: of those in ``part``.
    """
    if part is None:
        return None
    dim, outer, inner = to
    Rows(dim, outer, inner).check(part.shape, kept.shape[0])
    rows = whole.shape[at[0]] // (at[1] * at[2])
    apart = part.unflatten(dim, (outer, -1, inner))
    shape = [rows if i == dim + 1 else n for i, n in enumerate(apart.shape)]
    filled: Tensor = apart.new_zeros(shape).index_copy(dim + 1, kept, apart * (rows / kept.shape[0]))
    back: Tensor = filled.flatten(dim, dim + 2)
    return back
