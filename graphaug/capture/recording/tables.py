"""What a forward can keep outside of its modules' attributes: tables of modules and classes, caches, generators.

During a capture such a table would be filled with fake tensors, and the user's own model would find them there.
"""

from __future__ import annotations

import contextlib
import random
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import Tensor, nn

from graphaug.capture.recording.patches import LOCK
from graphaug.capture.recording.values.structures import holds
from graphaug.capture.recording.values.tracked import is_tracked
from graphaug.capture.user_code import global_scopes
from graphaug.torch_private import FakeTensor

_CONTAINERS = (dict, list, set, OrderedDict, defaultdict, deque)
_FOREIGN = (
    "torch",
    "numpy",
    "builtins",
    "typing",
    "collections",
    "functools",
    "abc",
    "enum",
    "types",
    "graphaug",
)
_DEPTH = 3


class Tables:
    """The containers, plain objects, caches and generators that a model's code can reach.

    They are found through the modules' attributes, their classes, and the namespaces, defaults and closures of the
    classes' functions and of registered hooks.
    """

    def __init__(self, model: nn.Module) -> None:
        self._seen: set[int] = set()
        self._contents: list[tuple[Any, Any]] = []
        self._scopes: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._class_attributes: list[tuple[type, dict[str, Any]]] = []
        self._cells: list[tuple[types.CellType, Any]] = []
        self._caches: list[tuple[Any, int]] = []
        self.generators: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = []
        classes: dict[type, None] = {}
        for m in model.modules():
            for cls in type(m).__mro__:
                if cls.__module__.partition(".")[0] not in _FOREIGN:
                    classes[cls] = None
            for name, value in vars(m).items():
                if name in ("_forward_hooks", "_forward_pre_hooks"):
                    for hook in value.values():
                        self._function(hook, globals_too=True)
                elif not name.startswith("_") or name not in _REGISTRIES:
                    self._visit(value, _DEPTH)
        for cls in classes:
            for value in list(vars(cls).values()):
                self._visit(getattr(value, "__func__", value), _DEPTH)
            self._class_attributes.append((cls, dict(vars(cls))))
            for scope in global_scopes(cls):
                self._namespace(scope)

    def restore(self) -> None:
        """Put every container, object, generator and count back, and empty caches that were filled."""
        for scope, before in self._scopes:
            for name, value in list(scope.items()):
                if name in before and _is_to_be_undone(before[name], value):
                    scope[name] = before[name]
                elif name not in before and holds(value, _is_of_a_capture):
                    del scope[name]
        for held, before in self._contents:
            if isinstance(held, dict):
                if len(held) != len(before) or any(before.get(k, held) is not v for k, v in held.items()):
                    held.clear()
                    held.update(before)
            elif isinstance(held, set):
                if held != before:
                    held.clear()
                    held.update(before)
            elif len(held) != len(before) or any(a is not b for a, b in zip(held, before, strict=True)):
                held.clear()
                held.extend(before)
        for cls, before in self._class_attributes:
            for name, value in list(vars(cls).items()):
                if name.startswith("__"):
                    continue
                if name in before and _is_to_be_undone(before[name], value):
                    setattr(cls, name, before[name])
                elif name not in before and (_is_plain(value) or holds(value, _is_of_a_capture)):
                    delattr(cls, name)
        for cell, before in self._cells:
            if _is_to_be_undone(before, now := _content(cell)) and now is not _EMPTY:
                cell.cell_contents = before
        for cache, misses in self._caches:
            if cache.cache_info().misses != misses:
                cache.cache_clear()

    def states(self) -> list[Any]:
        """The states of the generators, as values that compare."""
        return [get() for get, _ in self.generators]

    def set_states(self, states: list[Any]) -> None:
        """Put the generators back into these states."""
        for (get, put), state in zip(self.generators, states, strict=True):
            if get() != state:
                put(state)

    # --- what can be reached --------------------------------------------------------------------

    def _namespace(self, scope: dict[str, Any]) -> None:
        if id(scope) in self._seen:
            return
        self._seen.add(id(scope))
        self._scopes.append((scope, dict(scope)))
        for value in list(scope.values()):
            if isinstance(value, types.FunctionType):
                if value.__globals__ is scope:
                    self._function(value, globals_too=False)
            elif isinstance(value, type):
                continue
            elif type(value) in _CONTAINERS or _is_cache(value) or _is_own(value):
                self._visit(value, 2)

    def _function(self, function: Any, *, globals_too: bool) -> None:
        function = getattr(function, "__func__", function)
        if not isinstance(function, types.FunctionType) or id(function) in self._seen:
            return
        self._seen.add(id(function))
        defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        bound = [(cell, _content(cell)) for cell in function.__closure__ or ()]
        self._cells += [(cell, content) for cell, content in bound if content is not _EMPTY]
        for value in [*defaults, *(content for _, content in bound)]:
            self._visit(value, 2)
        if globals_too and (function.__module__ or "torch").partition(".")[0] not in _FOREIGN:
            self._namespace(function.__globals__)

    def _visit(self, value: Any, depth: int) -> None:
        if depth == 0 or isinstance(
            value, (Tensor, nn.Module, str, bytes, int, float, type, types.ModuleType, type(None))
        ):
            return
        if isinstance(value, (types.FunctionType, types.MethodType)):
            self._function(value, globals_too=False)
            return
        if id(value) in self._seen:
            return
        if _is_cache(value):
            self._seen.add(id(value))
            self._caches.append((value, value.cache_info().misses))
        elif isinstance(value, (random.Random, np.random.Generator, np.random.RandomState)):
            self._seen.add(id(value))
            self.generators.append(_state_of(value))
        elif type(value) in _CONTAINERS:
            self._keep(value)
            for entry in list(value.values() if isinstance(value, dict) else value):
                self._visit(entry, depth - 1)
        elif _is_own(value):
            self._keep(vars(value))
            for entry in list(vars(value).values()):
                self._visit(entry, depth - 1)

    def _keep(self, held: Any) -> None:
        self._seen.add(id(held))
        self._contents.append(
            (
                held,
                dict(held) if isinstance(held, dict) else set(held) if isinstance(held, set) else list(held),
            )
        )


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """One thread at a time looks into models; what their code keeps outside of them is put back afterwards."""
    with LOCK:
        tables = Tables(model)
        states = tables.states()
        try:
            yield
        finally:
            tables.set_states(states)
            tables.restore()


