"""Finds what the code of opened modules reaches besides their attributes.

What counts is what ``forward`` and the functions that it can call name in their code; nothing is run.
"""

from __future__ import annotations

import copy
import functools
import logging
import os
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from graphaug.capture.recording.patches import behind
from graphaug.capture.recording.relied.asked_names import asked_globals_in
from graphaug.capture.recording.relied.called import Called, is_installed
from graphaug.capture.recording.relied.classes import is_foreign, may_be_put_there, with_code
from graphaug.capture.recording.relied.code_names import asks_for_type, names_in
from graphaug.capture.recording.relied.facts import is_plain
from graphaug.capture.recording.relied.holdings import Holdings
from graphaug.capture.recording.relied.modules import (
    FUNCTIONS,
    asked_modules,
    content,
    global_names,
    missing_on,
    of_users,
    read_off_others,
)
from graphaug.capture.recording.relied.moving import moving_in
from graphaug.capture.recording.relied.reached import CHANGED, GONE, Reached, reader


@dataclass(frozen=True)
class InReach:
    """What forwards reach.

    Attributes:
        things: each of it.
        by_type: whether their code may tell a dict from one that stands for it.
        unwatched: names of what is not compared in every call, with why, and with what it was reached through.
        names: the names of attributes and globals in their code.
        strings: those that it asks for by a string, `getattr(self, "gain", 1.0)`.
        functions: their functions and methods, and what these call.
        beside: modules that were asked about in ``enters``.
        copies: whether their code may copy objects, of which it reads all.
        goes_through_attributes: whether their code may read all that ``vars(self)`` holds.
        of_locals: attributes that their code asks variables of its own for, which may hold parameters.
    """

    things: list[Reached]
    by_type: bool
    unwatched: list[tuple[str, Reached | None]] = field(default_factory=list)
    names: frozenset[str] = frozenset()
    strings: frozenset[str] = frozenset()
    functions: tuple[types.FunctionType, ...] = ()
    beside: tuple[nn.Module, ...] = ()
    copies: bool = False
    goes_through_attributes: bool = False
    of_locals: frozenset[str] = frozenset()


def reached_by(
    model: nn.Module, opened: Iterable[str], enters: Callable[[nn.Module], bool] | None = None
) -> InReach:
    """What the forwards of a model's opened modules reach, as it is now.

    Args:
        model: the model.
        opened: paths of the modules whose code a graph stands for; the model itself is always one.
        enters: whether opened code runs code of another module itself: of a closed one by another method than
            ``forward``, or of one that no module has registered. Without it nothing beside the opened ones counts.
    """
    walk = _Walk(model, {"", *opened}, enters)
    by_type = any(asks_for_type(f.__code__) for f in walk.called.with_helpers())
    names, strings = frozenset(walk.called.names | walk.called.strings), frozenset(walk.called.strings)
    found, unwatched = walk.holdings.found, walk.holdings.unwatched
    whole = "vars" in names or "__dict__" in walk.called.through
    functions, beside = tuple(walk.called.functions), tuple(walk.beside.values())
    copies = "deepcopy" in names or walk.copies
    held = {name for m in model.modules() for name in vars(m)} | {"self"}
    of_locals = frozenset(name for owner, name in walk.called.asked_of_locals if owner not in held)
    return InReach(found, by_type, unwatched, names, strings, functions, beside, copies, whole, of_locals)


def found_again(
    packed: Iterable[tuple[str, int, tuple[Any, ...] | None]],
    model: nn.Module,
    opened: Iterable[str],
    enters: Callable[[nn.Module], bool] | None = None,
) -> Iterator[Reached]:
    """What `Reached.packed` described, in a copy of the model or after loading it.

    A plain value is the one that the graph was captured for, whatever it is now; what was changed before does not hold.
    """
    found = reached_by(model, opened, enters).things
    there = {(reached.name, reached.number): reached for reached in found}
    for name, number, plain in packed:
        reached = there.get((name, number))
        if plain is None:
            yield replace(reached or Reached(name, "attribute", model, "", None), expected=CHANGED)
        elif reached is not None:
            yield replace(reached, expected=plain[0]) if plain else reached


def any_module(_: nn.Module) -> bool:
    """That code may enter any module."""
    return True


_CODE = (type, types.FunctionType, types.BuiltinFunctionType, logging.Logger)
_BY_COMPUTED_NAMES = {"getattr", "vars", "__dict__", "__getattribute__", "attrgetter"}
_OF_EVERY_MODULE = vars(nn.Module()).keys()
_HOOKS = frozenset(name for name in _OF_EVERY_MODULE if name.endswith("_hooks"))


