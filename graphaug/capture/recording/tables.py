"""What a forward can keep outside of its modules' attributes: tables of modules and classes, caches, generators.

During a capture such a table would be filled with fake tensors, and the user's own model would find them there.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

from graphaug.capture.recording.gate import closed_to_other_threads
from graphaug.capture.recording.kept.caches import Results, cached_functions, filled_since
from graphaug.capture.recording.kept.generators import Count, PlainIterator
from graphaug.capture.recording.kept.kinds import is_of_a_capture
from graphaug.capture.recording.kept.names import Imports, Names
from graphaug.capture.recording.kept.walk import Found
from graphaug.capture.recording.patches import LOCK
from graphaug.capture.recording.values.inside import any_inside
from graphaug.errors import CaptureError, in_a_line

_NOT_SEARCHED = ("torch", "numpy", "sympy", "graphaug")
"""Packages whose cached functions keep nothing of a model's."""

_nested = 0
"""How many of `undisturbed` are open, in the one thread that holds the lock."""


class Tables:
    """The containers, objects, caches and generators that a model's code can reach, as they were when this was made.

    They are found through the modules' attributes, their classes, and whatever the code of these names.

    Args:
        model: the model.
        others: what else its code gets, such as example inputs.
    """

    def __init__(self, model: nn.Module, others: Iterable[Any] = ()) -> None:
        self._found = Found(model, others)
        self._began, self._imports = self.states(), Imports()
        known = cached_functions(_NOT_SEARCHED, search=False)
        self._elsewhere = {c: c.cache_info() for c in known if id(c) not in self._found.caches}

    def reaches(self, value: Any) -> bool:
        """Whether an object was there before the forward ran, so that it is not of one call alone."""
        return self._found.holds(value)

    def restore(self, *, search: bool = False) -> None:
        """Put every container, object, generator and count back, and empty caches that were filled.

        Args:
            search: look for cached functions among all that is alive, which takes a tenth of a second.

        Raises:
            CaptureError: something keeps what is of the capture, and nothing can take it out.
        """
        found = self._found
        failed: list[Exception] = []
        puts: list[Callable[[], Any]] = [
            functools.partial(moving.put, state)
            for moving, state in zip(found.moving, self._began, strict=True)
            if moving.get() != state
        ]
        all_kept = (*found.records, *found.names, *found.caches.values(), self._imports)
        puts.extend(kept.restore for kept in all_kept)
        for put in puts:
            try:
                put()
            except Exception as error:  # the others are put back all the same
                failed.append(error)
        for cache in cached_functions(_NOT_SEARCHED, search=search):
            if id(cache) not in found.caches and filled_since(cache, self._elsewhere.get(cache)):
                Results(cache, reached=False).restore()
        for first in failed:
            if isinstance(first, CaptureError):
                raise first
            raise CaptureError(
                f"the model cannot be captured: what its forward changes cannot be put back ({in_a_line(first)})."
            ) from first
        for name, value in found.opaque:
            if any_inside(value, is_of_a_capture):
                raise CaptureError(
                    f"the model cannot be captured: a {type(value).__name__}, {name}, keeps what a forward gives "
                    "it, and nothing can be taken out of it again. Keep it in a list or a dict."
                )

    def changed(self) -> list[str]:
        """The names of the containers and objects that hold something else now."""
        return [r.name for r in self._found.records if not r.kind.same(r.held, r.before)]

    def moved(self) -> str:
        """The first generator, counter or iterator that has moved on since the beginning; or an empty string."""
        each = zip(self._found.moving, self._began, strict=True)
        return next((moving.name for moving, state in each if moving.get() != state), "")

    def filled(self) -> str:
        """The first container or object that holds something else now, and not what is equal; or an empty string."""
        return next((record.name for record in self._found.records if record.holds_others()), "")

    def put_back_moved(self) -> None:
        """Put generators, counters and iterators back to where they were in the beginning."""
        self.set_states(self._began)

    def rebound(self) -> set[tuple[int, str]]:
        """The attributes of classes that are something else now, with the ids of the classes."""
        return {key for names in self._found.names if isinstance(names, Names) for key in names.rebound()}

    def states(self) -> list[Any]:
        """The states of the generators and counters, as values that compare."""
        return [moving.get() for moving in self._found.moving]

    def counted(self, states: list[Any]) -> str:
        """Which counter or iterator went on since it was in one of these states, as a clause, or an empty string."""
        for moving, state in zip(self._found.moving, states, strict=True):
            if isinstance(moving, (Count, PlainIterator)) and moving.get() != state:
                what = "itertools.count" if isinstance(moving, Count) else "iterator"
                return f"it takes numbers from {moving.name}, an {what}"
        return ""

    def set_states(self, states: list[Any]) -> None:
        """Put the generators and counters back into these states."""
        for moving, state in zip(self._found.moving, states, strict=True):
            if moving.get() != state:
                moving.put(state)


@contextlib.contextmanager
def undisturbed(model: nn.Module, *others: Any) -> Iterator[None]:
    """One thread at a time looks into models, and others wait that call this one.

    What its code keeps outside of it is put back afterwards.

    Args:
        model: the model.
        others: what else its code gets, such as example inputs.
    """
    global _nested
    with LOCK, contextlib.nullcontext() if _nested else closed_to_other_threads(model):
        tables = Tables(model, others)
        _nested += 1
        try:
            yield
        finally:
            _nested -= 1
            tables.restore(search=_nested == 0)
