"""Things that a forward may leave changed, each as it was: what is different about it now, and how it is put back."""

from __future__ import annotations

import collections
import copy
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Protocol

import torch
from torch import nn

from graphaug.capture.recording.kept.kinds import Record

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
"""Types of values that are equal if they compare equal, whichever object they are."""
_SKIPPED = frozenset({"training", "forward"})
"""Of a module's attributes: the mode is kept apart, and a stand-in's forward is none of the model's."""


class Watched(Protocol):
    """Something that may be changed."""

    def changes(self) -> Iterator[tuple[str, Any]]:
        """What is not as it was: (its name, what it is now)."""

    def restore(self) -> None:
        """Put it back."""


class Attributes:
    """The attributes of a module."""

    def __init__(self, path: str, module: nn.Module) -> None:
        self.name, self._held = path, vars(module)
        self._before = self._seen()

    def _seen(self) -> dict[str, Any]:
        return {k: v for k, v in self._held.items() if k not in _SKIPPED}

    def _is_untouched(self) -> bool:
        held = self._held
        others = len(held) - sum(map(held.__contains__, _SKIPPED))
        return others == len(self._before) and all(
            map(operator.is_, map(held.get, self._before), self._before.values())
        )

    def changes(self) -> Iterator[tuple[str, Any]]:
        """Attributes that were set, added or deleted."""
        if not self._is_untouched():
            for key, value in _differences(self._seen(), self._before):
                yield f"{self.name}{key}".removeprefix("."), value

    def restore(self) -> None:
        """Delete what was added; set the others again."""
        if not self._is_untouched():
            for key in self._seen().keys() - self._before.keys():
                del self._held[key]
            self._held.update(self._before)


class Container:
    """A list, deque, set or dict, that of an object's attributes included."""

    def __init__(self, name: str, holder: Any) -> None:
        self.name, self._holder = name, holder
        self._before = dict(holder) if isinstance(holder, dict) else copy.copy(holder)

    def changes(self) -> Iterator[tuple[str, Any]]:
        """Entries of a dict that are others; the whole of any other container."""
        if not _untouched(self._holder, self._before):
            for key, now in _differences(self._holder, self._before):
                yield f"{self.name}{key}".removeprefix("."), now

    def restore(self) -> None:
        """Fill it anew, in the order that it had."""
        holder, before = self._holder, self._before
        if not _untouched(holder, before):
            holder.clear()
            sequence = isinstance(holder, (list, collections.deque))
            holder.extend(before) if sequence else holder.update(before)


class NewNames:
    """Names of a class, a module or a namespace that are not there yet.

    Args:
        name: of the owner; empty for the globals of a function.
        holder: its names now.
        delete: takes one away again.
        only: the names that may come; any, if it is None.
    """

    def __init__(
        self,
        name: str,
        holder: Mapping[str, Any],
        delete: Callable[[str], Any],
        only: AbstractSet[str] | None = None,
    ) -> None:
        self.name, self._holder, self._delete, self._only = name, holder, delete, only
        self._before = frozenset(holder) if only is None else frozenset()

    def _new(self) -> list[str]:
        if self._only is not None:
            return [key for key in self._only if key in self._holder]
        if len(self._holder) == len(self._before):
            return []
        return [key for key in self._holder if key not in self._before and not key.startswith("__")]

    def changes(self) -> Iterator[tuple[str, Any]]:
        """The names that came, with what they are bound to."""
        for key in self._new():
            yield f"{self.name}.{key}" if self.name else of_globals(key), self._holder[key]

    def restore(self) -> None:
        """Take them away."""
        for key in self._new():
            self._delete(key)


class Kept(Record):
    """What a subclass of a container, an array, or an object with slots holds."""

    def changes(self) -> Iterator[tuple[str, Any]]:
        """All that it holds now, if that is something else."""
        if not self.kind.same(self.held, self.before):
            now = self.kind.taken(self.held)
            yield self.name, now.tobytes() if hasattr(now, "tobytes") else now


class _Together:
    """Many things, few of which ever change: all are looked at at once, and each by itself only where one did."""

    _each: list[Any]

    def _is_untouched(self) -> bool:
        raise NotImplementedError

    def changes(self) -> Iterator[tuple[str, Any]]:
        """What is not as it was of those that changed."""
        if not self._is_untouched():
            for watched in self._each:
                yield from watched.changes()

    def restore(self) -> None:
        """Put those back that changed."""
        if not self._is_untouched():
            for watched in self._each:
                watched.restore()


