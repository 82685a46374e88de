"""What a forward may leave changed outside of torch: attributes, containers, closures, globals, generators, tables.

All of it is found by what the code of a model can reach.
"""

from __future__ import annotations

import array
import collections
import contextvars
import functools
import itertools
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from graphaug.capture.recording.kept.caches import cached_functions
from graphaug.capture.recording.kept.kinds import SLOTS, kind_of
from graphaug.capture.recording.relied.code_names import written_in
from graphaug.capture.recording.values.inside import (
    NOTHING,
    attributes_of,
    content_of,
    inside,
    isinstance_of,
    slots_of,
)
from graphaug.capture.state import python_draws
from graphaug.proof.shadow.readiness import but_collectors
from graphaug.proof.shadow.records import Token
from graphaug.proof.shadow.shared import ENTRIES, REGISTRIES, Shared
from graphaug.proof.shadow.states import Cache, Modes, TensorFacts, generator_of
from graphaug.proof.shadow.watched import (
    PLAIN,
    Attributes,
    Bindings,
    Container,
    Kept,
    Many,
    NewNames,
    Registries,
    Watched,
    of_globals,
)

_CONTAINERS = (
    list,
    dict,
    set,
    collections.deque,
    collections.OrderedDict,
    collections.defaultdict,
    collections.Counter,
)
_MOST = 20_000
"""Objects that are looked at."""
_OF_TORCH = (
    "torch", "numpy", "_pytest", "builtins", "typing", "functools", "graphaug", "collections", "logging", "warnings",
)  # fmt: skip
_OF_USERS = (np.ndarray, bytearray, array.array, collections.UserDict, collections.UserList)
"""What is of those packages, and filled by users."""


