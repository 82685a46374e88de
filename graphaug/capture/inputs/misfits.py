"""What to do where examples do not fit a forward, by what they look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


def as_one_input(value: Any, required: list[str], named: Mapping[str, Any]) -> str:
    """The way out where a dict or list itself is the one input."""
    if (len(required) != 1 and len(named) != 1) or (
        isinstance(value, Mapping) and any(k in named for k in value)
    ):
        return ""
    return f" If the {type(value).__name__} itself is {[*required, *named][0]!r}, give it in a tuple: (it,)."


def batch_of(value: Any) -> str:
    """The way out for what is no input, but holds some."""
    if isinstance(value, (DataLoader, Dataset)):
        got = "next(iter(loader))" if isinstance(value, DataLoader) else "next(iter(DataLoader(dataset)))"
        return f" {got} gives a batch: of it, what the model is called with."
    if isinstance(value, np.ndarray):
        return " torch.from_numpy makes a tensor of it."
    return ""


def left_over(
    values: Sequence[Any], positional: Sequence[str], required: list[str], named: Mapping[str, Any]
) -> str:
    """The way out where there are more entries than inputs: labels beside them, a shape, or one list of entries."""
    if isinstance(values, tuple) and all(type(v) is int for v in values):
        return f" For a shape give a tensor of it: torch.randn({', '.join(map(str, values))})."
    if isinstance(values[0], Tensor) and len(values) == len(positional) + 1:
        return " Leave out what the model is not called with, as labels."
    return as_one_input(values, required, named)
