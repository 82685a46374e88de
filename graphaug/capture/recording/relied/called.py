"""Finds the functions that forwards may call, by the names in their code; nothing is run."""

from __future__ import annotations

import functools
import itertools
import types
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from graphaug.capture.recording.relied.asked_names import asked_attributes_in, strings_in
from graphaug.capture.recording.relied.classes import is_foreign
from graphaug.capture.recording.relied.code_names import (
    attributes_in,
    calls_in,
    globals_in,
    gone_through_in,
    names_in,
    variables_in,
)
from graphaug.capture.recording.relied.modules import Named, content, global_names, named_by, of_users
from graphaug.capture.user_code import is_installed_file

NO_READERS = {"__init__", "__new__", "__repr__", "__str__", "__reduce__", "__del__", "__init_subclass__"}
"""Methods of objects that run when these are made, told or gone."""
_OF_OBJECTS = {"vars", "dir", "__dict__", "getmembers", "getmembers_static"}
"""What says which attributes an object has."""
BY_OPERATORS = {"__getitem__", "__iter__", "__len__", "__contains__"}
"""Methods that no code names."""


class Called:
    """Follows names to functions, whose code has names.

    Args:
        opened: modules whose forwards run.
        entered: closed ones that may be entered by another method.

    Attributes:
        functions: all that were found, in order.
        names, strings, pairs: what their code reads; see `code_names`.
        asked: the attributes that it asks for by strings, each with the name of what it asks.
        owners: of every attribute that it reads, the names of what it is read off.
        calls: the names of what it calls.
        through, filled: names of containers that their code goes through, and that it fills.
        of_objects: functions that packages reach from plain objects.
        classes, entered: the classes of the modules that are opened, and of those that may be entered.
    """

    def __init__(self, opened: Mapping[str, nn.Module], entered: Mapping[str, nn.Module]) -> None:
        self.functions: dict[types.FunctionType, None] = {}
        self.of_objects: set[types.FunctionType] = set()
        self.names: set[str] = {"forward"}
        self.strings: set[str] = set()
        self.pairs: set[tuple[str, str]] = set()
        self.asked: set[tuple[str, str]] = set()
        self.owners: dict[str, set[str]] = {}
        self.calls: set[str] = set()
        self.through: set[str] = set()
        self.filled: set[str] = set()
        self._seen: set[int] = set()
        self._named: dict[types.FunctionType, list[Named]] = {}
        self._modules: dict[int, nn.Module] = {}
        self._closed = list(entered.values())
        self.classes: dict[type, None] = {}
        for m in opened.values():
            self.add(m)
        self.entered = {
            cls: None for m in self._closed for cls in type(m).__mro__ if not is_foreign(cls.__module__)
        }

    def add(self, m: nn.Module) -> None:
        """Note a module whose forward runs."""
        self._modules[id(m)] = m
        for cls in (c for c in type(m).__mro__ if c not in (nn.Module, object)):
            self.classes[cls] = None
            self._method(cls, "forward")
            if not is_foreign(cls.__module__):  # what no code names: __getattr__, __len__
                for name in (n for n in vars(cls) if n.startswith("__") and n not in NO_READERS):
                    self._method(cls, name)
        for name in sorted(self.names & vars(m).keys()):  # set on the object, whose class may have none
            self._function(vars(m)[name])
        for hooks in (m._forward_hooks, m._forward_pre_hooks):
            for hook in hooks.values():
                self._function(hook)

    def follow(self) -> bool:
        """Follow names to functions, whose code has names; False if there are no new ones."""
        found = False
        while new := [f for f in self.functions if id(f) not in self._seen]:
            found = True
            for function in new:
                self._seen.add(id(function))
                self.names |= names_in(function.__code__)
                self.strings |= strings_in(function.__code__)
                self.pairs |= attributes_in(function.__code__)
                self.asked |= asked_attributes_in(function.__code__)
                self.calls |= calls_in(function.__code__)
                through, filled = gone_through_in(function.__code__)
                self.through |= through
                self.filled |= filled
            self._find(new)
        for owner, name in self.pairs if found else ():
            self.owners.setdefault(name, set()).add(owner)
        return found

    def named(self, function: types.FunctionType) -> list[Named]:
        """The modules of Python that a function names."""
        if function not in self._named:
            self._named[function] = named_by(function)
        return self._named[function]

    @property
    def asked_of_locals(self) -> Iterator[tuple[str, str]]:
        """Those of ``asked`` that are asked of a variable of a function."""
        for function in self.functions:
            asked, own = asked_attributes_in(function.__code__), variables_in(function.__code__)
            yield from ((owner, name) for owner, name in asked if owner in own)

    @property
    def whole(self) -> set[str]:
        """Names of containers that their code goes through and does not fill."""
        return self.through - self.filled

    @property
    def goes_through_objects(self) -> bool:
        """Whether their code may ask for all attributes of an object."""
        return not self.names.isdisjoint(_OF_OBJECTS)

    def _find(self, new: list[types.FunctionType]) -> None:
        by_name = {name for _, name in self.pairs} | BY_OPERATORS  # "forward" is not, unless code says it
        for classes, names in ((self.classes, self.names), (self.entered, by_name)):
            for cls in classes:
                for name in sorted(names & vars(cls).keys()):
                    self._method(cls, name)
        for cls in (nn.Module, Tensor):  # whose own are foreign, those that users put there are not
            for name in sorted(self.names & vars(cls).keys()):
                self._method(cls, name, foreign=False)
        for modules, names in ((self._modules.values(), self.names), (self._closed, by_name)):
            for m in modules:
                for name in sorted(names & vars(m).keys()):
                    self._function(vars(m)[name])
        for function in (f for f in new if not is_foreign(f.__module__)):
            before = len(self.functions)
            for name in sorted(global_names(function) & function.__globals__.keys()):
                self._function(function.__globals__[name])
            for _, module, read in of_users(self.named(function)):
                for name in sorted(read & vars(module).keys()):
                    self._function(vars(module)[name])
            for cell in function.__closure__ or ():
                self._function(content(cell))
            if function in self.of_objects:
                self._note_packaged(before)

    def _method(self, cls: type, name: str, foreign: bool = True) -> None:
        value = vars(cls).get(name)
        self._function(getattr(value, "__func__", getattr(value, "fget", value)), foreign)

    def of_object(self, cls: type, name: str) -> None:
        """Note a method of a plain object's class; what packages name in such is their own code, which stays."""
        before = len(self.functions)
        self._method(cls, name)
        self._note_packaged(before)

    def held(self, function: types.FunctionType) -> None:
        """Note a function that lies in a list, a dict or an object; what packages keep in such is their own code."""
        if not is_installed(function):
            self._function(function)

    def _note_packaged(self, before: int) -> None:
        new = itertools.islice(reversed(self.functions), len(self.functions) - before)
        self.of_objects |= {f for f in new if is_installed(f)}

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


def is_installed(function: types.FunctionType) -> bool:
    """Whether a function is of a package that was installed, and not of a file that the user works on."""
    return is_installed_file(function.__code__.co_filename)