class Many(_Together):
    """Whatever is watched, a thousand of it: what holds what it held is passed over by a look at all identities."""

    def __init__(self, each: Iterable[Watched]) -> None:
        self._each = list(each)
        # a copy of a set may iterate in another order
        ordered: list[Any] = [
            w for w in self._each if type(w) is Container and not isinstance(w._holder, set)
        ]
        names = [w for w in self._each if type(w) is NewNames]
        open_names = [w for w in names if w._only is None]
        self._entered = [w._holder for w in ordered]
        self._dicts = [w._holder for w in ordered if isinstance(w._holder, dict)]
        self._sized = [*self._entered, *(w._holder for w in open_names)]
        self._sizes = [len(w._before) for w in (*ordered, *open_names)]
        self._entries = list(itertools.chain.from_iterable(w._before for w in ordered))
        before = (w._before.values() for w in ordered if isinstance(w._holder, dict))
        self._values = list(itertools.chain.from_iterable(before))
        self._may_come = [(w._holder, key) for w in names for key in w._only or ()]
        at_once = {id(w) for w in (*ordered, *names)}
        self._others = [w for w in self._each if id(w) not in at_once]

    def _is_untouched(self) -> bool:
        values = itertools.chain.from_iterable(map(dict.values, self._dicts))
        return (
            list(map(len, self._sized)) == self._sizes
            and all(map(operator.is_, itertools.chain.from_iterable(self._entered), self._entries))
            and all(map(operator.is_, values, self._values))
            and not any(key in holder for holder, key in self._may_come)
            and not any(True for watched in self._others for _ in watched.changes())
        )


class Registries(Many):
    """The tables of a module: parameters, buffers, children, hooks. Most are empty."""

    def __init__(self, path: str, tables: list[dict[str, Any]]) -> None:
        super().__init__([Container(path, table) for table in tables])
        self.name = path


class Binding:
    """What a name is bound to: a global, a variable of a closure, an attribute of a class."""

    def __init__(self, name: str, read: Callable[[], Any], write: Callable[[Any], Any]) -> None:
        self._name, self._read, self._write = name, read, write
        self.before = read()

    def changes(self) -> Iterator[tuple[str, Any]]:
        """What it is bound to now, if that is another object."""
        if (now := self._read()) is not self.before:
            yield self._name, now

    def restore(self) -> None:
        """Bind it to what it was."""
        if self._read() is not self.before:
            self._write(self.before)


class Bindings(_Together):
    """All that names are bound to."""

    def __init__(self) -> None:
        self._each: list[Binding] = []
        self._reads: list[Callable[[], Any]] = []
        self._before: list[Any] = []

    def add(self, name: str, read: Callable[[], Any], write: Callable[[Any], Any]) -> None:
        """Watch one name more."""
        binding = Binding(name, read, write)
        self._each.append(binding)
        self._reads.append(read)
        self._before.append(binding.before)

    def _is_untouched(self) -> bool:
        return all(map(operator.is_, map(operator.call, self._reads), self._before))


def of_globals(name: str) -> str:
    """How a global is named: an attribute of the model itself has no path either."""
    return f"{name} (a global)"


def _untouched(holder: Any, before: Any) -> bool:
    """Whether a container holds the very objects that it held; quick, and no comparison of values."""
    if isinstance(holder, set):
        return bool(holder == before)
    if isinstance(holder, dict):
        return holder.keys() == before.keys() and all(
            map(operator.is_, map(holder.get, before), before.values())
        )
    return len(holder) == len(before) and all(map(operator.is_, holder, before))


def _differences(holder: Any, before: Any) -> Iterator[tuple[str, Any]]:
    """The entries that are others than before, with what they are now."""
    if isinstance(holder, dict):
        for key, now in holder.items():
            if key not in before or not _is(now, before[key]):
                yield f".{key}", now
        yield from ((f".{key} (deleted)", None) for key in before if key not in holder)
    elif isinstance(holder, set):
        if holder != before:
            yield "", holder
    elif len(holder) != len(before) or not all(map(_is, holder, before)):
        yield "", list(holder)


def _is(a: Any, b: Any) -> bool:
    """Whether two entries are the same; plain values that are equal are."""
    return a is b or (type(a) is type(b) and isinstance(a, PLAIN) and (a == b or a != a))
