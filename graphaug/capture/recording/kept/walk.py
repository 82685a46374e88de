"""Finds what a model's code can reach, and notes what it holds: nearest first, whatever the kinds of its holders."""

from __future__ import annotations

import collections
import functools
import sys
import types
from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor, nn

from graphaug.capture.recording.kept.caches import Results
from graphaug.capture.recording.kept.generators import Moving, iterators_in, moving
from graphaug.capture.recording.kept.kinds import DICT, SLOTS, SMALL, Record, is_of_a_capture
from graphaug.capture.recording.kept.layouts import Layout, is_foreign
from graphaug.capture.recording.kept.names import Attributes, Cell, Names
from graphaug.capture.recording.values.inside import (
    ATOMS,
    attributes_of,
    bases,
    content_of,
    entries_of_class,
    inside,
    package_of,
    slots_of,
)
from graphaug.capture.user_code import is_installed_file

_MOST = 30_000
"""Objects that are looked at: beyond, those are left out that are the farthest from the model."""
_FUNCTIONS = 700
"""Functions of installed libraries that are followed: their own layers and tables, not what downloads their weights."""
_WITHOUT_EFFECT = frozenset(
    {"__dict__", "__weakref__", "__repr__", "__eq__", "__hash__", "__str__", "__reduce__"}
)
"""What classes have that no forward calls, or that keeps nothing."""
_NUMBERS = 1 << 25
"""Numbers in tensors and arrays that are copied, all in all."""
_REGISTRIES = frozenset(vars(nn.Module()))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_ALL_NAMES = frozenset({"globals", "eval", "exec"})
"""What code says that may read any name."""


