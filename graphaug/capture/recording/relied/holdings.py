"""What lies inside of values that code reaches: entries, members, attributes, as far as it is read."""

from __future__ import annotations

import argparse
import array
import collections
import contextvars
import ctypes
import enum
import functools
import inspect
import types
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from graphaug.capture.recording.relied.called import NO_READERS, Called
from graphaug.capture.recording.relied.classes import (
    NAMESPACES,
    can_be_watched,
    has_no_effect,
    is_foreign,
    is_of_a_package,
    is_of_threads,
    may_be_put_there,
)
from graphaug.capture.recording.relied.lookups import by_owner, lacks, last_of, own_attributes
from graphaug.capture.recording.relied.members import is_value, makes_itself, members_of, methods_of
from graphaug.capture.recording.relied.reached import DICTS, GONE, Reached
from graphaug.capture.recording.relied.told import Array
from graphaug.capture.recording.relied.unseen import may_answer

DEPTH = 6
"""Containers within containers that are followed."""
_MOST = 200
"""Entries of one container that are followed."""
_MOST_AS_A_WHOLE = 100_000
"""Entries of one container, bytes of one array, that are compared in every call."""
_MANY = 5_000
"""With so many things found, only attributes that code names are followed: a trainer holds all of a run."""
_SEQUENCES = (list, collections.deque, *map(type, ({}.keys(), {}.values(), {}.items())))
_WEAK_DICTS = (weakref.WeakValueDictionary, weakref.WeakKeyDictionary)
_OF_C = (ctypes._SimpleCData, ctypes.Array, ctypes.Structure, ctypes.Union)
"""Values that C code shares, as of `multiprocessing.RawValue`."""
_ENDS = (type, Tensor, nn.Module, types.FunctionType, types.ModuleType)


