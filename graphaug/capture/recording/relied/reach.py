"""Finds what the code of opened modules reaches besides their attributes.

What counts is what ``forward`` and the functions that it can call name in their code; nothing is run.
"""

from __future__ import annotations

import collections
import functools
import os
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from graphaug.capture.recording.relied.code_names import attributes_in, globals_in, names_in
from graphaug.capture.recording.relied.facts import WITHOUT_EFFECT, is_plain
from graphaug.capture.recording.relied.reached import GONE, Array, Reached, reader
from graphaug.capture.recording.values.inside import attributes_of

_FOREIGN = {
    *("torch", "numpy", "builtins", "typing", "collections", "functools", "graphaug", "logging"),
    *sys.stdlib_module_names,
}
"""Packages whose globals do not change."""
_DICTS = (dict, collections.OrderedDict, collections.defaultdict, collections.Counter)
_SEQUENCES = (list, collections.deque)
_DEPTH = 4
"""Containers within containers that are followed."""
_MOST = 200
"""Entries of one container that are followed."""
_HEAP_TYPE = 1 << 9
"""The flag of types that Python code made (Py_TPFLAGS_HEAPTYPE)."""


@dataclass(frozen=True)
class InReach:
    """What forwards reach.

    Attributes:
        things: each of it.
        by_type: whether their code may tell a dict from one that stands for it.
    """

    things: list[Reached]
    by_type: bool


def reached_by(model: nn.Module, opened: Iterable[str]) -> InReach:
    """What the forwards of a model's opened modules reach, as it is now.

    Args:
        model: the model.
        opened: paths of the modules whose code a graph stands for; the model itself is always one.
    """
    walk = _Walk(model, {"", *opened})
    return InReach(walk.found, any(_asks_for_type(f.__code__) for f in walk.with_helpers()))


def found_again(
    packed: Iterable[tuple[str, tuple[Any, ...]]], model: nn.Module, opened: Iterable[str]
) -> Iterator[Reached]:
    """What `Reached.packed` described, in a copy of the model or after loading it.

    A plain value is the one that the graph was captured for, whatever it is now.
    """
    there = {reached.name: reached for reached in reached_by(model, opened).things}
    for name, plain in packed:
        if (reached := there.get(name)) is not None:
            yield replace(reached, expected=plain[0]) if plain else reached


