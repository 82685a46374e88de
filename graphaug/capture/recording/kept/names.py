"""What is bound to names: of namespaces, classes and closures. What is made on first use, and kept, may stay there."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

from graphaug.capture.recording.kept.kinds import is_of_a_capture
from graphaug.capture.recording.kept.layouts import is_foreign
from graphaug.capture.recording.values.inside import (
    NOTHING,
    any_inside,
    attributes_of,
    content_of,
    entries_of_class,
)
from graphaug.capture.user_code import is_installed_file


class Names:
    """A namespace, or a class, and what its names were bound to."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        self._of_a_class = not isinstance(owner, dict)
        self._before = dict(self._now())

    def _now(self) -> Any:
        return entries_of_class(self._owner) if self._of_a_class else self._owner

    def rebound(self) -> Iterator[tuple[int, str]]:
        """The names of a class that are bound to something else now, with the class's id."""
        if self._of_a_class:
            now, before = self._now(), self._before
            yield from ((id(self._owner), name) for name in now if now[name] is not before.get(name, NOTHING))

    def restore(self) -> None:
        """Undo what no capture may leave behind."""
        for name, value in list(self._now().items()):
            before = self._before.get(name, NOTHING)
            if before is value or (self._of_a_class and name.startswith("__")):
                continue
            if before is not NOTHING:
                if is_to_be_undone(before, value):
                    self._set(name, before)
            elif (self._of_a_class and _is_plain(value)) or any_inside(value, is_of_a_capture):
                self._delete(name)

    def replace(self, old: Any, new: Any) -> bool:
        """Have another object in the place of one that cannot be put back; False if it was never there."""
        names = [name for name, value in self._before.items() if value is old]
        for name in names:
            self._before[name] = new
            self._set(name, new)
        return bool(names)

    def _set(self, name: str, value: Any) -> None:
        if self._of_a_class:
            type.__setattr__(self._owner, name, value)
        else:
            self._owner[name] = value

    def _delete(self, name: str) -> None:
        if self._of_a_class:
            type.__delattr__(self._owner, name)
        else:
            del self._owner[name]


class Imports:
    """The modules that were loaded: one that a forward imports first is loaded again if it keeps what it should not."""

    def __init__(self) -> None:
        self._before = set(sys.modules)

    def restore(self) -> None:
        """Forget the user's modules that were loaded since and keep something of a capture."""
        for name in set(sys.modules) - self._before:
            module = sys.modules[name]
            held = attributes_of(module) or {}
            path = held.get("__file__")
            if is_foreign(name) or type(path) is not str or is_installed_file(path):
                continue
            if any(any_inside(value, is_of_a_capture) for value in list(held.values())):
                del sys.modules[name]


class Cell:
    """A variable of a closure, and what it was bound to."""

    def __init__(self, cell: types.CellType) -> None:
        self._cell, self._before = cell, content_of(cell)

    def restore(self) -> None:
        """Undo what no capture may leave behind."""
        now = content_of(self._cell)
        if self._before is NOTHING:
            if now is not NOTHING and any_inside(now, is_of_a_capture):
                del self._cell.cell_contents
        elif now is not NOTHING and is_to_be_undone(self._before, now):
            self._cell.cell_contents = self._before

    def replace(self, old: Any, new: Any) -> bool:
        """Have another object in the place of one that cannot be put back; False if it was never there."""
        if self._before is not old:
            return False
        self._before = self._cell.cell_contents = new
        return True


class Attributes:
    """What the attributes of the model's own modules were, which `graphaug.capture.state` puts back: for `replace`."""

    def __init__(self, attributes: dict[str, Any]) -> None:
        self._attributes, self._before = attributes, dict(attributes)
        self._replaced: dict[str, Any] = {}

    def restore(self) -> None:
        """Have what took another's place there."""
        self._attributes.update(self._replaced)

    def replace(self, old: Any, new: Any) -> bool:
        """Have another object in the place of one that cannot be put back; False if it was never there."""
        names = [name for name, value in self._before.items() if value is old]
        for name in names:
            self._before[name] = self._attributes[name] = self._replaced[name] = new
        return bool(names)


def _is_plain(value: Any) -> bool:
    return type(value) in (type(None), bool, int, float, complex, str, bytes)


def is_to_be_undone(before: Any, now: Any) -> bool:
    """Whether a name was bound anew to what no capture may leave behind: a fake tensor, or a count that went on.

    Whatever else was made on first use, and kept for later, may stay.
    """
    if before is now:
        return False
    return (_is_plain(before) and _is_plain(now)) or any_inside(now, is_of_a_capture)
