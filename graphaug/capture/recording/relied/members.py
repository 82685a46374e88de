"""What code can read off a class: values, classes inside of it, functions; by inheritance too."""

from __future__ import annotations

import enum
import types
from collections.abc import Iterator
from typing import Any

from torch import nn

from graphaug.capture.recording.relied.called import NO_READERS, Called
from graphaug.capture.recording.relied.classes import is_foreign, is_of_a_package
from graphaug.capture.recording.relied.code_names import COUNTS, calls_in
from graphaug.capture.recording.relied.facts import is_plain
from graphaug.capture.recording.relied.reached import GONE

_OF_THE_CLASS = (staticmethod, types.FunctionType)
_DESCRIPTORS = (property, classmethod, *_OF_THE_CLASS, type)
_MAKERS = {"__init__", "__new__", "__call__"}
Member = tuple[str, str, Any]
"""How it is reached, as `Reached.kind`, its name, and what it is."""


def is_value(value: Any) -> bool:
    """Whether what a class holds is a value, as it is read off the class or its objects."""
    return is_plain(value) or not (isinstance(value, _DESCRIPTORS) or hasattr(type(value), "__get__"))


def members_of(cls: type, called: Called, makes: bool) -> Iterator[Member]:
    """What code may read off a class, as that class has it: an option set on it later shadows what it inherits.

    Args:
        cls: the class; of an installed package its own values alone, for packages do not change their code.
        called: the functions that are followed, and the names in their code.
        makes: whether they make objects of it, whose methods read off `self`.
    """
    own = not is_of_a_package(cls.__module__)
    held = _held_by(cls) if own else dict(vars(cls))
    of_code = makes or issubclass(cls, enum.Enum)  # whose members are objects of it
    owners = called.owners
    for name in sorted(held.keys() & (called.names | called.strings)):
        read = owners.get(name, set()) - {COUNTS}
        if (own and name in called.strings) or (read if of_code else read - {"self"}):
            yield from _member(cls, name, held[name], own, of_code)
    if makes:
        for name in sorted(n for n in held if is_by_itself(n) and isinstance(held[n], types.FunctionType)):
            yield from _member(cls, name, held[name], own, of_code)
    if own and not issubclass(cls, (nn.Module, enum.Enum)):
        for name in sorted(n for n in called.strings if getattr(cls, n, GONE) is GONE):
            yield "attribute", name, GONE


def _held_by(cls: type) -> dict[str, Any]:
    """What a class has by itself or by inheritance; of installed packages values alone."""
    held: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if not is_foreign(base.__module__):
            packaged = is_of_a_package(base.__module__)
            held |= {n: v for n, v in vars(base).items() if not packaged or is_value(v)}
    return held


def _member(cls: type, name: str, held: Any, own: bool, of_code: bool) -> Iterator[Member]:
    now = getattr(cls, name, GONE)
    if is_value(held):
        if not issubclass(cls, enum.Enum):
            yield "attribute", name, now
    elif own and isinstance(held, classmethod):
        if (function := getattr(now, "__func__", None)) is not None:
            yield "method", name, function
    elif own and isinstance(held, type):
        if not is_foreign(held.__module__):
            yield "attribute", name, now
    elif own and (isinstance(held, _OF_THE_CLASS) or (of_code and isinstance(held, property))):
        yield "attribute", name, now


def is_by_itself(name: str) -> bool:
    """Whether a method runs where no code names it: operators, and what makes an object."""
    return name.startswith("__") and (name not in NO_READERS or name in _MAKERS)


def methods_of(cls: type, called: Called) -> Iterator[tuple[type, str]]:
    """The methods that objects of a class may run, each with the class of the user's that has it."""
    for base in cls.__mro__:
        if not is_foreign(base.__module__) and not is_of_a_package(base.__module__):
            names = (n for n in vars(base) if n in called.names or is_by_itself(n))
            yield from ((base, name) for name in sorted(names))


def makes_itself(cls: type, called: Called) -> bool:
    """Whether a class method that code may call makes an object: ``return cls(...)``."""
    of_classes = (
        v.__func__ for n, v in _held_by(cls).items() if n in called.names and isinstance(v, classmethod)
    )
    codes = (f.__code__ for f in of_classes if isinstance(f, types.FunctionType))
    return any(code.co_varnames[:1] and code.co_varnames[0] in calls_in(code) for code in codes)