def _is_of_a_capture(value: Any) -> bool:
    return is_tracked(value) or isinstance(value, FakeTensor)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, complex, str, bytes))


def _is_to_be_undone(before: Any, now: Any) -> bool:
    """Whether a name was bound anew to what no capture may leave behind: a fake tensor, or a count that went on.

    Whatever else was made on first use, and kept for later, may stay.
    """
    if before is now:
        return False
    return (_is_plain(before) and _is_plain(now)) or holds(now, _is_of_a_capture)


_REGISTRIES = frozenset(vars(nn.Module()))


def _is_own(value: Any) -> bool:
    """Whether a value is a plain object of the user's, or of the model's library."""
    cls = type(value)
    return (
        hasattr(value, "__dict__")
        and cls.__module__.partition(".")[0] not in _FOREIGN
        and isinstance(vars(value), dict)
    )


def _is_cache(value: Any) -> bool:
    """Whether a value is a cache of Python's; some objects raise errors of their own for a name that they lack."""
    try:
        return hasattr(value, "cache_clear") and hasattr(value, "cache_info")
    except Exception:
        return False


_EMPTY = object()
"""Stands for the content of a cell whose name is bound later."""


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _EMPTY


def _state_of(generator: Any) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    if isinstance(generator, random.Random):
        return generator.getstate, generator.setstate
    if isinstance(generator, np.random.Generator):
        return (
            lambda: _comparable(generator.bit_generator.state),
            lambda state: setattr(generator.bit_generator, "state", _plain(state)),
        )
    return lambda: _comparable(generator.get_state(legacy=False)), lambda state: generator.set_state(
        _plain(state)
    )


def _comparable(state: Any) -> Any:
    """numpy's state with arrays as tuples, so that two compare."""
    if isinstance(state, dict):
        return {k: _comparable(v) for k, v in state.items()}
    return ("array", str(state.dtype), state.tobytes()) if isinstance(state, np.ndarray) else state


def _plain(state: Any) -> Any:
    if isinstance(state, dict):
        return {k: _plain(v) for k, v in state.items()}
    if isinstance(state, tuple) and len(state) == 3 and state[0] == "array":
        return np.frombuffer(state[2], dtype=state[1]).copy()
    return state
