"""The tensors that a value holds, however deep in containers and objects."""

from __future__ import annotations

import collections
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def tensors_of(value: Any, deep: int = 4) -> Iterator[Tensor]:
    """The tensors that a value holds, also in objects of the user's own classes, so many in each other."""
    if isinstance(value, Tensor):
        yield value
    elif deep:
        for entry in _held_by(value):
            yield from tensors_of(entry, deep - 1)


def _held_by(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, (tuple, list, set, frozenset, collections.deque)):
        return value
    kind = type(value)
    # what was read off a tensor, a number or dtype, knows its node, and holds none
    if issubclass(kind, _WITHOUT_TENSORS) or hasattr(kind, "_fx_node"):
        return ()
    slots = (name for cls in kind.__mro__ for name in _slots(cls))
    return [*getattr(value, "__dict__", {}).values(), *(getattr(value, name, None) for name in slots)]


def _slots(cls: type) -> tuple[str, ...]:
    names = vars(cls).get("__slots__", ())
    return (names,) if isinstance(names, str) else tuple(names)


_WITHOUT_TENSORS = (
    *(int, float, complex, str, bytes, type(None), type, types.FunctionType, types.ModuleType),
    *(torch.nn.Module, torch.dtype, torch.device, torch.SymInt, torch.SymFloat),
)
