"""Whether a value is the one that was there, also as far as torch's compiler can tell it from another."""

from __future__ import annotations

import contextvars
import functools
import logging
import types
from typing import Any, NamedTuple

import numpy as np
import torch

from graphaug.capture.recording.relied.facts import is_plain


class Array(list[Any]):
    """The numbers of an array."""


class Given(NamedTuple):
    """How a partial function is told: its function, what is given to it, and the names of the rest."""

    function: How
    args: tuple[How, ...]
    names: tuple[str, ...]
    values: tuple[How, ...]


How = str | Given | tuple["How", ...]
"""See `how_told`."""


_NOT_TOLD = (
    np.ndarray,
    Array,
    logging.Logger,
    set,
    frozenset,
    contextvars.ContextVar,
    torch.autocast,  # of a decorator: a compiler knows it as a region, and not by itself
)
BY_VALUE = (torch.device, torch.Size, np.generic)
"""What is made anew where it is asked for, and is the same by its value."""
CACHED = type(functools.lru_cache(lambda: None))
"""What ``functools.lru_cache`` makes of a function."""


def how_told(value: Any) -> How:
    """How torch's compiler can tell a value from another: "" if it cannot.

    "is" by itself; "cached" by the function in a cache, as torch 2.11 knows no more of it; "bounds" of a range or a
    slice; a partial function by its function and all that is given to it, and a tuple entry by entry. Of these it makes
    others, of which none is the one that was there.
    """
    if isinstance(value, functools.partial):
        given = value.keywords
        return Given(
            how_told(value.func),
            tuple(map(how_told, value.args)),
            tuple(given),
            tuple(map(how_told, given.values())),
        )
    if isinstance(value, (range, slice)):
        return "bounds"
    if isinstance(value, CACHED):
        return "cached"
    if isinstance(value, tuple):
        return tuple(map(how_told, value))
    of_none = (types.ModuleType, type, type(None))  # what a builtin function, which is no method, belongs to
    bound = isinstance(value, types.BuiltinMethodType) and not isinstance(value.__self__, of_none)
    of_gradients = isinstance(value, type) and issubclass(value, torch.autograd.Function)
    return "" if bound or of_gradients or isinstance(value, _NOT_TOLD) else "is"


def same_as_told(how: How, a: Any, b: Any) -> bool:
    """Whether two are the same, as far as torch's compiler can tell; it goes through this."""
    if how == "":
        return True
    if how == "is":
        return is_same(a, b)
    if how == "cached":
        return a.__wrapped__ is b.__wrapped__
    if how == "bounds":
        return type(a) is type(b) and a.start == b.start and a.stop == b.stop and a.step == b.step
    if isinstance(how, Given):
        if not isinstance(a, functools.partial) or tuple(a.keywords) != how.names:
            return False
        values = tuple(a.keywords.values()), tuple(b.keywords.values())
        return (
            same_as_told(how.function, a.func, b.func)
            and same_as_told(how.args, a.args, b.args)
            and same_as_told(how.values, *values)
        )
    alike = len(a) == len(b) and (type(a) is type(b) or isinstance(b, list))
    return alike and all(same_as_told(part, x, y) for part, x, y in zip(how, a, b, strict=True))


def is_same(a: Any, b: Any) -> bool:
    """Whether two are the same: equal plain values, and a function that was defined once more as it was."""
    if a is b:
        return True
    by_value = is_plain(b) or isinstance(b, BY_VALUE)
    if type(a) is not type(b) or torch.compiler.is_compiling():
        return by_value and type(a) is type(b) and bool(a == b)
    if isinstance(a, types.FunctionType):
        bound = (
            a.__closure__,
            a.__defaults__,
            a.__kwdefaults__,
            b.__closure__,
            b.__defaults__,
            b.__kwdefaults__,
        )
        return a.__code__ == b.__code__ and not any(bound)
    return by_value and bool(a == b or a != a)
