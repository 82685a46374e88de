"""What graphs call where rows become views: values and sizes of so many times the rows."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from graphaug.augment.rows import Rows
from graphaug.errors import InvalidOption
from graphaug.surgery.called.plain import where_counted


def repeated(value: Tensor | None, dim: int, outer: int, times: int) -> Tensor | None:
    """The samples of a value so many times, the whole batch behind itself: ``[h; …; h]``; None stays None.

    Args:
        value: with its samples along ``dim``, the batch ``outer`` times behind itself already.
        dim: the dimension.
        outer: see `Rows`.
        times: how often.
    """
    return None if value is None else Rows(dim, outer).repeated(value, times)


def multiplied(value: Any, kinds: Any, times: int) -> Any:
    """A plain value for so many times the rows; ``kinds`` says which of its numbers count them ("sum")."""
    return where_counted(kinds, "sum", lambda number: number * times, value)


def check_views(views: object) -> int:
    """Return the number of views.

    Raises:
        InvalidOption: it is no whole number of at least 1.
    """
    if isinstance(views, bool) or not isinstance(views, int) or views < 1:
        raise InvalidOption(f"views={views!r}: give a whole number of views, 1 or more.")
    return views
