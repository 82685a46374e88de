"""The kinds of objects that keep something, and how each is noted and put back, past whatever a class overrides."""

from __future__ import annotations

import array
import collections
import contextvars
import ctypes
import io
import operator
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from graphaug.capture.recording.kept import shared
from graphaug.capture.recording.values.inside import (
    NOTHING,
    any_inside,
    bases,
    content,
    dict_entries,
    slots_of,
    waiting_in,
)
from graphaug.capture.recording.values.tracked import is_tracked
from graphaug.errors import CaptureError
from graphaug.torch_private import FakeTensor

SMALL = 1 << 20
"""Tensors and arrays of at most so many numbers are put back: counts and running means, not a data set."""


@dataclass(frozen=True)
class Kind:
    """How a kind of object is noted, compared and put back.

    Attributes:
        taken: what an object holds now, as something that no later change reaches.
        same: whether an object holds what was taken.
        put: fill it with what was taken.
    """

    taken: Callable[[Any], Any]
    same: Callable[[Any, Any], bool]
    put: Callable[[Any, Any], None]


class Record:
    """One object, and what it held.

    Attributes:
        name: how it is reached, for errors.
    """

    def __init__(self, name: str, held: Any, kind: Kind) -> None:
        self.name, self.held, self.kind = name, held, kind
        self.before = kind.taken(held)

    def restore(self) -> None:
        """Put it back, if it is not what it was."""
        if not self.kind.same(self.held, self.before):
            self.kind.put(self.held, self.before)

    def holds_others(self) -> bool:
        """Whether it holds something else than it did, where equal numbers and texts are the same."""
        return not alike(self.kind, self.held, self.before)

    def replace(self, old: Any, new: Any) -> bool:
        """Have another object in the place of one that cannot be put back; False if it was never there."""
        if self.kind not in _HOLDING:
            return False
        found = _substituted(self.before, old, new)
        now = self.kind.taken(self.held)
        if _substituted(now, old, new):
            self.kind.put(self.held, now)
        return found


def is_of_a_capture(value: Any) -> bool:
    """Whether a value is a fake tensor, or was read off one."""
    return is_tracked(value) or FakeTensor in bases(type(value))


def _substituted(taken: Any, old: Any, new: Any) -> bool:
    values = taken[1] if type(taken) is tuple else taken
    places = [i for i, value in enumerate(values) if value is old]
    for i in places:
        values[i] = new
    return bool(places)


def _identical(a: list[Any], b: list[Any]) -> bool:
    """By identity: tensors and odd objects have no plain answer to ``==``."""
    return len(a) == len(b) and all(map(operator.is_, a, b))


def alike(kind: Kind, held: Any, before: Any) -> bool:
    """Whether an object holds what was taken of it, where equal numbers and texts are the same."""
    if kind.same(held, before):
        return True
    now = kind.taken(held)
    if set in bases(type(held)) or not isinstance(now, (list, tuple)):
        return False
    (keys, values), (keys_before, values_before) = (
        side if type(side) is tuple else ([], side) for side in (now, before)
    )
    return len(values) == len(values_before) and all(
        map(_equal, [*keys, *values], [*keys_before, *values_before])
    )


def _equal(a: Any, b: Any) -> bool:
    return a is b or (isinstance(a, _VALUES) and isinstance(b, _VALUES) and a == b)


_VALUES = (bool, int, float, str)


def _same_dict(held: dict[Any, Any], before: Any) -> bool:
    return all(map(_identical, dict_entries(held), before))


def _put_dict(held: dict[Any, Any], before: Any) -> None:
    dict.clear(held)
    dict.update(held, zip(*before, strict=True))


def _put_ordered(held: Any, before: Any) -> None:
    collections.OrderedDict.clear(held)
    for key, value in zip(*before, strict=True):
        collections.OrderedDict.__setitem__(held, key, value)


def _put_set(held: set[Any], before: list[Any]) -> None:
    set.clear(held)
    set.update(held, before)


def _put_deque(held: collections.deque[Any], before: list[Any]) -> None:
    collections.deque.clear(held)
    collections.deque.extend(held, before)


def _put_array(held: Any, before: bytes) -> None:
    array.array.__delitem__(held, slice(None))
    array.array.frombytes(held, before)


def _numbers(held: Any) -> Any:
    """A copy of a small array; None of a large one, and of one whose numbers lie in a file."""
    if np.ndarray.size.__get__(held) > SMALL:
        return None
    return np.ndarray.view(held, np.ndarray).copy()


def _same_numbers(held: Any, before: Any) -> bool:
    if before is None:
        return True
    now = np.ndarray.view(held, np.ndarray)
    if now.shape != before.shape or now.dtype.hasobject:
        return now.shape == before.shape and _identical(now.ravel().tolist(), before.ravel().tolist())
    return bool(now.tobytes() == before.tobytes())


def _put_numbers(held: Any, before: Any) -> None:
    now = np.ndarray.view(held, np.ndarray)
    if now.shape != before.shape:
        np.ndarray.resize(held, before.shape, refcheck=False)
        now = np.ndarray.view(held, np.ndarray)
    now[...] = before


