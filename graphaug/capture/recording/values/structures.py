"""What lies inside of a nested value: containers, dataclasses and plain objects, and what stands for their entries."""

from __future__ import annotations

import copy
import dataclasses
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from graphaug.capture.recording.values.inside import NOTHING, any_inside, attributes_of, content, slots_of
from graphaug.capture.recording.values.tracked import DATA, is_tracked
from graphaug.capture.recording.values.watched import Watched
from graphaug.torch_private import storage_of

Key = tuple[str, Any]
"""How an entry is reached: ("item", its key or index) or ("attribute", its name)."""
DEPTH = 4
"""How many containers deep values are followed."""
WATCHED_DEPTH = 3
"""How many dicts deep a layout tells what is asked of an input."""
_BAGS = (set, deque)
PLAIN = (bool, int, float, complex, str, type(None), type(...), torch.dtype, torch.device, torch.layout)
"""Types of constants, which a node can hold as they are."""


def changed(value: Any, change: Callable[[Any], Any]) -> Any:
    """A value with ``change`` done to all that lies in its tuples, lists, dicts and slices.

    A container in which nothing was changed is kept, the very object; one that notes what is asked of it becomes plain.
    """
    kind = type(value)
    if kind is slice:
        return slice(*(changed(v, change) for v in (value.start, value.stop, value.step)))
    if kind in (dict, Watched):
        filled = {k: changed(v, change) for k, v in value.items()}
        kept = kind is dict and all(filled[k] is value[k] for k in value)
        return value if kept else filled
    named = issubclass(kind, tuple) and hasattr(kind, "_fields")
    if not named and kind not in (torch.Size, tuple, list):
        return change(value)
    new = [changed(v, change) for v in value]
    if all(a is b for a, b in zip(new, value, strict=True)):
        return value
    return kind(*new) if named else kind(new)


def plain(value: Any) -> Any:
    """A value with the numbers, dtypes and devices of the example in place of tracked ones."""
    return changed(value, _untracked)


def _untracked(value: Any) -> Any:
    if not is_tracked(value):
        return value
    return 0.5 if value._value is DATA else value._value


def holds(value: Any, test: Callable[[Any], bool]) -> bool:
    """Whether a test holds for anything inside of a value: entries of containers, attributes of objects."""
    return any_inside(value, test)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in the tuples, lists and dicts of a value."""
    return (t for t in torch.utils._pytree.tree_leaves(value) if isinstance(t, Tensor))


def memories_of(value: Any) -> frozenset[int]:
    """What tells the memory of the tensors in a value; that of another kind of tensors than dense ones is not told."""
    found = (storage_of(t) for t in tensors_in(value) if t.layout is torch.strided)
    return frozenset(place for place in found if place is not None)


def is_structure(value: Any) -> bool:
    """Whether a value may hold tensors: a container, or a plain object."""
    without = (*PLAIN, nn.Module, type, types.FunctionType, types.ModuleType, Tensor)
    if is_tracked(value) or isinstance(value, without):
        return False
    return isinstance(value, (tuple, list, Mapping)) or attributes_of(value) is not None


def is_container(value: Any) -> bool:
    """Whether a value is there to hold others: a tuple, list, dict or dataclass."""
    if is_tracked(value) or isinstance(value, (type, nn.Module, Tensor)):
        return False
    return isinstance(value, (tuple, list, MutableMapping)) or dataclasses.is_dataclass(value)


def entries(value: Any) -> list[tuple[Key, Any]]:
    """What a container or an object holds, with how it is reached."""
    if isinstance(value, Mapping):
        return [(("item", k), v) for k, v in value.items()]
    if isinstance(value, (tuple, list)):
        return [(("item", i), v) for i, v in enumerate(value)]
    return [(("attribute", k), v) for k, v in (attributes_of(value) or {}).items()]


def held_in(value: Any) -> dict[Key, Any] | None:
    """What a result holds, by where: also what lies in slots. None of what is no container and no plain object."""
    if isinstance(value, (nn.Module, type, types.FunctionType, types.ModuleType, Tensor, *PLAIN)):
        return None
    if not isinstance(value, Mapping) and callable(getattr(type(value), "items", None)):
        return {("item", key): entry for key, entry in value.items()}
    slots = {("attribute", name): content(slot, value) for name, slot in slots_of(value)}
    if not (slots or is_structure(value)):
        return None
    return {**dict(entries(value)), **{key: entry for key, entry in slots.items() if entry is not NOTHING}}


def contents(value: Any) -> list[Any]:
    """What tells whether a container was changed since: its entries by identity, an array's numbers."""
    return [value.tobytes()] if isinstance(value, np.ndarray) else [id(v) for _, v in entries(value)]


def held_by(holder: Any) -> dict[Any, Any]:
    """What a container, an object or an array holds now, by where."""
    if isinstance(holder, np.ndarray):
        return dict(enumerate(holder.ravel().tolist()))
    if isinstance(holder, set):
        return {value: value for value in holder}
    return dict(enumerate(holder)) if isinstance(holder, deque) else dict(entries(holder))


def changed_in(now: Mapping[Any, Any], before: Mapping[Any, Any]) -> list[Any]:
    """What of two answers of `held_by` is in one of them alone; numbers are told by their value."""
    missing = object()

    def same(a: Any, b: Any) -> bool:
        return a is b or (type(a) is type(b) and isinstance(a, PLAIN) and a == b)

    new = [value for key, value in now.items() if not same(value, before.get(key, missing))]
    return new + [value for key, value in before.items() if key not in now]


def holders_in(value: Any, depth: int = DEPTH) -> Iterator[Any]:
    """The containers and objects in a value that can be filled, itself included."""
    if depth == 0 or not (is_structure(value) or isinstance(value, (*_BAGS, np.ndarray))):
        return
    if not isinstance(value, tuple):
        yield value
    for _, inner in entries(value):
        yield from holders_in(inner, depth - 1)


def set_afterwards(fields: Iterable[str], entries: Mapping[str, Any]) -> dict[str, Any]:
    """The entries from the first on that a constructor, which goes by the fields, would put earlier."""
    waiting = dict(entries)
    for name in fields:
        if waiting and name == next(iter(waiting)):
            del waiting[name]
    return waiting


def rebuilt(value: Any, keys: list[Key], new: list[Any]) -> Any:
    """The same structure with other entries, the very object if they are the same.

    Objects that are no plain containers are filled where they are.
    """
    kind = type(value)
    if all(a is b for a, (_, b) in zip(new, entries(value), strict=True)):
        return value
    if isinstance(value, tuple):
        return kind(*new) if hasattr(value, "_fields") else kind(new)
    if kind is list:
        return new
    if kind is Watched:
        value.note_whole()
        return {k: v for (_, k), v in zip(keys, new, strict=True)}
    if kind in (dict, OrderedDict):
        return kind((k, v) for (_, k), v in zip(keys, new, strict=True))
    for (how, key), entry in zip(keys, new, strict=True):
        if how == "attribute":
            object.__setattr__(value, key, entry)
        else:
            value[key] = entry
    return value


def snapshot(value: Any) -> Any:
    """The same entries in containers of their own: what is taken out of a list or dict later is still in these."""
    if not is_container(value) or (dataclasses.is_dataclass(value) and not isinstance(value, MutableMapping)):
        return value
    found = [(key, snapshot(entry)) for (_, key), entry in entries(value)]
    if isinstance(value, tuple):
        return rebuilt(value, [("item", key) for key, _ in found], [entry for _, entry in found])
    kept = copy.copy(value)
    for key, entry in found:
        kept[key] = entry
    return kept
