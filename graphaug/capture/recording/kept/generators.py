"""What moves on when it is asked: generators of random numbers, and counters of `itertools`."""

from __future__ import annotations

import ast
import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np

from graphaug.capture.recording.values.inside import bases
from graphaug.errors import CaptureError

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


def moving(value: Any, name: str, replace: Replace) -> Moving | None:
    """How an object that moves on is put back; None if it is none.

    Args:
        value: any object.
        name: how it is reached.
        replace: puts another in its place.
    """
    line = bases(type(value))
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
