"""The first tensor of what a module returned: a tensor, or a tuple or mapping that begins with one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from graphaug.errors import BatchError, an


def on_first(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``fn`` to a tensor, or to the first entry of the tuple, list or mapping that a module returned."""
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, Mapping) and len(value) > 0:
        first = next(iter(value))
        kind: Any = type(value)
        filled = {**value, first: on_first(value[first], fn)}
        return kind(**filled) if all(isinstance(k, str) for k in filled) else kind(filled)
    if isinstance(value, (tuple, list)) and len(value) > 0:
        entries = [on_first(value[0], fn), *value[1:]]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    raise BatchError(
        f"Deep Augmentation needs a tensor, but the value at its site is {an(value)}: choose another site."
    )
