"""Functions that ``torch.jit.script`` made: a recording runs the Python that they were made of."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from graphaug.capture.recording.relied.code_names import globals_in, names_in
from graphaug.capture.recording.values.structures import plain
from graphaug.torch_private import scripted_from

CALL = "__call__"
"""The method of ``torch.jit.ScriptFunction`` that is replaced."""
_TYPES = {"Tensor": Tensor, "int": int, "float": float, "bool": bool, "str": str}


def python_of(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> types.FunctionType | None:
    """The Python function that a scripted one was made of; None where the two may do different things.

    That is where it was traced, which keeps one way through its code, where it asks whether it is scripted, and where a
    script makes another value of an argument: a float of an integer, a copy of a list.
    """
    python = scripted_from(function)
    if not isinstance(python, types.FunctionType) or _asks_whether_scripted(python):
        return None
    taken = function.schema.arguments
    given = {**dict(zip((a.name for a in taken), args, strict=False)), **kwargs}
    return python if all(_is_of(given[a.name], str(a.type)) for a in taken if a.name in given) else None


def _asks_whether_scripted(function: types.FunctionType, seen: frozenset[Any] = frozenset()) -> bool:
    """Whether a function, or one that it calls by a global name, asks ``torch.jit.is_scripting()``."""
    if "is_scripting" in names_in(function.__code__):
        return True
    named = [function.__globals__.get(name) for name in globals_in(function.__code__)]
    # while a forward is recorded, what stands for a function is around it
    called = {
        inspect.unwrap(v) if isinstance(v, types.FunctionType) else scripted_from(v) for v in named
    } - seen
    new = seen | called
    return any(isinstance(f, types.FunctionType) and _asks_whether_scripted(f, new) for f in called)


def _is_of(value: Any, kind: str) -> bool:
    """Whether a value is of the type that a script declares, and stays what it is."""
    if value is None:
        return kind.startswith("Optional")
    wanted = _TYPES.get(kind.removeprefix("Optional[").removesuffix("]"))
    value = plain(value)
    return wanted is not None and isinstance(value, wanted) and isinstance(value, bool) == (wanted is bool)


def as_python(call: Callable[..., Any], function: Any, /, *args: Any, **kwargs: Any) -> Any:
    """What stands for the call of a scripted function: that of its Python, which function modes see."""
    python = python_of(function, args, kwargs)
    return call(function, *args, **kwargs) if python is None else python(*args, **kwargs)
