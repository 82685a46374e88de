"""Which of all that code reaches it may have read, as reads of attributes tell."""

from __future__ import annotations

import types
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import Any

from torch import nn

from graphaug.capture.recording.relied.called import BY_OPERATORS
from graphaug.capture.recording.relied.classes import is_foreign
from graphaug.capture.recording.relied.reach import InReach, reached_by
from graphaug.capture.recording.relied.reached import Reached


def is_entered(m: nn.Module, reads: AbstractSet[tuple[int, str]]) -> bool:
    """Whether code ran a method of a module, as its reads tell.

    Args:
        m: the module.
        reads: attributes that were read, with the ids of their objects.
    """
    classes = [c for c in type(m).__mro__ if c not in (nn.Module, object)]
    names = {
        "forward",
        *(n for c in classes if not is_foreign(c.__module__) for n, v in vars(c).items() if _is_code(v)),
    }
    if any((id(m), name) in reads for name in names):
        return True
    by_operator = any(BY_OPERATORS & vars(c).keys() for c in classes)
    return by_operator and any((id(m), name) in reads for name in vars(m))


def _is_code(value: Any) -> bool:
    return isinstance(value, (types.FunctionType, property, classmethod, staticmethod))


def read_of(
    wide: InReach, model: nn.Module, opened: Iterable[str], reads: AbstractSet[tuple[int, str]]
) -> list[Reached]:
    """Those of all things that opened code may have read.

    Args:
        wide: all, found before it ran.
        model: the model.
        opened: paths of the opened modules.
        reads: what was seen to be read.
    """
    read = [thing for thing in wide.things if thing.is_read(reads)]
    entered = {id(m) for m in wide.beside if is_entered(m, reads)}
    if len(entered) == len(wide.beside):
        return read
    narrow = reached_by(model, opened, lambda m: id(m) in entered)
    there = {_place(thing) for thing in narrow.things}
    return [thing for thing in read if _place(thing) in there]


def _place(thing: Reached) -> tuple[str, int, Any]:
    holder = thing.holder.__closure__[0] if thing.kind == "variable" else thing.holder
    return thing.kind, id(holder), thing.key
