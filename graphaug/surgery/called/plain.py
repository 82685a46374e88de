"""Plain values (sizes, tuples of them) of which some numbers count rows or tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def where_counted(kinds: Any, word: str, number: Callable[..., Any], *values: Any) -> Any:
    """A plain value with other numbers where ``kinds`` say so, and the first value's own elsewhere; None stays None.

    Args:
        kinds: what each number is, in the structure of the values.
        word: the kind of those that change.
        number: makes the new number of the numbers of all values at that place.
        values: of one structure.
    """
    if values[0] is None:  # of what is closed, in another call than the example
        return None
    if isinstance(kinds, (tuple, list)):
        whole = values[0]
        entries = zip(kinds, *values, strict=True)
        parts = [where_counted(entry[0], word, number, *entry[1:]) for entry in entries]
        return torch.Size(parts) if isinstance(whole, torch.Size) else type(whole)(parts)
    return number(*values) if kinds == word else values[0]
