"""What threads, processes and code of C share: numbers, streams in memory, events, semaphores, queues.

Each is read without a change. Of what threads wait for nobody can tell which of them changed it: where others run, a
change is refused. If it were put back, one of them might wait for ever.
"""

from __future__ import annotations

import ctypes
import io
import queue
import threading
from dataclasses import dataclass
from typing import Any

from graphaug.capture.recording.values.inside import bases, waiting_in
from graphaug.errors import CaptureError

_MOST = 1 << 23
"""Bytes of one object that are put back."""
_ADDRESSES = "OPXzZ"
"""ctypes' letters for what refers to memory of another's, which is no number that can be put back."""


def _alone(held: Any) -> None:
    if threading.active_count() > 1:
        raise CaptureError(
            f"the model cannot be captured: an object of class {type(held).__name__} that it reaches was changed "
            "meanwhile, by a closed module or by another thread, and with other threads alive nobody can tell. Keep "
            "what a forward counts in an attribute, or rewrite before threads start."
        )


def _has_addresses(kind: Any) -> bool:
    """Whether values of a type of ctypes refer to other memory."""
    if issubclass(kind, ctypes.Array):
        return _has_addresses(kind._type_)
    if issubclass(kind, (ctypes.Structure, ctypes.Union)):
        fields = [field for cls in bases(kind) for field in vars(cls).get("_fields_", ())]
        return any(_has_addresses(field[1]) for field in fields)
    return not issubclass(kind, ctypes._SimpleCData) or kind._type_ in _ADDRESSES


def numbers(held: Any) -> bytes | None:
    """The bytes of an object of ctypes; None of a large one, and where they are addresses."""
    if ctypes.sizeof(held) > _MOST or _has_addresses(type(held)):
        return None
    return ctypes.string_at(ctypes.addressof(held), ctypes.sizeof(held))


def put_numbers(held: Any, before: bytes) -> None:
    """Have an object of ctypes hold these bytes."""
    ctypes.memmove(ctypes.addressof(held), before, len(before))


@dataclass(frozen=True)
class _Stream:
    """What is in a stream in memory, and where it is read and written next."""

    text: str | bytes
    at: int


def stream(held: Any) -> _Stream | None:
    """What a stream in memory holds; None of one that is closed."""
    kind = _kind_of(held)
    return None if kind.closed.__get__(held) else _Stream(kind.getvalue(held), kind.tell(held))


def put_stream(held: Any, before: _Stream) -> None:
    """Have a stream in memory hold this."""
    kind = _kind_of(held)
    _, *newline, _, attributes = kind.__getstate__(held)
    # past the translation of ends of lines, which a write makes
    kind.__setstate__(held, (before.text, *newline, before.at, attributes))


def _kind_of(held: Any) -> Any:
    return io.StringIO if io.StringIO in bases(type(held)) else io.BytesIO


def put_event(held: threading.Event, before: bool) -> None:
    """Set an event, or clear it."""
    _alone(held)
    (threading.Event.set if before else threading.Event.clear)(held)


def free(held: Any) -> int:
    """How often a semaphore can be acquired."""
    return int(held._value)


def put_free(held: Any, before: int) -> None:
    """Let a semaphore be acquired so often."""
    _alone(held)
    held._value = before


def put_waiting(held: queue.SimpleQueue[Any], before: list[Any]) -> None:
    """Have a queue hold these."""
    _alone(held)
    for _ in waiting_in(held):
        queue.SimpleQueue.get_nowait(held)
    for value in before:
        queue.SimpleQueue.put(held, value)