class _Walk:
    """Follows the names in the code of forwards."""

    def __init__(
        self, model: nn.Module, opened: set[str], enters: Callable[[nn.Module], bool] | None
    ) -> None:
        registered = dict(model.named_modules())
        self._enters = enters
        self._is_opened, self.copies = True, False
        self._readers: dict[int, types.FunctionType] = {}
        self._modules = {path: m for path, m in registered.items() if path in opened}
        self._closed = {} if enters is None else with_code(registered, opened)
        self._registered = {id(m) for m in registered.values()}
        self.beside = {id(m): m for m in self._closed.values()}
        entered = {path: m for path, m in self._closed.items() if enters is not None and enters(m)}
        self.called = Called(self._modules, entered)
        self.holdings = Holdings(self.called, self._held)
        while self.called.follow():  # objects have methods, whose code has names, which lead to objects
            called = self.called
            names = called.names | called.strings
            of_module = None if enters is None else self._unregistered
            self._noted: set[int] = set()
            self.holdings = Holdings(called, self._held, of_module)
            for path, m in (*self._modules.items(), *self._closed.items()):
                self._is_opened = path in self._modules
                of_keys = {"_keys"} if isinstance(m, nn.ParameterDict) else set()
                self._attributes(path, m, names | of_keys)
                self._of_classes(path, m)
            self._is_opened = True
            asked = {owner for owner, _ in called.asked}
            for path, m in registered.items():
                self._attributes(path, m, names & _HOOKS)
                for name, tensor in (*m._parameters.items(), *m._buffers.items()):
                    if tensor is not None and (vars(tensor) or name in asked):
                        self.holdings.set_on(f"{path}.{name}".removeprefix("."), tensor)
            self._of_tensors()
            for function in list(called.functions):
                if not is_foreign(function.__module__):
                    self._variables(function)
            if enters is not None and names & _BY_COMPUTED_NAMES:  # which of them were read is seen
                for path, m in (*self._modules.items(), *self._closed.items()):
                    self._is_opened = path in self._modules
                    self._attributes(path, m, vars(m).keys() - _OF_EVERY_MODULE)

    def _held(self, function: types.FunctionType) -> None:
        """Follow a function that lies in what is reached; that of a closed module is called by this itself."""
        if self._is_opened:
            self.called.held(function)

    # --- what they read -------------------------------------------------------------------------

    def _attributes(self, path: str, m: nn.Module, names: AbstractSet[str]) -> None:
        for name in sorted(names & vars(m).keys()):
            value = vars(m)[name]
            if (
                not name.startswith("__")
                and not is_plain(value)
                and not isinstance(value, (Tensor, nn.Module))
            ):
                self.holdings.reach(f"{path}.{name}".removeprefix("."), "attribute", m, name, value)

    def _of_classes(self, path: str, m: nn.Module) -> None:
        """The methods that are called, and class attributes: both may be shadowed by a module's own."""
        own = {*self.called.classes, *self.called.entered, nn.Module}
        for cls in (c for c in type(m).__mro__ if c in own):
            self.holdings.of_class(cls)
            for name in sorted(self.called.names & vars(cls).keys() - vars(m).keys() - {"__dict__"}):
                value, where = vars(cls)[name], f"{path}.{name}".removeprefix(".")
                if cls is nn.Module and not may_be_put_there(name, value):
                    continue
                if isinstance(value, (types.FunctionType, classmethod)):
                    bound = getattr(getattr(m, name), "__func__", None)
                    if bound is not None and not name.startswith("__"):
                        self.holdings.reach(where, "method", m, name, bound)
                elif isinstance(value, (property, functools.cached_property)):
                    self.holdings.reach(where, "property", m, name, getattr(type(m), name))
                elif not isinstance(value, types.MemberDescriptorType):
                    self.holdings.reach(where, "attribute", m, name, getattr(m, name))

    def _of_tensors(self) -> None:
        """What a user has put on the class of tensors, and code reads off one."""
        for name in sorted(self.called.names & vars(Tensor).keys()):
            if may_be_put_there(name, vars(Tensor)[name]):
                self.holdings.reach(f"Tensor.{name}", "attribute", Tensor, name, vars(Tensor)[name])

    def _unregistered(self, name: str, module: nn.Module) -> None:
        """A module that no other has registered, in a list or a global: a graph holds it as it is, tensors and all."""
        skipped = self._registered | self._noted
        new = {path: m for path, m in module.named_modules() if id(m) not in skipped}
        self._noted |= {id(m) for m in new.values()}  # each by its own path
        for path, m in new.items():
            self.beside[id(m)] = m
            if self._enters is not None and self._enters(m):
                self.called.add(m)
            where = f"{name}.{path}".removesuffix(".")
            held = {**m._parameters, **m._buffers, **m._modules, **vars(m)}
            for key in sorted(held.keys() - _OF_EVERY_MODULE | {"training", "_modules"}):
                self.holdings.reach(f"{where}.{key}", "attribute", m, key, held[key])
            self._of_classes(where, m)
            hooks = [*m._forward_hooks, *m._forward_pre_hooks, *m._backward_hooks]
            asked = Reached(where, "attribute", m, "_forward_hooks", None)
            self.holdings.add(f"the hooks of {where}", "hooks", m, None, hooks, asked)

    def _variables(self, function: types.FunctionType) -> None:
        where, names = function.__name__, names_in(function.__code__)
        if not is_installed(function):  # a notebook that reloads a file exchanges its code in place
            spelled = function.__qualname__.rpartition("<locals>.")[2]
            self.holdings.add(f"the code of {spelled}", "code", function, None, function.__code__, None)
        for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            read = variable in names - {"__class__", "self"}
            if read and (held := content(cell)) is not GONE:
                self.holdings.reach(
                    f"{variable!r} of {where}", "variable", self._reader(cell), variable, held
                )
        scope = function.__globals__
        for variable in sorted(global_names(function) & scope.keys()):
            value = scope[variable]
            self.copies |= value is copy.copy
            of_a_library = function in self.called.of_objects and isinstance(value, _CODE)
            if not of_a_library and not isinstance(value, types.ModuleType):
                self.holdings.reach(f"the global {variable!r}", "item", scope, variable, value)
        if "globals" in names:
            for missing in sorted(asked_globals_in(function.__code__) - scope.keys()):
                self.holdings.reach(f"the global {missing!r}", "item", scope, missing, GONE)
        self._off_modules(function)
        if self._enters is None and names & {"environ", "getenv"}:  # what opened code asks there is seen
            for key in sorted(self._keys(function)):
                now = os.environ.get(key, GONE)
                self.holdings.reach(f"the environment's {key}", "item", os.environ, key, now)
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self.holdings.inside(f"a default of {where}", default, None)

    def _off_modules(self, function: types.FunctionType) -> None:
        of_a_package = function in self.called.of_objects
        named, reach = self.called.named(function), self.holdings.reach
        for variable, module, names in of_users(named):
            held = vars(module)
            for name in sorted(names & held.keys()):
                if not (of_a_package and isinstance(held[name], _CODE)):
                    reach(f"{variable}.{name}", "item", held, name, held[name])
            if "__getattr__" in held and not of_a_package:
                reach(f"{variable}.__getattr__", "item", held, "__getattr__", held["__getattr__"])
        for spelled, held, name in missing_on(function, named):
            reach(spelled, "item", held, name, GONE)
        if of_a_package:
            return
        for spelled, held, name in read_off_others(function, named):
            there = behind(held[name])
            self.copies |= there is copy.copy
            if may_be_put_there(name, there):
                reach(spelled, "item", held, name, there)
            elif isinstance(there, FUNCTIONS):
                reach(spelled, "function", held, name, there)
            elif isinstance(there, type):
                self.holdings.of_class(there, name)
        for module_name in asked_modules(function):
            if module_name is None:
                self.holdings.unwatched.append(("sys.modules", None))
            else:
                there, said = sys.modules.get(module_name, GONE), f"sys.modules[{module_name!r}]"
                self.holdings.add(said, "item", sys.modules, module_name, there, None)
        if not is_installed(function):
            self.holdings.unwatched += [(f"what {spelled} says", None) for spelled in moving_in(function)]

    def _keys(self, function: types.FunctionType) -> set[str]:
        """The strings that a function may look up in the environment: its own, and those that it reaches by a name."""
        held = [c for c in function.__code__.co_consts if isinstance(c, str)]
        held += [r.expected for r in self.holdings.found if type(r.expected) is str]
        held += [
            vars(m).get(name) for m in self._modules.values() for name in self.called.names & vars(m).keys()
        ]
        return {key for key in held if type(key) is str and key.isidentifier()}

    def _reader(self, cell: types.CellType) -> types.FunctionType:
        return self._readers.setdefault(id(cell), reader(cell))
