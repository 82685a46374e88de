"""What lies inside of an object of the user's, seen without running any code of his.

``hasattr``, ``isinstance`` and ``len`` run what a class says of them: ``__getattr__`` that is a dict's look-up,
``__class__`` that is a property, ``__iter__`` that draws. Here types alone are asked, and their own descriptors.
"""

from __future__ import annotations

import collections
import contextlib
import contextvars
import functools
import gc
import queue
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import sympy
import torch
from torch import Tensor

from graphaug.capture.recording.values.tracked import is_tracked

bases: Callable[[type], tuple[type, ...]] = type.__dict__["__mro__"].__get__
"""A class and its bases, whatever its metaclass says."""
entries_of_class: Callable[[type], types.MappingProxyType[str, Any]] = type.__dict__["__dict__"].__get__
"""The namespace of a class, whatever its metaclass says."""
_MODULE_OF: Callable[[type], Any] = type.__dict__["__module__"].__get__


def package_of(cls: type) -> str:
    """The package in which a class was made; empty where that cannot be told."""
    name = _MODULE_OF(cls)
    return name.partition(".")[0] if type(name) is str else ""


NOTHING: Any = type("Nothing", (), {"__repr__": lambda self: "nothing"})()
"""Stands for what is not there: an empty cell, a slot that is not set."""


@functools.lru_cache(2)
def _one_entry(number: int) -> int:
    return number


_one_entry(1)
_OF_A_DICT = (types.GetSetDescriptorType, types.MemberDescriptorType)
ATOMS = frozenset(
    {
        *(bool, int, float, complex, str, bytes, type(None), type(...), range, slice),
        *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size, types.CodeType),
    }
)
"""Types whose values hold nothing, and do not change."""
_SEQUENCES: tuple[tuple[type, Callable[[Any], Iterator[Any]]], ...] = (
    (list, list.__iter__),
    (tuple, tuple.__iter__),
    (set, set.__iter__),
    (frozenset, frozenset.__iter__),
    (collections.deque, collections.deque.__iter__),
)
_LONG = 100_000
"""Containers with more entries are not followed: a vocabulary, a list of files."""
_LINK = next(
    (type(v) for d in gc.get_referents(_one_entry) if type(d) is dict for k, v in d.items() if k == 1), object
)
"""The type of a link of an lru_cache with a bound, which has no name."""
_STEPPING = ("builtins", "itertools", "collections", "functools", "weakref", "types", "_contextvars")
"""Where the types of Python's own iterators, views and generators lie, which hold what only the collector sees."""
_MOST = 20_000
"""Objects in one value that are looked at for a fake tensor."""


def attributes_of(value: Any) -> dict[str, Any] | None:
    """The ``__dict__`` of an object, the very one; None if it has none."""
    if threading.local in bases(type(value)):  # each thread's own, which no descriptor shows
        return threading.local.__getattribute__(value, "__dict__")  # type: ignore[no-any-return]
    for cls in bases(type(value)):
        found = entries_of_class(cls).get("__dict__")
        if found is not None:
            held = found.__get__(value) if type(found) in _OF_A_DICT else None
            return held if type(held) is dict else None
    return None


@functools.lru_cache(4096)
def _slots(cls: type) -> tuple[tuple[str, types.MemberDescriptorType], ...]:
    found = [entries_of_class(c) for c in bases(cls) if "__slots__" in entries_of_class(c)]
    return tuple((k, v) for c in found for k, v in c.items() if type(v) is types.MemberDescriptorType)


def slots_of(value: Any) -> tuple[tuple[str, types.MemberDescriptorType], ...]:
    """The names and descriptors of an object's slots."""
    kind: Any = type(value)
    return _slots(kind)


def content(descriptor: Any, value: Any) -> Any:
    """What a slot holds; `NOTHING` if it is not set."""
    try:
        return descriptor.__get__(value)
    except AttributeError:
        return NOTHING


def content_of(cell: types.CellType) -> Any:
    """What a cell holds; `NOTHING` if its name is bound later."""
    try:
        return cell.cell_contents
    except ValueError:
        return NOTHING


def results_of(cache: Any) -> Iterator[Any]:
    """Keys and results that an `functools.lru_cache` keeps, without the dict in which it keeps them.

    What keeps so many and drops the oldest has them in links that the collector does not show, but it shows theirs.
    """
    own = attributes_of(cache)
    for kept in gc.get_referents(cache):
        if type(kept) is not dict and kept is not functools._lru_cache_wrapper:
            yield kept
        elif type(kept) is dict and kept is not own:
            yield from (*kept, *(v for v in kept.values() if type(v) is not _LINK))


