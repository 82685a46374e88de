"""Whether the fields of a dataclass hold what their annotations say: what is read from a file may hold anything."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, TypeVar

Made = TypeVar("Made")
_PLAIN = (str, int, float, bool, type(None))


def checked(made: Made) -> Made:
    """The same object, if each field with a plain annotation holds such a value; others are not looked at.

    Raises:
        TypeError: one does not; names it.
    """
    hints = typing.get_type_hints(type(made))
    for field in dataclasses.fields(typing.cast("Any", made)):
        if not fits(value := getattr(made, field.name), hints[field.name]):
            raise TypeError(f"{field.name} is {value!r}")
    return made


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is one of a plain type, of a union, or a tuple of such; whole numbers are floats, too."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return any(fits(value, one) for one in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(fits(v, typing.get_args(hint)[0]) for v in value)
    if hint is float:
        return type(value) in (int, float)
    return type(value) is hint if hint in _PLAIN else True