class Surroundings:
    """The state that the code of some modules can reach, as it was when this was made.

    Args:
        model: all of its modules' attributes are watched.
        opened: those whose code runs: what their functions reach (closures, globals, default arguments, classes) is
            watched as well.
    """

    def __init__(self, model: nn.Module, opened: list[nn.Module]) -> None:
        self._attributes: list[Attributes] = []
        self._containers: list[Container | Kept | NewNames | Registries] = []
        self._bindings = Bindings()
        self._contexts: list[Watched] = []
        self._generators: list[Watched] = []
        self._tensors: list[Watched] = []
        self._seen: set[int] = set()
        self._classes: set[type] = set()
        self._shared = Shared()
        self._written: set[str] = set()
        self._own: dict[str, Many] = {}
        for path, module in model.named_modules():
            self._module(path, module)
        closed = (not any(m is o for o in opened) for m in model.modules())
        self._of_closed = list(itertools.compress(self._attributes, closed))
        of_modules = len(self._containers)
        for module in model.modules():
            for cls in type(module).__mro__:
                self._new_names_of(cls)
        for module in opened:
            self._code(module)
        for cls in self._classes:
            for name in self._written & vars(cls).keys():
                self._class_attribute(f"{cls.__name__}.{name}", cls, name)
        self._beside = Many([*self._containers[of_modules:], self._bindings])
        self._caches = list(map(Cache, cached_functions(but=(*_OF_TORCH, "sympy"))))
        self._modes = Modes(model)

    def note_modes(self) -> None:
        """Take the modes that the modules are in now as what they were."""
        self._modes.note()

    def changes(self) -> Iterator[tuple[str, Any]]:
        """What is not as it was: (its name, what it is now)."""
        for watched in self._all():
            yield from but_collectors(watched.changes())

    def seen_by(self, path: str, module: nn.Module) -> Iterator[tuple[str, Any]]:
        """What is not as it was of what a closed module may read: its own and, of user's code, what is no module's.

        Attributes of opened modules are left out: closed code does not read them.
        """
        if path not in self._own:
            of_modules = itertools.chain[Any](self._of_closed, self._containers)
            own = [w for w in of_modules if w.name == path or w.name.startswith(f"{path}.")]
            known = set(map(id, own))
            shared = (w for w in self._shared.reached_from(module) if id(w) not in known)
            self._own[path] = Many([*own, *shared])
        yield from but_collectors(self._own[path].changes())
        if any(type(m).__module__.partition(".")[0] != "torch" for m in module.modules()):
            yield from self._beside.changes()

    def left(self, token: Callable[[Any], Token]) -> dict[str, Token]:
        """What is not as it was, by its place, and the states of the generators of random numbers.

        Args:
            token: makes something that compares of a value.
        """
        python, numpy = python_draws()
        return {
            "the state of torch's random generator": hash(torch.get_rng_state().numpy().tobytes()),
            "the state of Python's random generator": hash(python),
            "the state of numpy's random generator": hash(repr(numpy)),
            **{name: token(value) for name, value in self.changes()},
        }

    def restore(self) -> None:
        """Put everything back."""
        for watched in self._all():
            watched.restore()

    def _all(self) -> Iterator[Watched]:
        yield from itertools.chain(self._attributes, self._containers, [self._modes, self._bindings])
        yield from itertools.chain(self._contexts, self._generators, self._tensors, self._caches)

    # --- what code can reach ------------------------------------------------------------------------

    def _module(self, path: str, module: nn.Module) -> None:
        self._seen.add(id(module))
        self._attributes.append(Attributes(path, module))
        tables = [v for k, v in vars(module).items() if k in REGISTRIES and isinstance(v, dict)]
        self._containers.append(Registries(path, tables))
        for name, value in list(vars(module).items()):
            where = f"{path}.{name}".removeprefix(".")
            if name in REGISTRIES and isinstance(value, dict):
                for key, entry in list(value.items()):
                    if isinstance(entry, Tensor):
                        self._tensors.append(Container(where.removesuffix(name) + key, vars(entry)))
                        self._tensors.append(TensorFacts(where.removesuffix(name) + key, entry))
                    elif callable(entry) and not isinstance(entry, nn.Module):
                        self._walk(entry, f"{where} hook", 3)
            elif not isinstance(value, nn.Module):
                self._walk(value, where, 4)

    def _code(self, module: nn.Module) -> None:
        for cls in type(module).__mro__:
            if cls.__module__.partition(".")[0] in _OF_TORCH or id(cls) in self._seen:
                continue
            self._seen.add(id(cls))
            for name, value in list(vars(cls).items()):
                if name.startswith("__") and name not in ("__call__", "__getattr__"):
                    continue
                value = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
                if not callable(value) and not isinstance(value, (property, types.MemberDescriptorType)):
                    self._class_attribute(f"{cls.__name__}.{name}", cls, name)
                self._walk(value.fget if isinstance(value, property) else value, f"{cls.__name__}.{name}", 4)

    def _new_names_of(self, cls: type) -> None:
        if cls is not object and cls not in self._classes:
            self._classes.add(cls)
            self._containers.append(NewNames(cls.__name__, vars(cls), functools.partial(delattr, cls)))

    def _class_attribute(self, name: str, cls: type, key: str) -> None:
        read, write = functools.partial(vars(cls).get, key), functools.partial(setattr, cls, key)
        self._bindings.add(name, read, write)

    def _walk(self, value: Any, name: str, depth: int) -> None:
        if depth == 0 or isinstance(value, (*PLAIN, types.ModuleType)) or id(value) in self._seen:
            return
        if len(self._seen) > _MOST:
            return
        self._seen.add(id(value))
        if (generator := generator_of(value, name)) is not None:
            self._generators.append(generator)
            return
        if isinstance(value, (Tensor, type, nn.Module, threading.Thread)):
            return  # a thread changes its own attributes whenever it likes, as that of tqdm does
        if isinstance(value, types.MethodType):
            self._walk(value.__func__, name, depth)
            self._walk(value.__self__, name, depth - 1)
        elif isinstance(value, types.FunctionType):
            self._function(value, name, depth)
        elif isinstance(value, functools.partial):
            for part in (value.func, *value.args, *value.keywords.values()):
                self._walk(part, name, depth - 1)
        elif "__wrapped__" in (attributes_of(value) or ()):
            self._walk(vars(value)["__wrapped__"], name, depth)
        elif type(value) in _CONTAINERS:
            self._hold(value, Container(name, value))
            for entry in list(value.values() if isinstance(value, dict) else value)[:ENTRIES]:
                self._walk(entry, name, depth - 1)
        elif isinstance(value, tuple):
            for entry in value[:ENTRIES]:
                self._walk(entry, name, depth - 1)
        elif isinstance(value, _OF_USERS) or type(value).__module__.partition(".")[0] not in _OF_TORCH:
            self._object(value, name, depth)

    def _hold(self, value: Any, watched: Container | Kept) -> None:
        self._containers.append(watched)
        self._shared.note(value, watched)

    def _object(self, value: Any, name: str, depth: int) -> None:
        """Watch what an object holds, in whatever way its class has."""
        if (kind := kind_of(value)) is not None:
            # around a call, libraries set context variables that closed code of theirs reads
            kept = Kept(name, value, kind)
            if isinstance_of(value, contextvars.ContextVar):
                self._contexts.append(kept)
            else:
                self._hold(value, kept)
        if slots_of(value):
            self._hold(value, Kept(name, value, SLOTS))
        if (attributes := attributes_of(value)) is not None:
            self._hold(value, Container(name, attributes))
        for how, entry in itertools.islice(inside(value), ENTRIES):
            self._walk(entry, f"{name}{how}", depth - 1)

    def _function(self, function: types.FunctionType, name: str, depth: int) -> None:
        if (function.__module__ or "").partition(".")[0] in _OF_TORCH:
            return
        for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if id(cell) not in self._seen and (held := content_of(cell)) is not NOTHING:
                self._seen.add(id(cell))
                write = functools.partial(setattr, cell, "cell_contents")
                self._bindings.add(f"{variable} of {name}", functools.partial(content_of, cell), write)
                self._walk(held, f"{variable} of {name}", depth - 1)
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._walk(default, f"a default of {name}", depth - 1)
        self._containers.append(Container(name, vars(function)))
        self._globals(function, depth)

    def _globals(self, function: types.FunctionType, depth: int) -> None:
        """What a function, or one that is written inside of it, reaches by a global name."""
        scope, code = function.__globals__, function.__code__
        inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
        names = {name for c in (code, *inner) for name in c.co_names}
        written = written_in(code)
        self._written |= written
        self._containers.append(NewNames("", scope, scope.__delitem__, written - scope.keys()))
        for variable in names & scope.keys():
            value = scope[variable]
            if not isinstance(value, types.ModuleType):
                self._binding(variable, scope, variable, depth)
                continue
            held, delete = vars(value), functools.partial(delattr, value)
            self._containers.append(NewNames(variable, held, delete, written - held.keys()))
            for attribute in written & held.keys():
                self._bound(f"{variable}.{attribute}", held, attribute)
            if value.__name__.partition(".")[0] not in {*_OF_TORCH, *sys.stdlib_module_names}:
                for attribute in names & held.keys():
                    self._binding(f"{variable}.{attribute}", held, attribute, depth)

    def _binding(self, name: str, scope: dict[str, Any], variable: str, depth: int) -> None:
        value = scope[variable]
        self._bound(of_globals(name) if name == variable else name, scope, variable)
        if not isinstance(value, type):
            self._walk(value, name, depth - 1)
            return
        self._new_names_of(value)
        if issubclass(value, nn.Module) or id(value) in self._seen or value.__module__ in _OF_TORCH:
            return
        self._seen.add(id(value))
        for key, entry in list(vars(value).items()):
            if not key.startswith("__") and not callable(entry):
                self._class_attribute(f"{name}.{key}", value, key)
                self._walk(entry, f"{name}.{key}", depth - 1)

    def _bound(self, name: str, scope: dict[str, Any], variable: str) -> None:
        read = functools.partial(scope.get, variable)
        self._bindings.add(name, read, functools.partial(scope.__setitem__, variable))