def waiting_in(held: queue.SimpleQueue[Any]) -> list[Any]:
    """What waits in a queue of C, the first one first; it goes on waiting there."""
    found = [v for v in gc.get_referents(held) if v is not type(held)]
    if sys.version_info < (3, 13):  # a list: what was taken out, then what waits
        found = found[0] if found else []
    return found[len(found) - queue.SimpleQueue.qsize(held) :]


def dict_entries(value: dict[Any, Any]) -> tuple[list[Any], list[Any]]:
    """Keys and values of a dict, in its own order, whatever its class makes of ``keys`` and ``items``."""
    ordered = isinstance_of(value, collections.OrderedDict)
    keys: list[Any] = list(collections.OrderedDict.__iter__(value) if ordered else dict.__iter__(value))
    if ordered:
        return keys, [dict.__getitem__(value, key) for key in keys]
    return keys, list(dict.values(value))


def isinstance_of(value: Any, kind: type | tuple[type, ...]) -> bool:
    """``isinstance`` by the true type: nothing that the value or its class says of itself is asked."""
    kinds = kind if type(kind) is tuple else (kind,)
    return any(base in kinds for base in bases(type(value)))


def inside(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value holds, each with how it is reached in Python, such as ``.rope`` or ``['cpu']``."""
    kind = type(value)
    if kind in ATOMS:
        return
    line = bases(kind)
    if dict in line:
        if dict.__len__(value) <= _LONG:
            keys, entries = dict_entries(value)
            yield from (
                (f"[{k!r}]" if type(k) in (str, int) else "[…]", v)
                for k, v in zip(keys, entries, strict=True)
                if type(v) not in ATOMS
            )
    else:
        for base, through in _SEQUENCES:
            if base in line:
                if base.__len__(value) <= _LONG:  # type: ignore[attr-defined]
                    yield from ((f"[{i}]", v) for i, v in enumerate(through(value)) if type(v) not in ATOMS)
                break
        else:
            yield from _of_another_kind(value, kind)
    for name, descriptor in slots_of(value):
        yield f".{name}", content(descriptor, value)
    if (held := attributes_of(value)) is not None:
        yield from ((f".{k}", v) for k, v in list(held.items()) if type(v) not in ATOMS)


def _of_another_kind(value: Any, kind: type) -> Iterator[tuple[str, Any]]:
    """What is in values that are no containers: partial functions, bound methods, iterators, arrays of objects."""
    if functools.partial in bases(kind):
        yield ".func", value.func
        yield ".args", value.args
        yield ".keywords", value.keywords
    elif kind in (types.MethodType, types.BuiltinMethodType, types.MethodWrapperType):
        yield ".__func__", getattr(value, "__func__", None)
        yield ".__self__", value.__self__
    elif kind in (classmethod, staticmethod):
        yield ".__func__", value.__func__
    elif kind is property:
        yield from ((".fget", value.fget), (".fset", value.fset))
    elif kind is functools._lru_cache_wrapper:
        yield from (("(…)", result) for result in results_of(value))
    elif kind is contextvars.ContextVar:
        yield ".get()", value.get(None)
    elif queue.SimpleQueue in bases(kind):
        yield from ((f"[{i}]", v) for i, v in enumerate(waiting_in(value)))
    elif torch.futures.Future in bases(kind):
        with contextlib.suppress(Exception):  # what it was given instead of a result
            yield from [(".value()", value.value())] if value.done() else ()
    elif np.ndarray in bases(kind) and np.ndarray.dtype.__get__(value).hasobject:
        yield from ((f"[{i}]", v) for i, v in enumerate(np.ndarray.ravel(value).tolist()))
    elif package_of(kind) in _STEPPING and gc.is_tracked(value):
        skipped = (types.FunctionType, types.ModuleType, types.CellType)
        if kind not in skipped and not issubclass(kind, type):
            yield from ((f" (a {kind.__name__})", v) for v in gc.get_referents(value))


def any_inside(value: Any, test: Callable[[Any], bool], most: int = _MOST) -> bool:
    """Whether a test holds for a value or for anything inside of it; modules, classes and functions end the search."""
    if type(value) in ATOMS:
        return False
    waiting, seen = [value], {id(value)}
    while waiting and len(seen) < most:
        found = waiting.pop()
        if test(found):
            return True
        if ends(found) or is_tracked(found):
            continue
        for _, inner in inside(found):
            if id(inner) not in seen:
                seen.add(id(inner))
                waiting.append(inner)
    return False


_ENDS = (Tensor, type, types.ModuleType, types.FunctionType, torch.nn.Module, torch.Generator, sympy.Basic)


def ends(value: Any) -> bool:
    """Whether what a value refers to is not its content: modules, classes, functions, tensors, terms of sympy."""
    return isinstance_of(value, _ENDS)
