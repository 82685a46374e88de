"""Other threads wait in front of a model while it is looked into.

Meanwhile its modules are tried in other modes, with fakes in the place of their weights: a thread that ran one would
compute with these. Torch's compiler waits too, as it would trace what is replaced for a recording.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from torch import nn

from graphaug import torch_private
from graphaug.capture.recording.patches import stands_for
from graphaug.errors import CaptureError

PATIENCE = 60.0
"""Seconds for which calls that began before are waited for."""

_POLL = 0.01
_call: Any = nn.Module.__call__
"""What a module's call is without a gate."""

_gate: _Gate | None = None
"""The one of the thread that looks into a model."""


def _through_the_gate(self: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
    """`nn.Module.__call__` meanwhile: one function for all times, as compiled code asks which one it is."""
    if not torch.compiler.is_compiling():
        while (gate := _gate) is not None and gate.holds_up(self, sys._getframe(1)):
            pass  # there may be another gate by then
    return _call(self, *args, **kwargs)


_CALLS = {f.__code__ for f in (nn.Module.__call__, nn.Module._call_impl, _through_the_gate)}
_WAITS = {
    f.__code__
    for f in (
        threading.Condition.wait,
        threading.Thread.join,
        getattr(threading.Thread, "_wait_for_tstate_lock", threading.Thread.join),  # until Python 3.12
    )
}


@contextlib.contextmanager
def closed_to_other_threads(model: nn.Module) -> Iterator[None]:
    """Let calls of a model's modules by other threads wait until the end of the block; nothing changes without any.

    Calls that other threads are in are waited for first. A thread that this one waits for may call what it likes, as
    a pool does whose threads run the model's branches; so may threads that are not Python's, as those of autograd.

    Raises:
        CaptureError: a call in another thread does not end.
    """
    if threading.active_count() == 1:
        yield
        return
    global _gate, _call
    _gate, _call = (gate := _Gate(model)), nn.Module.__call__
    stands_for(_through_the_gate, _call)
    setattr(nn.Module, "__call__", _through_the_gate)  # noqa: B010
    try:
        gate.wait_for_others()
        with torch_private.compile_lock():
            yield
    finally:
        setattr(nn.Module, "__call__", _call)  # noqa: B010
        _gate = None
        gate.open.set()


class _Gate:
    """Where the threads wait."""

    def __init__(self, model: nn.Module) -> None:
        self._name = type(model).__name__
        self._modules = {id(m) for m in model.modules()}
        self._owner = threading.get_ident()
        self._outside = {self._owner}
        self.open = threading.Event()

    def holds_up(self, module: nn.Module, caller: FrameType) -> bool:
        """Whether a call had to wait until the gate was opened."""
        if (
            (this := threading.get_ident()) == self._owner
            or isinstance(threading.current_thread(), threading._DummyThread)
            or not self._shares(module)
            or self._is_in_a_call(caller)
        ):
            return False
        self._outside.add(this)
        while not self.open.wait(_POLL):
            if self._is_waited_for():
                return False
        return True

    def wait_for_others(self) -> None:
        """Return when no other thread is in a call of the model's modules.

        Raises:
            CaptureError: one still is after `PATIENCE`.
        """
        until = time.monotonic() + PATIENCE
        while (inside := self._inside()) is not None:
            if time.monotonic() > until:
                raise CaptureError(
                    f"another thread, {inside!r}, has been in a call of this {self._name} for {PATIENCE:g} s. While "
                    "graphaug looks into a model, no other thread may run it: do it before that thread begins, or "
                    "when it is done."
                )
            time.sleep(_POLL)

    def _is_waited_for(self) -> bool:
        """Whether the thread in the block waits for another one."""
        frame = sys._current_frames().get(self._owner)
        return frame is not None and frame.f_code in _WAITS

    def _inside(self) -> str | None:
        """The name of another thread that is in a call of the model's modules."""
        frames = sys._current_frames()
        for thread in threading.enumerate():
            if thread.ident not in self._outside and self._is_in_a_call(frames.get(thread.ident or 0)):
                return thread.name
        return None

    def _is_in_a_call(self, frame: FrameType | None) -> bool:
        while frame is not None:
            if frame.f_code in _CALLS and self._shares(frame.f_locals.get("self")):
                return True
            frame = frame.f_back
        return False

    def _shares(self, module: Any) -> bool:
        return isinstance(module, nn.Module) and any(id(m) in self._modules for m in module.modules())
