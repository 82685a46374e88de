"""What moves on when it is asked: generators of random numbers, counters of `itertools`, and iterators."""

from __future__ import annotations

import ast
import contextlib
import itertools
import operator
import random
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graphaug.capture.recording.values.inside import bases
from graphaug.errors import CaptureError

_MOST = 1000
"""Entries of what an iterator goes through that are looked at."""
Replace = Callable[[Any, Any], bool]
"""Puts one object in the place of another wherever that was found; False if it cannot."""


class Moving:
    """Something that moves on, with its state as a value that compares.

    Attributes:
        name: how it is reached, for errors.
    """

    def __init__(self, name: str, get: Callable[[], Any], put: Callable[[Any], Any]) -> None:
        self.name, self.get, self.put = name, get, put


class Count(Moving):
    """An `itertools.count`: nothing sets it, so that another takes its place."""

    def __init__(self, name: str, count: Any, replace: Replace) -> None:
        super().__init__(name, lambda: repr(self.count), self._put)
        self.count, self.replace = count, replace

    def _put(self, state: str) -> None:
        numbers = ast.literal_eval(state.removeprefix("count") if "," in state else f"({state[6:-1]},)")
        new: Any = itertools.count(*numbers)
        if not self.replace(self.count, new):
            raise CaptureError(
                f"the forward counts on with {self.name}, an itertools.count where none can be put back: keep it in an "
                "attribute, a list or a dict."
            )
        self.count = new


class PlainIterator(Moving):
    """An iterator of Python's own: nothing sets it, so that a copy takes its place."""

    def __init__(self, name: str, iterator: Any, replace: Replace) -> None:
        super().__init__(name, lambda: _At(progress(self.iterator), _copy_of(self.iterator)), self._put)
        self.iterator, self.replace = iterator, replace

    def _put(self, state: _At) -> None:
        new = None if state.iterator is None else _copy_of(state.iterator)
        if new is None or not self.replace(self.iterator, new):
            raise CaptureError(
                f"the forward takes from {self.name}, an iterator ({type(self.iterator).__name__}) that cannot be put "
                "back, so that the attempt has moved it on. Count in a number (self.step = self.step + 1), or hand in "
                "what it gives as an input."
            )
        self.iterator = new


@dataclass(frozen=True)
class _At:
    """Where an iterator is, and if there can be one, a copy that is there as well."""

    progress: Any
    iterator: Any = field(compare=False)


def _copy_of(iterator: Any) -> Any:
    """An iterator of its own over the same, those inside of it included; None where none can be made."""

    def own(value: Any, kept: bool = False) -> Any:
        if isinstance(value, tuple):
            return tuple(own(entry, kept) for entry in value)
        if kept and type(value) is list:
            return list(value)  # what a cycle has seen so far
        if type(value) in ITERATORS and (value := _copy_of(value)) is None:
            raise ValueError("an iterator in it cannot be copied")
        return value

    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of itertools, whose iterators tell this up to Python 3.13
        make, arguments, *state = iterator.__reduce__()
        made = make(*own(arguments))
        if state and state[0] is not None:
            made.__setstate__(own(state[0], kept=True))
        return made
    return None


def progress(value: Any, depth: int = 4) -> Any:
    """How far an iterator has come, as a value that compares; what it goes through is told by identity."""
    if isinstance(value, types.GeneratorType):
        frame = value.gi_frame
        held = [] if frame is None else sorted(frame.f_locals.items())
        return frame and frame.f_lasti, [(name, progress(v, depth - 1)) for name, v in held]
    if depth == 0:
        return id(value)
    if isinstance(value, (bool, int, float, str, range)):
        return value
    if isinstance(value, tuple):
        return [progress(v, depth - 1) for v in value]
    if type(value) is list:
        return len(value), [id(v) for v in value[:_MOST]]
    if type(value) not in ITERATORS:
        return id(value)
    if (left := operator.length_hint(value, -1)) >= 0:
        return left
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [progress(v, depth - 1) for v in value.__reduce__()[1:]]
    return object()  # nothing tells: it may have moved


def iterators_in(value: Any) -> list[Any]:
    """The iterators that an iterator takes from, whose progress is a part of its own."""
    held: Any = ()
    if isinstance(value, types.GeneratorType):
        held = () if value.gi_frame is None else value.gi_frame.f_locals.values()
    else:
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            held = [part for part in value.__reduce__()[1:] if isinstance(part, tuple)]
            held = itertools.chain.from_iterable(held)
    own = [inner for inner in held if type(inner) in ITERATORS]
    return own + [deeper for inner in own for deeper in iterators_in(inner)]


ITERATORS = (
    *(types.GeneratorType, itertools.cycle, itertools.chain, itertools.islice, map, filter, zip, enumerate),
    *map(type, (iter([]), iter(()), iter({}), iter(set()), iter(range(0)), reversed([]))),
)
"""What moves on and cannot be set."""


def moving(value: Any, name: str, replace: Replace) -> Moving | None:
    """How an object that moves on is put back; None if it is none.

    Args:
        value: any object.
        name: how it is reached.
        replace: puts another in its place.
    """
    line = bases(type(value))
    if type(value) in ITERATORS:
        return PlainIterator(name, value, replace)
    if random.Random in line and random.SystemRandom not in line:
        return Moving(
            name,
            lambda: random.Random.getstate(value),
            lambda state: random.Random.setstate(value, state),
        )
    if np.random.Generator in line:
        value, line = value.bit_generator, bases(type(value.bit_generator))
    if np.random.BitGenerator in line:
        return Moving(
            name, lambda: _comparable(value.state), lambda state: setattr(value, "state", _plain(state))
        )
    if np.random.RandomState in line:
        return Moving(
            name,
            lambda: _comparable(value.get_state(legacy=False)),
            lambda state: value.set_state(_plain(state)),
        )
    if itertools.count in line and _is_readable(repr(value)):
        return Count(name, value, replace)
    return None


def _is_readable(state: str) -> bool:
    """Whether the numbers of a count can be read: not those of another kind than Python's own."""
    return all(c in "count(-+.e0123456789, j)" for c in state)


def _comparable(state: Any) -> Any:
    """numpy's state with arrays as tuples, so that two compare."""
    if isinstance(state, dict):
        return {k: _comparable(v) for k, v in state.items()}
    return ("array", str(state.dtype), state.tobytes()) if isinstance(state, np.ndarray) else state


def _plain(state: Any) -> Any:
    if isinstance(state, dict):
        return {k: _plain(v) for k, v in state.items()}
    if isinstance(state, tuple) and len(state) == 3 and state[0] == "array":
        return np.frombuffer(state[2], dtype=state[1]).copy()
    return state