class _Walk:
    """Follows the names in the code of forwards."""

    def __init__(self, model: nn.Module, opened: set[str]) -> None:
        self.found: list[Reached] = []
        self._known: set[tuple[str, int, Any]] = set()
        self.functions: dict[types.FunctionType, None] = {}
        self._seen: set[int] = set()
        self._readers: dict[int, types.FunctionType] = {}
        modules = {path: m for path, m in model.named_modules() if path in opened}
        self._classes = {
            cls: None for m in modules.values() for cls in type(m).__mro__ if cls not in (nn.Module, object)
        }
        for cls in self._classes:
            self._method(cls, "forward")
        self._names: set[str] = {"forward"}
        self._pairs: set[tuple[str, str]] = set()
        # names lead to functions, whose code has names
        while new := [f for f in self.functions if id(f) not in self._seen]:
            for function in new:
                self._seen.add(id(function))
                self._names |= names_in(function.__code__)
                self._pairs |= attributes_in(function.__code__)
            self._find_functions(modules, new)
        for path, m in modules.items():
            self._attributes(path, m)
            self._of_classes(path, m)
        for function in self.functions:
            if not _is_foreign(function.__module__):
                self._variables(function)

    # --- functions ------------------------------------------------------------------------------

    def _find_functions(self, modules: Mapping[str, nn.Module], new: list[types.FunctionType]) -> None:
        for cls in self._classes:
            for name in sorted(self._names & vars(cls).keys()):
                self._method(cls, name)
        for m in modules.values():
            for name in sorted(self._names & vars(m).keys()):
                self._function(vars(m)[name])
            for hooks in (m._forward_hooks, m._forward_pre_hooks):
                for hook in hooks.values():
                    self._function(hook)
        for function in (f for f in new if not _is_foreign(f.__module__)):
            for name in sorted(globals_in(function.__code__) & function.__globals__.keys()):
                self._function(function.__globals__[name])
            for cell in function.__closure__ or ():
                self._function(_content(cell))

    def _method(self, cls: type, name: str) -> None:
        value = vars(cls).get(name)
        self._function(getattr(value, "__func__", getattr(value, "fget", value)), foreign=True)

    def _function(self, value: Any, foreign: bool = False) -> None:
        """Note a function, or what a callable object runs; ``foreign``: also one of torch's."""
        while isinstance(value, functools.partial):
            value = value.func
        if isinstance(value, types.MethodType):
            value = value.__func__
        if isinstance(value, types.FunctionType):
            if (foreign or not _is_foreign(value.__module__)) and value not in self.functions:
                self.functions[value] = None
                if hasattr(value, "__wrapped__"):
                    self._function(value.__wrapped__)
        elif not isinstance(value, (type, nn.Module, Tensor)) and not _is_foreign(type(value).__module__):
            self._method(type(value), "__call__")

    def with_helpers(self) -> Iterator[types.FunctionType]:
        """The functions, and those of the modules that they name."""
        yield from self.functions
        for function in self.functions:
            names, scope = names_in(function.__code__), function.__globals__
            for module in map(scope.get, globals_in(function.__code__)):
                if isinstance(module, types.ModuleType) and not _is_foreign(module.__name__):
                    held = (vars(module)[name] for name in names & vars(module).keys())
                    yield from (f for f in held if isinstance(f, types.FunctionType))

    # --- what they read -------------------------------------------------------------------------

    def _attributes(self, path: str, m: nn.Module) -> None:
        for name in sorted(self._names & vars(m).keys()):
            value = vars(m)[name]
            if (
                not name.startswith("__")
                and not is_plain(value)
                and not isinstance(value, (Tensor, nn.Module))
            ):
                self._reach(f"{path}.{name}".removeprefix("."), "attribute", m, name, value)

    def _of_classes(self, path: str, m: nn.Module) -> None:
        """The methods that are called, and class attributes: both may be shadowed by a module's own."""
        for cls in (c for c in type(m).__mro__ if c in self._classes):
            for name in sorted(self._names & vars(cls).keys() - vars(m).keys()):
                value, where = vars(cls)[name], f"{path}.{name}".removeprefix(".")
                if isinstance(value, types.FunctionType):
                    bound = getattr(getattr(m, name), "__func__", None)
                    if bound is not None and not name.startswith("__"):
                        self._reach(where, "method", m, name, bound)
                elif not isinstance(value, (property, classmethod, staticmethod, types.MemberDescriptorType)):
                    self._reach(where, "attribute", m, name, getattr(m, name))

    def _variables(self, function: types.FunctionType) -> None:
        where, names = function.__name__, names_in(function.__code__)
        for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            read = variable in names - {"__class__", "self"}
            if read and (content := _content(cell)) is not GONE:
                self._reach(f"{variable!r} of {where}", "variable", self._reader(cell), variable, content)
        scope = function.__globals__
        for variable in sorted(globals_in(function.__code__) & scope.keys()):
            value = scope[variable]
            if not isinstance(value, types.ModuleType):
                self._reach(f"the global {variable!r}", "item", scope, variable, value)
            elif not _is_foreign(value.__name__):
                for name in sorted(names & vars(value).keys()):
                    self._reach(f"{variable}.{name}", "item", vars(value), name, vars(value)[name])
        if names & {"environ", "getenv"}:
            for key in (c for c in function.__code__.co_consts if isinstance(c, str) and c.isidentifier()):
                self._reach(f"the environment's {key}", "item", os.environ, key, os.environ.get(key, GONE))
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._inside(f"a default of {where}", default, None, _DEPTH)

    def _reader(self, cell: types.CellType) -> types.FunctionType:
        return self._readers.setdefault(id(cell), reader(cell))

    def _reach(
        self,
        name: str,
        kind: str,
        holder: Any,
        key: Any,
        value: Any,
        within: Reached | None = None,
        depth: int = _DEPTH,
    ) -> None:
        known = (kind, id(holder), key) in self._known
        if known or key in WITHOUT_EFFECT or isinstance(value, types.ModuleType):
            return
        self._known.add((kind, id(holder), key))
        self.found.append(Reached(name, kind, holder, key, value, within))
        self._inside(name, value, self.found[-1], depth - 1)

    def _inside(self, name: str, value: Any, within: Reached | None, depth: int) -> None:
        """What code can read through a value."""
        ends = isinstance(value, (type, Tensor, nn.Module, types.FunctionType))
        if depth == 0 or ends or id(value) in self._seen:
            return
        if isinstance(value, types.MethodType):
            self._inside(name, value.__self__, within, depth)
            return
        if isinstance(value, functools.partial):
            for part in (*value.args, *value.keywords.values()):
                self._inside(name, part, within, depth)
            return
        self._seen.add(id(value))
        if isinstance(value, np.ndarray):
            if value.dtype != object and value.size <= _MOST:
                numbers = Array(value.ravel().tolist())
                self.found.append(Reached(f"the numbers in {name}", "numbers", value, None, numbers, within))
        elif type(value) in _DICTS:
            self._entries(name, value, within, depth)
        elif type(value) in _SEQUENCES:
            if len(value) <= _MOST and not any(isinstance(v, Tensor) for v in value):
                self.found.append(Reached(f"the list {name}", "entries", value, None, list(value), within))
                self._items(name, value, within, depth)
        elif isinstance(value, tuple):
            self._items(name, value[:_MOST], within, depth)
        elif can_be_watched(value) or isinstance(value, types.SimpleNamespace):
            self._object(name, value, within, depth)

    def _items(self, name: str, value: Iterable[Any], within: Reached | None, depth: int) -> None:
        for i, entry in enumerate(value):
            self._inside(f"{name}[{i}]", entry, within, depth - 1)

    def _entries(self, name: str, value: dict[Any, Any], within: Reached | None, depth: int) -> None:
        if len(value) > _MOST:
            return  # a table, not options
        if not any(isinstance(v, Tensor) for v in value.values()):  # else it may be a cache, which grows
            self.found.append(Reached(f"the keys of {name}", "keys", value, None, list(value), within))
        for key, entry in value.items():
            self._reach(f"{name}[{key!r}]", "item", value, key, entry, within, depth)

    def _object(self, name: str, value: Any, within: Reached | None, depth: int) -> None:
        owner = name.rpartition(".")[2]
        for attribute in sorted(self._names & vars(value).keys()):
            of_a_tensor = hasattr(Tensor, attribute) and (owner, attribute) not in self._pairs
            if can_be_watched(value) or not of_a_tensor:
                now = vars(value)[attribute]
                self._reach(f"{name}.{attribute}", "attribute", value, attribute, now, within, depth)


def can_be_watched(value: Any) -> bool:
    """Whether reads of an object's attributes can be seen: it is of a class of the user's, written in Python."""
    kind = type(value)
    return (
        attributes_of(value) is not None
        and bool(kind.__flags__ & _HEAP_TYPE)
        and not _is_foreign(kind.__module__)
    )


def _asks_for_type(code: types.CodeType) -> bool:
    """Whether code says ``type(x)``, or calls a method of ``dict`` past the object's own."""
    return "type" in globals_in(code) or any(owner == "dict" for owner, _ in attributes_in(code))


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return GONE


def _is_foreign(module: str | None) -> bool:
    return (module or "").partition(".")[0] in _FOREIGN
