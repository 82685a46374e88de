"""What opened code asks of a tensor as a Python object, and calls that stand for others: no function mode sees them."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable

from graphaug.capture.recording.patches import Patches
from graphaug.capture.recording.recorder import Recorder
from graphaug.capture.recording.scripted import CALL, python_of
from graphaug.capture.recording.values.watched import Watched
from graphaug.capture.user_code import in_message
from graphaug.torch_private import FakeTensor


class ObjectCalls:
    """Puts functions of ours in the places of ``len``, ``id`` and hashes, scripted functions and old names of torch.

    Args:
        recorder: what records.
        patches: puts them there.
        asks: whether a frame runs opened code.
    """

    def __init__(self, recorder: Recorder, patches: Patches, asks: Callable[[types.FrameType], bool]) -> None:
        self.recorder, self.patches, self._asks = recorder, patches, asks

    def watch(self) -> None:
        """See what is called by a class."""
        method = self.patches.method
        method(FakeTensor, "__hash__", self._hash)
        method(type(Variable), "__call__", self._variable)
        method(torch.jit.ScriptFunction, CALL, self._scripted)
        method(nn.RNNBase, "flatten_parameters", lambda *_: None)  # where weights lie, which changes no value

    def watch_names(self, scope: dict[str, Any]) -> None:
        """See what the code of a file calls by a name of Python's own, unless the file has another of that name."""
        for name, replacement in (("len", self._length), ("id", self._identity)):
            if name not in scope:
                self.patches.entry(scope, name, replacement)

    def _length(self, original: Any, value: Any) -> Any:
        """``len(x)`` of a tensor is ``x.shape[0]``, read in every call; Python's own makes a plain number of it."""
        if type(value) is Watched:
            value.note_length()  # whose length any frame of ours may ask for
        counted = isinstance(value, FakeTensor) and self.recorder.session.call_unrecorded(value.dim)
        return value.shape[0] if counted and not in_message() else original(value)

    def _identity(self, original: Any, value: Any) -> Any:
        """``id(t)`` tells a tensor from others, as ``is`` does."""
        if isinstance(value, Tensor):
            self.recorder.compare([value])
        return original(value)

    def _hash(self, original: Any, tensor: Tensor) -> int:
        """By which a tensor is looked up in a dict or a set."""
        if self._asks(sys._getframe(2)):
            self.recorder.compare([tensor])
        return original(tensor)  # type: ignore[no-any-return]

    def _scripted(self, original: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """A scripted function as the Python that it was made of."""
        python = python_of(function, args, kwargs)
        if python is None:
            raise self.recorder.session.refuse(
                f"it calls {function.name!r}, which was traced, or may do something else as a script than in Python",
                reason=" Call the Python function itself, or choose a site outside that module.",
            )
        return python(*args, **kwargs)

    def _variable(self, original: Any, cls: type, /, *args: Any, **kwargs: Any) -> Any:
        """``Variable(t)`` of old code: the tensor, detached."""
        if cls is not Variable or not args or not isinstance(args[0], Tensor):
            return original(cls, *args, **kwargs)
        wants = args[1] if len(args) > 1 else kwargs.get("requires_grad", False)
        return args[0].detach().requires_grad_() if wants else args[0].detach()
