"""Finds what the code of opened modules reaches besides their attributes.

What counts is what ``forward`` and the functions that it can call name in their code; nothing is run.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from graphaug.capture.recording.relied.classes import is_foreign
from graphaug.capture.recording.relied.code_names import (
    attributes_in,
    globals_in,
    imports_in,
    names_in,
    strings_in,
)
from graphaug.capture.recording.relied.facts import is_plain
from graphaug.capture.recording.relied.holdings import Holdings
from graphaug.capture.recording.relied.reached import CHANGED, GONE, Reached, reader


@dataclass(frozen=True)
class InReach:
    """What forwards reach.

    Attributes:
        things: each of it.
        by_type: whether their code may tell a dict from one that stands for it.
        unwatched: names of what is too large to be compared in every call, with what it was reached through.
        names: the names of attributes and globals in their code.
        strings: those that it asks for by a string, `getattr(self, "gain", 1.0)`.
        functions: their functions and methods, and what these call.
    """

    things: list[Reached]
    by_type: bool
    unwatched: list[tuple[str, Reached | None]] = field(default_factory=list)
    names: frozenset[str] = frozenset()
    strings: frozenset[str] = frozenset()
    functions: tuple[types.FunctionType, ...] = ()


def reached_by(model: nn.Module, opened: Iterable[str]) -> InReach:
    """What the forwards of a model's opened modules reach, as it is now.

    Args:
        model: the model.
        opened: paths of the modules whose code a graph stands for; the model itself is always one.
    """
    walk = _Walk(model, {"", *opened})
    by_type = any(_asks_for_type(f.__code__) for f in walk.with_helpers())
    names, strings = frozenset(walk._names | walk._strings), frozenset(walk._strings)
    return InReach(
        walk.holdings.found, by_type, walk.holdings.unwatched, names, strings, tuple(walk.functions)
    )


def found_again(
    packed: Iterable[tuple[str, int, tuple[Any, ...] | None]], model: nn.Module, opened: Iterable[str]
) -> Iterator[Reached]:
    """What `Reached.packed` described, in a copy of the model or after loading it.

    A plain value is the one that the graph was captured for, whatever it is now; what was changed before does not hold.
    """
    there = {(reached.name, reached.number): reached for reached in reached_by(model, opened).things}
    for name, number, plain in packed:
        reached = there.get((name, number))
        if plain is None:
            yield replace(reached or Reached(name, "attribute", model, "", None), expected=CHANGED)
        elif reached is not None:
            yield replace(reached, expected=plain[0]) if plain else reached


_CODE = (type, types.FunctionType, types.BuiltinFunctionType, logging.Logger)


class _Walk:
    """Follows the names in the code of forwards."""

    def __init__(self, model: nn.Module, opened: set[str]) -> None:
        self.functions: dict[types.FunctionType, None] = {}
        self._of_objects: set[types.FunctionType] = set()
        self._seen: set[int] = set()
        self._readers: dict[int, types.FunctionType] = {}
        self._modules = {path: m for path, m in model.named_modules() if path in opened}
        self._classes = {
            cls: None
            for m in self._modules.values()
            for cls in type(m).__mro__
            if cls not in (nn.Module, object)
        }
        for cls in self._classes:
            self._method(cls, "forward")
        for m in self._modules.values():
            if "forward" in vars(m):  # set on the object, whose class may have none
                self._function(vars(m)["forward"])
        self._names: set[str] = {"forward"}
        self._strings: set[str] = set()
        self._pairs: set[tuple[str, str]] = set()
        self.holdings = Holdings(set(), set(), set(), self._of_object)
        while self._follow():  # objects have methods, whose code has names, which lead to objects
            self.holdings = Holdings(self._names | self._strings, self._strings, self._pairs, self._of_object)
            for path, m in self._modules.items():
                self._attributes(path, m)
                self._of_classes(path, m)
            for function in list(self.functions):
                if not is_foreign(function.__module__):
                    self._variables(function)

    def _follow(self) -> bool:
        """Follow names to functions, whose code has names; False if there are no new ones."""
        found = False
        while new := [f for f in self.functions if id(f) not in self._seen]:
            found = True
            for function in new:
                self._seen.add(id(function))
                self._names |= names_in(function.__code__)
                self._strings |= strings_in(function.__code__)
                self._pairs |= attributes_in(function.__code__)
            self._find_functions(self._modules, new)
        return found

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
        for function in (f for f in new if not is_foreign(f.__module__)):
            before = set(self.functions)
            for name in sorted(_global_names(function) & function.__globals__.keys()):
                self._function(function.__globals__[name])
            for module in _modules_of(function).values():
                for name in sorted(names_in(function.__code__) & vars(module).keys()):
                    self._function(vars(module)[name])
            for cell in function.__closure__ or ():
                self._function(_content(cell))
            if function in self._of_objects:
                self._note_packaged(before)

    def _method(self, cls: type, name: str) -> None:
        value = vars(cls).get(name)
        self._function(getattr(value, "__func__", getattr(value, "fget", value)), foreign=True)

    def _of_object(self, cls: type, name: str) -> None:
        """Note a method of a plain object's class; what packages name in such is their own code, which stays."""
        before = set(self.functions)
        self._method(cls, name)
        self._note_packaged(before)

    def _note_packaged(self, before: set[types.FunctionType]) -> None:
        new = self.functions.keys() - before
        self._of_objects |= {f for f in new if "site-packages" in f.__code__.co_filename}

    def _function(self, value: Any, foreign: bool = False) -> None:
        """Note a function, or what a callable object runs; ``foreign``: also one of torch's."""
        while isinstance(value, functools.partial):
            value = value.func
        if isinstance(value, types.MethodType):
            value = value.__func__
        if isinstance(value, types.FunctionType):
            if (foreign or not is_foreign(value.__module__)) and value not in self.functions:
                self.functions[value] = None
                if hasattr(value, "__wrapped__"):
                    self._function(value.__wrapped__)
        elif not isinstance(value, (type, nn.Module, Tensor)) and not is_foreign(type(value).__module__):
            self._method(type(value), "__call__")

    def with_helpers(self) -> Iterator[types.FunctionType]:
        """The functions, and those of the modules that they name."""
        yield from self.functions
        for function in self.functions:
            names, scope = names_in(function.__code__), function.__globals__
            for module in map(scope.get, globals_in(function.__code__)):
                if isinstance(module, types.ModuleType) and not is_foreign(module.__name__):
                    held = (vars(module)[name] for name in names & vars(module).keys())
                    yield from (f for f in held if isinstance(f, types.FunctionType))

    # --- what they read -------------------------------------------------------------------------

    def _attributes(self, path: str, m: nn.Module) -> None:
        for name in sorted((self._names | self._strings) & vars(m).keys()):
            value = vars(m)[name]
            if (
                not name.startswith("__")
                and not is_plain(value)
                and not isinstance(value, (Tensor, nn.Module))
            ):
                self.holdings.reach(f"{path}.{name}".removeprefix("."), "attribute", m, name, value)

    def _of_classes(self, path: str, m: nn.Module) -> None:
        """The methods that are called, and class attributes: both may be shadowed by a module's own."""
        for cls in (c for c in type(m).__mro__ if c in self._classes):
            self.holdings.of_class(path, cls)
            for name in sorted(self._names & vars(cls).keys() - vars(m).keys() - {"__dict__"}):
                value, where = vars(cls)[name], f"{path}.{name}".removeprefix(".")
                if isinstance(value, types.FunctionType):
                    bound = getattr(getattr(m, name), "__func__", None)
                    if bound is not None and not name.startswith("__"):
                        self.holdings.reach(where, "method", m, name, bound)
                elif not isinstance(value, (property, classmethod, staticmethod, types.MemberDescriptorType)):
                    self.holdings.reach(where, "attribute", m, name, getattr(m, name))

    def _variables(self, function: types.FunctionType) -> None:
        where, names = function.__name__, names_in(function.__code__)
        for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            read = variable in names - {"__class__", "self"}
            if read and (content := _content(cell)) is not GONE:
                self.holdings.reach(
                    f"{variable!r} of {where}", "variable", self._reader(cell), variable, content
                )
        scope = function.__globals__
        for variable in sorted(_global_names(function) & scope.keys()):
            value = scope[variable]
            of_a_library = function in self._of_objects and isinstance(value, _CODE)
            if not of_a_library and not isinstance(value, types.ModuleType):
                self.holdings.reach(f"the global {variable!r}", "item", scope, variable, value)
        for variable, module in _modules_of(function).items():
            held = vars(module)
            for name in sorted(names & held.keys()):
                if function in self._of_objects and isinstance(held[name], _CODE):
                    continue
                self.holdings.reach(f"{variable}.{name}", "item", held, name, held[name])
        if names & {"environ", "getenv"}:
            for key in sorted(self._keys(function)):
                now = os.environ.get(key, GONE)
                self.holdings.reach(f"the environment's {key}", "item", os.environ, key, now)
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self.holdings.inside(f"a default of {where}", default, None)

    def _keys(self, function: types.FunctionType) -> set[str]:
        """The strings that a function may look up in the environment: its own, and those that it reaches by a name."""
        held = [c for c in function.__code__.co_consts if isinstance(c, str)]
        held += [r.expected for r in self.holdings.found if type(r.expected) is str]
        held += [vars(m).get(name) for m in self._modules.values() for name in self._names & vars(m).keys()]
        return {key for key in held if type(key) is str and key.isidentifier()}

    def _reader(self, cell: types.CellType) -> types.FunctionType:
        return self._readers.setdefault(id(cell), reader(cell))


def _asks_for_type(code: types.CodeType) -> bool:
    """Whether code says ``type(x)``, or calls a method of ``dict`` past the object's own."""
    return "type" in globals_in(code) or any(owner == "dict" for owner, _ in attributes_in(code))


def _global_names(function: types.FunctionType) -> frozenset[str]:
    """The global variables that a function reads, those of ``globals()["name"]`` among them."""
    names = globals_in(function.__code__)
    return names | strings_in(function.__code__) if "globals" in names else names


def _modules_of(function: types.FunctionType) -> dict[str, types.ModuleType]:
    """The modules of the user's that a function names, or imports while it runs."""
    scope = function.__globals__
    found = {name: scope.get(name) for name in sorted(globals_in(function.__code__))}
    for name in sorted(imports_in(function.__code__)):
        inside = f"{scope.get('__package__') or ''}.{name}".strip(".")
        found[name] = sys.modules.get(name, sys.modules.get(inside))
    return {
        name: module
        for name, module in found.items()
        if isinstance(module, types.ModuleType) and not is_foreign(module.__name__)
    }


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return GONE