class Found:
    """What the code of a model's modules can reach, and what it holds now.

    Attributes:
        records: objects with their contents.
        names: namespaces, classes, cells, and the attributes of the model's modules.
        caches: tables of `functools.lru_cache`.
        moving: generators and counters.
        opaque: objects of which nothing can be put back, with how they are reached.

    Args:
        model: the model; its registries and attributes are put back by `graphaug.capture.state`.
        others: further objects, such as example inputs.
    """

    def __init__(self, model: nn.Module, others: Iterable[Any] = ()) -> None:
        self.records: list[Record] = []
        self.names: list[Names | Cell | Attributes] = []
        self.caches: dict[int, Results] = {}
        self.moving: list[Moving] = []
        self.opaque: list[tuple[str, Any]] = []
        self._seen: set[int] = set()
        self._alive: list[Any] = []
        self._read: dict[int, set[str]] = {}
        self._named: set[str] = {"forward"}
        self._unnamed: dict[str, list[tuple[str, Any]]] = {}
        self._numbers = 0
        self._layouts: dict[type, Layout] = {}
        self._waiting: collections.deque[tuple[str, Any]] = collections.deque()
        self._of_libraries: collections.deque[tuple[str, types.FunctionType]] = collections.deque()
        self._model(model)
        self._waiting.extend(("example_inputs", other) for other in others)
        self._follow()

    def holds(self, value: Any) -> bool:
        """Whether an object is among what was found."""
        return id(value) in self._seen

    def _follow(self) -> None:
        """Look at what waits; code of installed libraries after the user's own, and not for ever."""
        functions = 0
        while (self._waiting or self._of_libraries) and len(self._seen) < _MOST:
            if self._waiting:
                self._visit(*self._waiting.popleft())
            elif (functions := functions + 1) > _FUNCTIONS:
                return
            else:
                self._function(*self._of_libraries.popleft())

    def _model(self, model: nn.Module) -> None:
        """The modules' own attributes; what is registered is another's to put back."""
        for module in model.modules():
            self._seen |= {id(module), id(vars(module))}
            self._seen |= {id(t) for own in (module._parameters, module._buffers) for t in own.values()}
        for path, module in model.named_modules():
            self.names.append(Attributes(vars(module)))
            self._class(type(module))
            for name, value in list(vars(module).items()):
                where = f"{path}.{name}".removeprefix(".")
                if name in _HOOKS:
                    self._waiting.extend((f"a hook of {path!r}", hook) for hook in value.values())
                elif name not in _REGISTRIES:
                    self._waiting.append((where, value))

    def _first(self, value: Any) -> bool:
        """Whether an object is met for the first time; it is kept alive, so that no other has its place."""
        if id(value) in self._seen:
            return False
        self._seen.add(id(value))
        self._alive.append(value)
        return True

    def _visit(self, name: str, value: Any) -> None:
        kind = type(value)
        if kind in ATOMS or id(value) in self._seen:
            return
        if kind is types.FunctionType:
            if is_installed_file(value.__code__.co_filename):
                self._of_libraries.append((name, value))
            else:
                self._function(name, value)
        elif type in bases(kind):
            self._class(value)
        elif types.ModuleType in bases(kind):
            return  # the names that code reads of it are followed where they are read
        elif self._first(value):
            self._object(name, value, kind)

    def _object(self, name: str, value: Any, kind: type) -> None:
        layout = self._layout(kind)
        if kind is functools._lru_cache_wrapper:
            self.caches[id(value)] = Results(value, reached=True)
        elif layout.may_move and (found := moving(value, name, self.replace)) is not None:
            self.moving.append(found)
            if not layout.is_opaque:
                return
            inner = iterators_in(value)
            self._seen.update(map(id, inner))
            self._alive.extend(inner)
        if layout.contents is not None and self._is_affordable(value):
            self.records.append(Record(name, value, layout.contents))
        if layout.is_opaque:
            self.opaque.append((name, value))
        if layout.own and (held := attributes_of(value)) is not None and self._first(held):
            self.records.append(Record(name, held, DICT))
        if layout.own and slots_of(value):
            self.records.append(Record(name, value, SLOTS))
        if layout.own:
            self._class(kind)
        if layout.followed:
            self._waiting.extend(
                (name + how, inner) for how, inner in inside(value) if id(inner) not in self._seen
            )

    def _layout(self, kind: type) -> Layout:
        if kind not in self._layouts:
            self._layouts[kind] = Layout(kind)
        return self._layouts[kind]

    def _is_affordable(self, value: Any) -> bool:
        """Whether its numbers are few enough to be copied, with those that were."""
        if is_of_a_capture(value):  # whose size may be a symbol
            return False
        if isinstance(value, (Tensor, np.ndarray)):
            size = value.numel() if isinstance(value, Tensor) else value.size
            self._numbers += size if size <= SMALL else 0
        return self._numbers <= _NUMBERS

    def replace(self, old: Any, new: Any) -> bool:
        """Have another object in the place of one that cannot be put back; False if it was found nowhere."""
        found = [kept.replace(old, new) for kept in (*self.records, *self.names)]
        return any(found)

    # --- code -----------------------------------------------------------------------------------

    def _class(self, cls: type) -> None:
        """The attributes of a class and its bases, and what its functions reach."""
        for base in bases(cls):
            if is_foreign(package_of(base)) or not self._first(base):
                continue
            self.names.append(Names(base))
            if not is_foreign(package_of(type(base))):
                self._class(type(base))
            for name, value in list(entries_of_class(base).items()):
                if (
                    type(value) in ATOMS
                    or name in _WITHOUT_EFFECT
                    or (name == "__init__" and nn.Module in bases(base))
                ):
                    continue
                if name in self._named or (name.startswith("__") and type(value) is types.FunctionType):
                    self._waiting.append((f"{base.__name__}.{name}", value))
                else:
                    self._unnamed.setdefault(name, []).append((f"{base.__name__}.{name}", value))

    def _function(self, name: str, function: types.FunctionType) -> None:
        """What a function keeps: defaults, closure, attributes, globals; of foreign ones what they were given."""
        scope = function.__globals__
        foreign = is_foreign(scope.get("__name__"))
        if not self._first(function) or (foreign and not function.__closure__):
            return
        for cell in function.__closure__ or ():
            if self._first(cell):
                self.names.append(Cell(cell))
                self._waiting.append((f"a variable of {function.__name__}", content_of(cell)))
        self._waiting.extend((f"a default of {function.__name__}", d) for d in function.__defaults__ or ())
        held = vars(function)
        self._waiting.extend((f"{function.__name__}.{key}", value) for key, value in held.items())
        if foreign:
            return
        self.records.append(Record(function.__name__, held, DICT))
        self._waiting.append((f"a default of {function.__name__}", function.__kwdefaults__))
        names = names_of(function.__code__)
        for new in names - self._named:
            self._waiting.extend(self._unnamed.pop(new, ()))
        self._named |= names
        self._namespace(scope, scope if names & _ALL_NAMES else names)
        package = scope.get("__package__")
        for imported in names & _last_names(len(sys.modules)):
            for module in (sys.modules.get(imported), sys.modules.get(f"{package}.{imported}")):
                self._module(module, names)

    def _namespace(self, scope: dict[str, Any], names: Iterable[str]) -> None:
        """The names that code reads of a namespace; those of other modules where they are read through these."""
        if id(scope) not in self._read:
            self._read[id(scope)] = set()
            self.names.append(Names(scope))
        read = self._read[id(scope)]
        for name in [n for n in names if n in scope and n not in read]:
            read.add(name)
            value = scope[name]
            if types.ModuleType not in bases(type(value)):
                self._waiting.append((f"the global {name!r}", value))
        for name in [n for n in names if n in scope]:
            self._module(scope[name], names)

    def _module(self, module: Any, names: Iterable[str]) -> None:
        """The names that code reads of a module that it names."""
        scope = attributes_of(module) if types.ModuleType in bases(type(module)) else None
        if scope is None or is_foreign(scope.get("__name__")):
            return
        unread = {name for name in names if name in scope} - self._read.get(id(scope), set())
        if unread or id(scope) not in self._read:
            self._namespace(scope, unread)


@functools.lru_cache(8192)
def names_of(code: types.CodeType) -> frozenset[str]:
    """The names that code, and functions that are written inside of it, may read: attributes and strings, too."""
    found = {*code.co_names, *(c for c in code.co_consts if type(c) is str and c.isidentifier())}
    return frozenset(found.union(*(names_of(c) for c in code.co_consts if type(c) is types.CodeType)))


@functools.lru_cache(1)
def _last_names(loaded: int) -> frozenset[str]:
    """The names, and last parts of names, of the modules that are loaded: how code imports them."""
    return frozenset({*sys.modules, *(name.rpartition(".")[2] for name in list(sys.modules))})
