"""The plain values beside a model that its code may write: globals, closed-over variables, class attributes."""

from __future__ import annotations

import collections
import contextlib
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from graphaug.capture.recording.kept.kinds import alike, kind_of
from graphaug.capture.user_code import is_internal

_MOST = 300
"""So many functions are looked through: those of a model, and those that they refer to by name."""
_NUMBERS = (bool, int, float)
_PLAIN = (*_NUMBERS, list, dict, set, collections.deque)
_HEAP_TYPE = 1 << 9
"""The flag of types that Python code made (Py_TPFLAGS_HEAPTYPE)."""


class Scopes:
    """Numbers, and containers, that the forwards of modules and the functions that these hold refer to."""

    def __init__(self, model: nn.Module) -> None:
        self.before: list[tuple[str, Any, Any, Any]] = []  # name, where it is kept, its value, what that held
        seen: set[tuple[int, str]] = set()
        functions = _functions(model)
        named = [entry for function in functions for entry in _named(function)]
        classes = _classes(model, (value for _, _, value in named))
        of_classes = [(name, cls, value) for cls in classes for name, value in vars(cls).items()]
        for name, kept, value in (*named, *(e for e in of_classes if not e[0].startswith("__"))):
            if isinstance(value, _PLAIN) and (id(kept), name) not in seen:
                seen.add((id(kept), name))
                self.before.append((name, kept, value, _held(value)))

    def changed(self) -> str:
        """The first name whose value has changed, or an empty string."""
        for name, kept, value, held in self.before:
            now = _now(name, kept)
            if now is not value and not (isinstance(value, _NUMBERS) and now == value):
                return name
            if held is not None and not _same(now, held):
                return name
        return ""

    def restore(self) -> None:
        """Put back what has changed."""
        for name, kept, value, held in self.before:
            if _now(name, kept) is not value:
                if isinstance(kept, type):
                    setattr(kept, name, value)
                elif isinstance(kept, dict):
                    kept[name] = value
                else:
                    kept.cell_contents = value
            if held is not None and not _same(value, held):
                kind_of(value).put(value, held)  # type: ignore[union-attr]


def _classes(model: nn.Module, named: Iterable[Any]) -> list[type]:
    """The user's classes whose attributes a forward may count in: of modules, of what these hold, and those named."""
    held = (value for m in model.modules() for value in (m, *vars(m).values()))
    kinds = [*map(type, held), *(value for value in named if isinstance(value, type))]
    bases = dict.fromkeys(cls for kind in dict.fromkeys(kinds) for cls in kind.__mro__)
    return [cls for cls in bases if cls.__flags__ & _HEAP_TYPE and not is_internal(_file_of(cls))]


def _file_of(cls: type) -> str:
    """Where a class was written; of one that is nowhere a name that is taken for plumbing."""
    module = sys.modules.get(cls.__module__)
    return getattr(module, "__file__", None) or ("<builtin>" if module is None else cls.__module__)


def _functions(model: nn.Module) -> list[types.FunctionType]:
    """The user's functions that a forward may run, those that they name included."""
    waiting: list[tuple[Any, type | None]] = [
        (held, type(m))
        for m in model.modules()
        for held in (getattr(type(m), "forward", None), *vars(m).values())
    ]
    found: dict[types.FunctionType, None] = {}
    for held, cls in waiting:  # grows on the way
        # by its type: an object of the user's may answer for any name
        bound = isinstance(held, (types.MethodType, classmethod, staticmethod))
        function = held.__func__ if bound else held
        if not isinstance(function, types.FunctionType) or function in found:
            continue
        if is_internal(function.__code__.co_filename) or len(found) == _MOST:
            continue
        found[function] = None
        waiting.extend((value, None) for _, _, value in _named(function))
        methods = (getattr(cls, name, None) for name in function.__code__.co_names) if cls else ()
        waiting.extend((getattr(method, "fget", method), cls) for method in methods)
    return list(found)


def _named(function: types.FunctionType) -> Iterator[tuple[str, Any, Any]]:
    """What a function's code names outside of it: the name, where it is kept, the value."""
    code, scope = function.__code__, function.__globals__
    for name in code.co_names:
        if name in scope:
            yield name, scope, scope[name]
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
        with contextlib.suppress(ValueError):  # an empty one
            yield name, cell, cell.cell_contents


def _now(name: str, kept: Any) -> Any:
    if isinstance(kept, (dict, type)):
        return (vars(kept) if isinstance(kept, type) else kept).get(name)
    with contextlib.suppress(ValueError):
        return kept.cell_contents
    return None


def _held(value: Any) -> Any:
    """What a container holds, or None if it is none."""
    kind = None if isinstance(value, _NUMBERS) else kind_of(value)
    return None if kind is None else kind.taken(value)


def _same(value: Any, held: Any) -> bool:
    kind = kind_of(value)
    return kind is not None and alike(kind, value, held)
