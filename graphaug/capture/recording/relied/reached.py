"""What code reaches besides the attributes of its modules: containers, objects, closures, globals, class attributes.

A graph holds what these were when it was captured, so that it relies on them.
"""

from __future__ import annotations

import collections
import functools
import operator
import threading
import types
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from graphaug.capture.recording.patches import behind
from graphaug.capture.recording.relied.classes import can_be_watched
from graphaug.capture.recording.relied.facts import ABSENT, ALL, is_plain
from graphaug.capture.recording.relied.told import How, how_told, is_same, same_as_told
from graphaug.errors import AssumptionViolated
from graphaug.torch_private import COMPILES_CONTEXT_VARIABLES, COMPILES_PROPERTIES

GONE = ABSENT
"""Stands for what is not there any more."""
CHANGED: Any = object()
"""Stands for what was there in a copy of a model that was changed before it was copied: nothing is that any more."""
DICTS = (dict, collections.OrderedDict, collections.defaultdict, collections.Counter)
"""Classes whose entries are read as a dict's."""


_NOT_COMPILED = ("table", "bytes", "code", "function", "partial", "subclasses", "attributes")
"""Kinds that torch's compiler cannot look into, or does by itself."""


@dataclass(frozen=True, eq=False)
class Reached:
    """One thing that code reaches by a name, and what it was.

    Attributes:
        name: as the code spells it, for messages: "cfg['p']".
        kind: how it is reached: "attribute", "method" or "property" of an object, "item" of a dict, a "function" that
            a module of torch has, and that recordings exchange, "variable" of a
            closure, "context" of a context variable, the "code" of a function, which may be exchanged in place; or the
            "entries" of a list, the "members" of a set, the "keys" of a dict, the names of all "attributes" of an
            object, the "hooks" of a module, the "subclasses" of a class, all of a large dict as a "table", the parts
            of a "partial" function, the "numbers" or "bytes" of an array as a whole.
        holder: the object, dict, list or array; of a closure's variable a function that reads it.
        key: the attribute's name, or the dict's key.
        expected: what was there.
        within: what it was reached through, if that can be left unread.
        how: how torch's compiler can tell what was there from something else, see `how_told`; of what has entries, of
            each. Seen before it compiles: torch 2.11 cannot ask whether a logger is an instance of something.
        number: which of the things with its name it is.
    """

    name: str
    kind: str
    holder: Any
    key: Any
    expected: Any
    within: Reached | None = None
    how: How = field(init=False)
    _look: Any = field(init=False, default=None)
    number: int = 0

    def __post_init__(self) -> None:
        """See what torch's compiler can do with it."""
        own_dict = isinstance(self.holder, dict) and type(self.holder) not in DICTS
        unseen = self.kind in _NOT_COMPILED or own_dict or isinstance(self.holder, threading.local)
        if self.kind == "members" and self.expected is not CHANGED:
            unseen = not all(map(is_plain, self.expected))
        if self.kind == "context":
            unseen = not (COMPILES_CONTEXT_VARIABLES and is_plain(self.expected))
        if self.kind == "property" or isinstance(self.expected, property):
            unseen = not COMPILES_PROPERTIES
        how: How = "" if unseen else how_told(self.expected)
        if self.expected is CHANGED or (self.kind == "members" and not unseen):
            how = "is"
        elif how == "is" and self.kind == "entries":
            how = tuple(map(how_told, self.expected))
        elif how not in ("is", "cached", "bounds") and self.kind not in ("attribute", "item"):
            how = ""
        object.__setattr__(self, "how", how)
        object.__setattr__(self, "_look", _look_up(self.kind, self.holder, self.key, self.expected))

    def is_read(self, reads: AbstractSet[tuple[int, str]]) -> bool:
        """Whether code may have read it.

        Args:
            reads: the attributes that were seen to be read, with the ids of their objects; of modules and of objects of
                the user's classes every read is seen.
        """
        if self.kind in ("attribute", "method", "property"):
            if isinstance(self.holder, nn.Module):
                return (id(self.holder), self.key) in reads
            if can_be_watched(self.holder):
                return not reads.isdisjoint({(id(self.holder), self.key), (id(self.holder), ALL)})
        if self.kind == "attributes" and can_be_watched(self.holder):
            return (id(self.holder), ALL) in reads
        return self.within is None or self.within.is_read(reads)

    def check(self, model: nn.Module) -> None:
        """Raise unless it is what it was.

        Raises:
            AssumptionViolated: it was changed since.
        """
        compiling = torch.compiler.is_compiling()
        if not compiling and self._look is not None and self._look(self.key) is self.expected:
            return  # by far the most of all checks
        if self.holds():
            return
        what = f"before {self.name} changed"
        if not compiling and is_plain(self.expected) and is_plain(now := self._now()):
            what = f"for {self.name} == {self.expected!r}, and now it is {now!r}"
        raise AssumptionViolated(f"this model was captured {what}. Call rewrite again.")

    def holds(self) -> bool:
        """Whether it is what it was."""
        if self.kind == "property" and torch.compiler.is_compiling() and self.how == "":
            return True  # the compiler cannot even read what is expected
        if self.expected is CHANGED:
            return False
        if torch.compiler.is_compiling() and self.how != "is":
            return self.how == "" or same_as_told(self.how, self._now(), self.expected)
        if self.kind == "members" and torch.compiler.is_compiling():  # which compares no sets
            return len(self.holder) == len(self.expected) and all(m in self.holder for m in self.expected)
        now = self._now()
        if self.kind == "partial":
            return all(map(operator.is_, now, self.expected))
        if self.kind in ("entries", "numbers"):
            return len(now) == len(self.expected) and all(map(is_same, now, self.expected))
        if self.kind == "table":
            return (
                len(now) == len(self.expected)
                and all(map(operator.is_, now, self.expected))
                and all(map(operator.is_, now.values(), self.expected.values()))
            )
        return (
            now == self.expected
            if self.kind in ("keys", "members", "bytes", "hooks", "code", "subclasses", "attributes")
            else is_same(now, self.expected)
        )

    def _now(self) -> Any:
        if self.kind == "attribute":
            return getattr(self.holder, self.key, GONE)
        if self.kind == "method":
            if torch.compiler.is_compiling() and isinstance(self.holder, type):
                return _class_method(self.holder, self.key)
            if torch.compiler.is_compiling():
                getattr(self.holder, self.key)  # so that one of the object's own makes it compile anew
                if self.key in getattr(self.holder, "__dict__", ()):
                    return GONE
                of_class = getattr(type(self.holder), self.key)
                return getattr(of_class, "__func__", of_class)
            return getattr(getattr(self.holder, self.key, GONE), "__func__", GONE)
        if self.kind == "function":
            return behind(self.holder.get(self.key, GONE))
        if self.kind == "property":
            return getattr(type(self.holder), self.key, GONE)
        if self.kind == "item":
            if self.how != "":
                return self.holder.get(self.key, GONE)
            return (
                dict.get(self.holder, self.key, GONE)
                if isinstance(self.holder, dict)
                else self.holder.get(self.key, GONE)
            )
        if self.kind == "hooks":
            m = self.holder
            return [*m._forward_hooks, *m._forward_pre_hooks, *m._backward_hooks]
        if self.kind == "context":
            return self.holder.get() if torch.compiler.is_compiling() else self.holder.get(GONE)
        if self.kind == "subclasses":
            return type.__subclasses__(self.holder)
        if self.kind == "members":
            return set(self.holder)
        if self.kind == "table":
            return self.holder
        if self.kind == "bytes":
            return self.holder.tobytes() if isinstance(self.holder, np.ndarray) else bytes(self.holder)
        if self.kind == "variable":
            return self.holder()
        if self.kind == "code":
            return self.holder.__code__
        if self.kind == "partial":  # whose __setstate__ exchanges them
            return self.holder.func, self.holder.args, self.holder.keywords
        if self.kind in ("keys", "attributes"):
            return list(self.holder if self.kind == "keys" else vars(self.holder))
        if self.kind == "numbers":
            return self.holder.ravel().tolist()
        return list(self.holder)

    def packed(self) -> tuple[str, int, tuple[Any, ...] | None]:
        """Its name, and its value if that is plain: to be found again in a copy of the model.

        What was changed since is changed in the copy as well.
        """
        if is_plain(self.expected) or self.expected is GONE:
            return self.name, self.number, (self.expected,)
        return self.name, self.number, () if self.holds() else None