def _contents(held: Tensor) -> Tensor | None:
    plain = type(held) in (Tensor, nn.Parameter) and held.layout is torch.strided and not held.is_meta
    return held.detach().clone() if plain and held.numel() <= SMALL else None


def _same_contents(held: Tensor, before: Tensor | None) -> bool:
    return before is None or held.is_meta or torch.equal(held, before)


def _put_contents(held: Tensor, before: Tensor) -> None:
    with torch.no_grad():
        if held.shape != before.shape or held.dtype != before.dtype:
            held.data = before.clone()
        else:
            held.copy_(before)


def _set_state(held: torch.Generator, before: Tensor) -> None:
    torch.Generator.set_state(held, before)


def _value_of(variable: contextvars.ContextVar[Any]) -> Any:
    try:
        return variable.get()
    except LookupError:
        return NOTHING


def _put_variable(variable: contextvars.ContextVar[Any], before: Any) -> None:
    if before is not NOTHING:
        variable.set(before)
    elif any_inside(variable.get(), is_of_a_capture):  # nothing unsets one but the token of whoever set it
        raise CaptureError(
            f"the forward sets the context variable {variable.name!r}, which had no value, and what it holds after a "
            "capture cannot be taken out of it. Give it a default, or a value, before."
        )


def _slot_contents(held: Any) -> list[Any]:
    return [content(descriptor, held) for _, descriptor in slots_of(held)]


def _put_slots(held: Any, before: list[Any]) -> None:
    for (_, descriptor), value in zip(slots_of(held), before, strict=True):
        now = content(descriptor, held)
        if value is not now and value is NOTHING:
            descriptor.__delete__(held)
        elif value is not now:
            descriptor.__set__(held, value)


def _same_set(held: set[Any], before: list[Any]) -> bool:
    # a set that was filled again may iterate in another order
    return set.__len__(held) == len(before) and {*map(id, set.__iter__(held))} == {*map(id, before)}


DICT = Kind(dict_entries, _same_dict, _put_dict)
SLOTS = Kind(_slot_contents, lambda held, before: _identical(_slot_contents(held), before), _put_slots)
_LIST = Kind(
    list.copy,
    lambda held, before: _identical(list.copy(held), before),
    lambda held, before: list.__setitem__(held, slice(None), before),
)
_DEQUE = Kind(
    lambda held: [*collections.deque.__iter__(held)],
    lambda held, before: _identical([*collections.deque.__iter__(held)], before),
    _put_deque,
)
_BYTES = Kind(
    lambda held: bytes(memoryview(held)),
    lambda held, before: bytes(memoryview(held)) == before,
    lambda held, before: bytearray.__setitem__(held, slice(None), before),
)
_GENERATOR = Kind(
    torch.Generator.get_state,
    lambda held, before: torch.equal(torch.Generator.get_state(held), before),
    _set_state,
)
_QUEUE = Kind(waiting_in, lambda held, before: _identical(waiting_in(held), before), shared.put_waiting)


def _by_value(taken: Callable[[Any], Any], put: Callable[[Any, Any], None]) -> Kind:
    """A kind of object that holds one value, which compares."""
    return Kind(taken, lambda held, before: taken(held) == before, put)


_OF_C = _by_value(shared.numbers, shared.put_numbers)
_STREAM = _by_value(shared.stream, shared.put_stream)
TENSOR = Kind(_contents, _same_contents, _put_contents)
KINDS: tuple[tuple[type, Kind], ...] = (
    (collections.OrderedDict, Kind(dict_entries, _same_dict, _put_ordered)),
    (dict, DICT),
    (list, _LIST),
    (set, Kind(lambda held: [*set.__iter__(held)], _same_set, _put_set)),
    (collections.deque, _DEQUE),
    (bytearray, _BYTES),
    (array.array, Kind(array.array.tobytes, lambda held, b: array.array.tobytes(held) == b, _put_array)),
    (np.ndarray, Kind(_numbers, _same_numbers, _put_numbers)),
    (torch.Generator, _GENERATOR),
    (contextvars.ContextVar, Kind(_value_of, lambda held, b: _value_of(held) is b, _put_variable)),
    (Tensor, TENSOR),
    *((kind, _OF_C) for kind in (ctypes._SimpleCData, ctypes.Array, ctypes.Structure, ctypes.Union)),
    *((kind, _STREAM) for kind in (io.StringIO, io.BytesIO)),
    (threading.Event, _by_value(threading.Event.is_set, shared.put_event)),
    (threading.Semaphore, _by_value(shared.free, shared.put_free)),
    (queue.SimpleQueue, _QUEUE),
)
"""What holds something, the subclass before its base; an object's ``__dict__`` and its slots come beside it."""
_HOLDING = (KINDS[0][1], DICT, SLOTS, _LIST, _DEQUE)
"""Kinds in which one object can take the place of another."""


def kind_of(value: Any) -> Kind | None:
    """How what a value holds is noted and put back; None if it holds nothing that changes."""
    line = bases(type(value))
    return next((kind for base, kind in KINDS if base in line), None)