class Holdings:
    """Notes what code can read through the values that it reaches.

    Args:
        called: the functions that are followed, and the names in their code.
        function: what to do about a function that lies in what it reaches.
        module: what to do about a module, with the name that it is reached by; None to leave modules alone.

    Attributes:
        found: all that was noted.
        unwatched: what is not compared in every call, with why, each with what it was reached through.
    """

    def __init__(
        self,
        called: Called,
        function: Callable[[types.FunctionType], None],
        module: Callable[[str, nn.Module], None] | None = None,
    ) -> None:
        self.names, self.asked, self.pairs = called.names | called.strings, called.strings, called.pairs
        self._method, self._function, self._module = called.of_object, function, module
        self._called, self.whole = called, called.whole
        self._read_off, self._asked_of = by_owner(called.pairs), by_owner(called.asked)
        self.found: list[Reached] = []
        self.unwatched: list[tuple[str, Reached | None]] = []
        self._known: set[tuple[str, int, Any]] = set()
        self._seen: dict[int, Any] = {}
        self._count: collections.Counter[str] = collections.Counter()

    def reach(
        self,
        name: str,
        kind: str,
        holder: Any,
        key: Any,
        value: Any,
        within: Reached | None = None,
        depth: int = DEPTH,
    ) -> None:
        """Note one thing, and what lies inside of it."""
        if (kind, id(holder), key) in self._known or isinstance(value, types.ModuleType):
            return
        if kind == "attribute" and has_no_effect(holder, key):
            return
        self._known.add((kind, id(holder), key))
        self.inside(name, value, self.add(name, kind, holder, key, value, within), depth - 1)

    def add(self, name: str, kind: str, holder: Any, key: Any, value: Any, within: Reached | None) -> Reached:
        """Note one thing, and nothing of what lies inside of it."""
        self._count[name] += 1
        made = Reached(name, kind, holder, key, value, within, number=self._count[name])
        self.found.append(made)
        return made

    def inside(self, name: str, value: Any, within: Reached | None, depth: int = DEPTH) -> None:
        """Note what code can read through a value."""
        if type(value) in weakref.ProxyTypes:  # which answers for what it stands for, also as to its class
            self.inside(name, value.__repr__.__self__, within, depth)
            return
        if isinstance(value, type) and within is not None:
            self.of_class(value, last_of(name))
        if isinstance(value, nn.Module) and self._module is not None:
            self._module(name, value)
        if isinstance(value, types.FunctionType):
            self._function(value)
            if isinstance(registry := vars(value).get("registry"), types.MappingProxyType):  # singledispatch
                self._entries(f"{name}.registry", registry, within, depth)
        if isinstance(value, (types.FunctionType, Tensor)):
            self.set_on(name, value, within, depth)
        if depth == 0 or isinstance(value, _ENDS) or id(value) in self._seen:
            return
        if isinstance(value, types.MethodType):
            self.inside(name, value.__func__, within, depth)
            self.inside(name, value.__self__, within, depth)
            return
        if isinstance(value, functools.partial):
            given = value.func, value.args, value.keywords
            self.add(f"the state of {name}", "partial", value, None, given, within)
            self.inside(name, value.func, within, depth)
            self._items(name, value.args, within, depth)
            self._entries(f"{name}.keywords", value.keywords, within, depth)
            return
        self._seen[id(value)] = value
        if isinstance(value, np.ndarray):
            self._array(name, value, within)
        elif isinstance(value, dict):
            self._entries(name, value, within, depth)
            if type(value) not in DICTS:
                self._object(name, value, within, depth)
        elif isinstance(value, (types.MappingProxyType, *_WEAK_DICTS)):
            self._entries(name, value, within, depth)
        elif isinstance(value, weakref.ref):
            self.inside(name, value(), within, depth)
        elif isinstance(value, (bytearray, memoryview, array.array, *_OF_C)):
            self._buffer(name, value, within)
        elif isinstance(value, (set, frozenset, weakref.WeakSet)):
            self.add(f"the set {name}", "members", value, None, set(value), within)
        elif type(value) in _SEQUENCES:
            self._list(name, value, within, depth)
        elif isinstance(value, tuple):
            self._items(name, value[:_MOST], within, depth)
        elif isinstance(value, contextvars.ContextVar):
            self.add(f"the value of {name}", "context", value, None, value.get(GONE), within)
        else:
            self._object(name, value, within, depth)

    def set_on(self, name: str, value: Any, within: Reached | None = None, depth: int = DEPTH) -> None:
        """Note what code may read of what was set on a function or a tensor."""
        for attribute in sorted(self.names & vars(value).keys()):
            held = vars(value)[attribute]
            self.reach(f"{name}.{attribute}", "attribute", value, attribute, held, within, depth - 1)
        for attribute in sorted(self._asked_of.get(last_of(name), ())):
            if lacks(value, attribute):
                self.reach(f"{name}.{attribute}", "attribute", value, attribute, GONE, within)

    def of_class(self, cls: type, known_as: str = "") -> None:
        """What is read off a class itself, and what objects do that code makes of it, by the name it calls it by."""
        if is_foreign(cls.__module__):
            self._put_on(cls, known_as)
            return
        if "__subclasses__" in self.names and ("subclasses", id(cls), None) not in self._known:
            self._known.add(("subclasses", id(cls), None))
            below: list[type] = type.__subclasses__(cls)  # cls may be a class of classes
            self.add(f"the subclasses of {cls.__name__}", "subclasses", cls, None, below, None)
        called = self._called  # an entry of a table is called by whatever name
        makes = known_as in called.calls or known_as.endswith("]") or makes_itself(cls, called)
        self._members(cls, makes and not is_of_a_package(cls.__module__))
        if not is_foreign(type(cls).__module__):  # a metaclass, of which the class is an object
            self._members(type(cls), not is_of_a_package(type(cls).__module__))

    def _put_on(self, cls: type, known_as: str) -> None:
        """Note what code reads off a class of torch's or Python's by its name, and what a user may have put there."""
        asked = self._asked_of.get(known_as, set())
        for name in sorted(asked | self._read_off.get(known_as, set())) if known_as else ():
            value = getattr(cls, name, GONE)
            if (value is GONE and name in asked) or (value is not GONE and may_be_put_there(name, value)):
                self.reach(f"{cls.__name__}.{name}", "attribute", cls, name, value)

    def _members(self, cls: type, makes: bool) -> None:
        for kind, name, value in members_of(cls, self._called, makes):
            self.reach(f"{cls.__name__}.{name}", kind, cls, name, value)
        if makes or (issubclass(cls, enum.Enum) and not is_of_a_package(cls.__module__)):
            for base, name in methods_of(cls, self._called):
                self._method(base, name)

    # --- kinds of holders -----------------------------------------------------------------------

    def _array(self, name: str, value: np.ndarray[Any, Any], within: Reached | None) -> None:
        if value.dtype == object:
            objects = value.ravel().tolist()
            if len(objects) <= _MOST:
                self.add(f"the objects in {name}", "numbers", value, None, Array(objects), within)
                self._items(name, objects, within, DEPTH)
            return
        if value.size <= _MOST:
            numbers = Array(value.ravel().tolist())
            self.add(f"the numbers in {name}", "numbers", value, None, numbers, within)
        elif value.nbytes <= _MOST_AS_A_WHOLE:
            self.add(f"the numbers in {name}", "bytes", value, None, value.tobytes(), within)
        else:
            self.unwatched.append((f"{name} (too large)", within))

    def _buffer(self, name: str, value: Any, within: Reached | None) -> None:
        if memoryview(value).nbytes <= _MOST_AS_A_WHOLE:
            self.add(f"the numbers in {name}", "bytes", value, None, bytes(value), within)
        else:
            self.unwatched.append((f"{name} (too large)", within))

    def _list(self, name: str, value: Any, within: Reached | None, depth: int) -> None:
        if len(value) > _MOST_AS_A_WHOLE:
            self.unwatched.append((f"{name} (too large)", within))
            return
        self.add(f"the list {name}", "entries", value, None, list(value), within)
        if len(value) <= _MOST:
            self._items(name, value, within, depth)

    def _items(self, name: str, value: Iterable[Any], within: Reached | None, depth: int) -> None:
        for i, entry in enumerate(value):
            self.inside(f"{name}[{i}]", entry, within, depth - 1)

    def _entries(self, name: str, value: Mapping[Any, Any], within: Reached | None, depth: int) -> None:
        if len(value) > _MOST_AS_A_WHOLE:
            self.unwatched.append((f"{name} (too large)", within))
            return
        if len(value) > _MOST:
            self.add(f"the table {name}", "table", value, None, dict(value), within)
            return
        entries = list(dict.items(value) if isinstance(value, dict) else value.items())
        if last_of(name) in self.whole or not any(
            isinstance(v, Tensor) for _, v in entries
        ):  # else a cache, which grows
            self.add(f"the keys of {name}", "keys", value, None, [k for k, _ in entries], within)
        for key, entry in entries:
            self.reach(f"{name}[{key!r}]", "item", value, key, entry, within, depth)

    def _object(self, name: str, value: Any, within: Reached | None, depth: int) -> None:
        """Of an object whose reads are seen every attribute; of others those that code names."""
        watched, of_threads = can_be_watched(value), is_of_threads(value)
        if not watched and not of_threads and not isinstance(value, NAMESPACES):
            if may_answer(last_of(name), value, self.names, self.pairs):
                self.unwatched.append((f"{name} (of class {type(value).__name__})", within))
            return
        owner, held = name.rpartition(".")[2], own_attributes(value)
        if held and (self._called.goes_through_objects or isinstance(value, argparse.Namespace)):
            self.add(f"the attributes of {name}", "attributes", value, None, list(held), within)
        every = of_threads or (watched and len(self.found) < _MANY)
        for attribute in sorted(map(str, held if every else self.names & held.keys())):
            by_string = owner in self.asked and ("", attribute) in self.pairs  # getattr(o, "cfg").t
            of_a_tensor = (
                hasattr(Tensor, attribute) and not by_string and (owner, attribute) not in self.pairs
            )
            if watched or not of_a_tensor:
                now = held[attribute]
                self.reach(f"{name}.{attribute}", "attribute", value, attribute, now, within, depth)
        if watched:
            self._class_of(name, value, held.keys(), within, depth)
        for attribute in sorted(self.asked - held.keys()):
            if inspect.getattr_static(value, attribute, GONE) is GONE and lacks(value, attribute):
                self.reach(f"{name}.{attribute}", "attribute", value, attribute, GONE, within, depth)

    def _class_of(
        self, name: str, value: Any, own: Iterable[str], within: Reached | None, depth: int
    ) -> None:
        """What an object reads through its class: slots, defaults, and what its methods reach."""
        shadowed = set(own)
        for cls in (c for c in type(value).__mro__ if not is_foreign(c.__module__)):
            for attribute, held in list(vars(cls).items()):
                if isinstance(held, types.MemberDescriptorType) and not attribute.startswith("__"):
                    now = getattr(value, attribute, GONE)
                    self.reach(f"{name}.{attribute}", "attribute", value, attribute, now, within, depth)
                elif attribute in self.names or (attribute.startswith("__") and attribute not in NO_READERS):
                    self._method(cls, attribute)
                    if attribute not in shadowed and not attribute.startswith("__"):
                        self._of_its_class(f"{name}.{attribute}", value, attribute, held, within, depth)

    def _of_its_class(
        self, name: str, value: Any, attribute: str, held: Any, within: Reached | None, depth: int
    ) -> None:
        """What the class of an object has, as the object has it: a value, or code."""
        if isinstance(held, property):
            self.reach(name, "property", value, attribute, getattr(type(value), attribute), within, depth)
        elif isinstance(held, types.FunctionType):
            bound = getattr(getattr(value, attribute), "__func__", None)
            if bound is not None:
                self.reach(name, "method", value, attribute, bound, within, depth)
        elif is_value(held):
            self.reach(name, "attribute", value, attribute, held, within, depth)
        elif can_be_watched(held):  # a descriptor, which may read what it holds
            self.inside(name, held, within, depth)
