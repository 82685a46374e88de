"""What code reaches besides the attributes of its modules: containers, objects, closures, globals, class attributes.

A graph holds what these were when it was captured, so that it relies on them.
"""

from __future__ import annotations

import functools
import logging
import types
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from graphaug.capture.recording.relied.facts import is_plain
from graphaug.errors import AssumptionViolated

GONE = object()
"""Stands for what is not there any more."""


class Array(list[Any]):
    """The numbers of an array."""


_NOT_TOLD = (tuple, functools.partial, np.ndarray, Array, logging.Logger)


@dataclass(frozen=True, eq=False)
class Reached:
    """One thing that code reaches by a name, and what it was.

    Attributes:
        name: as the code spells it, for messages: "cfg['p']".
        kind: how it is reached: "attribute" or "method" of an object, "item" of a dict, "variable" of a closure; or
            the "entries" of a list, the "keys" of a dict, the "numbers" of an array as a whole.
        holder: the object, dict, list or array; of a closure's variable a function that reads it.
        key: the attribute's name, or the dict's key.
        expected: what was there.
        within: what it was reached through, if that can be left unread.
        told: whether torch's compiler can tell what was there from something else. Seen before it compiles: torch 2.11
            cannot ask whether a logger is an instance of something.
    """

    name: str
    kind: str
    holder: Any
    key: Any
    expected: Any
    within: Reached | None = None
    told: bool = field(init=False)

    def __post_init__(self) -> None:
        """See what torch's compiler can do with it."""
        object.__setattr__(self, "told", not isinstance(self.expected, _NOT_TOLD))

    def is_read(self, reads: AbstractSet[tuple[int, str]]) -> bool:
        """Whether code may have read it.

        Args:
            reads: the attributes that were seen to be read, with the ids of their objects; of modules and of objects of
                the user's classes every read is seen.
        """
        if self.within is not None and not self.within.is_read(reads):
            return False
        seen = self.kind in ("attribute", "method") and not isinstance(self.holder, types.SimpleNamespace)
        return not seen or self.key == "forward" or (id(self.holder), self.key) in reads

    def check(self, model: nn.Module) -> None:
        """Raise unless it is what it was.

        Raises:
            AssumptionViolated: it was changed since.
        """
        if self.holds():
            return
        what = f"before {self.name} was changed"
        if not torch.compiler.is_compiling() and is_plain(self.expected) and is_plain(now := self._now()):
            what = f"for {self.name} == {self.expected!r}, and now it is {now!r}"
        raise AssumptionViolated(f"this model was captured {what}. Call rewrite again.")

    def holds(self) -> bool:
        """Whether it is what it was."""
        if torch.compiler.is_compiling() and not self.told:
            return True
        now = self._now()
        if self.kind in ("entries", "numbers"):
            return len(now) == len(self.expected) and all(map(_is, now, self.expected))
        return now == self.expected if self.kind == "keys" else _is(now, self.expected)

    def _now(self) -> Any:
        if self.kind == "attribute":
            return getattr(self.holder, self.key, GONE)
        if self.kind == "method":
            if torch.compiler.is_compiling():
                return getattr(type(self.holder), self.key)
            return getattr(getattr(self.holder, self.key, GONE), "__func__", GONE)
        if self.kind == "item":
            return self.holder.get(self.key, GONE)
        if self.kind == "variable":
            return self.holder()
        if self.kind == "keys":
            return list(self.holder)
        if self.kind == "numbers":
            return self.holder.ravel().tolist()
        return list(self.holder)

    def packed(self) -> tuple[str, tuple[Any, ...]]:
        """Its name, and its value if that is plain: to be found again in a copy of the model."""
        return self.name, (self.expected,) if is_plain(self.expected) else ()


def _is(a: Any, b: Any) -> bool:
    """Whether two are the same: equal plain values, and a function that was defined once more as it was."""
    if a is b:
        return True
    if type(a) is not type(b) or torch.compiler.is_compiling():
        return is_plain(b) and type(a) is type(b) and bool(a == b)
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
    return is_plain(b) and (a == b or a != a)


def reader(cell: types.CellType) -> types.FunctionType:
    """A function that reads a variable of a closure: torch's compiler follows cells through functions alone."""
    variable = None

    def read() -> Any:
        return variable

    return types.FunctionType(read.__code__, globals(), "read", None, (cell,))