def _look_up(kind: str, holder: Any, key: Any, expected: Any) -> Any:
    """A function that gives what a dict has at a key, where that is all there is to ask; else None."""
    if kind in ("item", "function") and type(holder) is dict:
        return holder.get
    if isinstance(holder, type):
        if kind == "method":
            return lambda name: getattr(getattr(holder, name, GONE), "__func__", GONE)
        return functools.partial(_get, holder) if kind == "attribute" else None
    held = [getattr(holder, "__dict__", {})]
    if isinstance(holder, nn.Module):
        held += [holder._parameters, holder._buffers, holder._modules]
    if kind == "method":
        own = getattr(holder, "__dict__", {})
        return lambda name: GONE if name in own else getattr(type(holder), name, GONE)
    of_object = kind == "attribute" and not isinstance(holder, type)
    there = (d for d in held if type(d) is dict and d.get(key, GONE) is expected)
    found = next(there, None) if of_object and expected is not GONE and expected is not None else None
    return None if found is None else found.get


def _get(holder: type, key: str) -> Any:
    return getattr(holder, key, GONE)


def _class_method(cls: type, name: str) -> Any:
    """The function of a class method, as torch's compiler finds it: bound to a class it takes it for another one."""
    for base in cls.__mro__:
        if name in base.__dict__:
            return base.__dict__[name].__func__
    return GONE


def reader(cell: types.CellType) -> types.FunctionType:
    """A function that reads a variable of a closure: torch's compiler follows cells through functions alone."""
    variable = None

    def read() -> Any:
        return variable

    return types.FunctionType(read.__code__, globals(), "read", None, (cell,))
