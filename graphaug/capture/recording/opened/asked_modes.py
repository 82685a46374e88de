"""What opened code asks of torch's settings: the graph holds for the answers, which every call asks for again."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.utils.deterministic
from torch.overrides import get_ignored_functions

from graphaug.capture.recording.patches import Patches
from graphaug.capture.recording.recorder import Recorder
from graphaug.capture.switches import setting

_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)
_OF_VALUES = ("is_tensor", "is_storage", "get_rng_state")
# derived: the questions among torch's functions of which it says itself that no function mode sees them
_MODES = tuple(
    name
    for name, function in vars(torch).items()
    if name.startswith(("is_", "are_", "get_")) and name not in _OF_VALUES
    if isinstance(function, _FUNCTIONS) and function in get_ignored_functions()
)
_KERNELS = ("flash_sdp_enabled", "mem_efficient_sdp_enabled", "math_sdp_enabled", "cudnn_sdp_enabled")
_OF_PROCESSES = ("is_initialized", "get_rank", "get_world_size", "get_backend")
_OF_AUTOGRAD = ("is_multithreading_enabled", "is_view_replay_enabled")
_IS_INITIALIZED: Any = getattr(torch.distributed, "is_initialized", None)  # not in every build
ASKED = (
    (torch, _MODES),
    (torch.autograd, _OF_AUTOGRAD),
    (torch._C, tuple(f"_{name}" for name in _OF_AUTOGRAD)),
    (torch.backends.mha, ("get_fastpath_enabled",)),
    (torch.backends.cuda, _KERNELS),
    (torch.distributed, (*_OF_PROCESSES, "is_torchelastic_launched")),
)
"""What says how torch is set: modules, and names of functions in them."""


class AskedModes:
    """Notes what opened code asks of torch's settings.

    Args:
        recorder: what records.
        patches: puts functions of ours in the places of the questions.
        asks: whether a frame runs opened code.
    """

    def __init__(self, recorder: Recorder, patches: Patches, asks: Callable[[types.FrameType], bool]) -> None:
        self.recorder, self.patches, self._asks = recorder, patches, asks

    def watch(self, by_function: dict[Any, Callable[..., Any]]) -> None:
        """See what is asked; a question with what takes its place is added for those that go by another name."""
        method = self.patches.method
        for owner, names in ASKED:
            for name in (n for n in names if hasattr(owner, n)):
                asked = functools.partial(self._mode, f"{owner.__name__}.{name}")
                by_function[getattr(owner, name)] = asked
                method(owner, name, asked)
        method(torch.backends.ContextProp, "__get__", self._setting)
        method(type(torch.backends.cuda.matmul), "__getattr__", self._precision)
        name = "fill_uninitialized_memory"
        fills = functools.partial(self._attribute, f"torch.utils.deterministic.{name}")
        self.patches.getter(type(torch.utils.deterministic), name, fills)

    def _mode(self, name: str, original: Any, /, *args: Any, **kwargs: Any) -> Any:
        """A question about a mode of torch or its processes by opened code itself."""
        if not self._asks(sys._getframe(2)):
            return original(*args, **kwargs)
        ledger, nodes = self.recorder.ledger, self.recorder.nodes
        if _IS_INITIALIZED is not None and name.rpartition(".")[2] in _OF_PROCESSES:
            # without processes the others raise, which may be caught
            nodes.assume_answer(_IS_INITIALIZED, (), _IS_INITIALIZED(), "torch.distributed.is_initialized()")
        value = original(*args, **kwargs)
        given = (*args, *kwargs.values())
        nodes.assume_answer(original, ledger.lower(given), value, f"{name}({', '.join(map(repr, given))})")
        return value

    def _setting(self, original: Any, prop: Any, owner: Any, kind: type) -> Any:
        """A setting that is read, as ``torch.backends.cudnn.enabled``."""
        value = original(prop, owner, kind)
        if self._asks(sys._getframe(2)):
            name = next(n for cls in kind.__mro__ for n, found in vars(cls).items() if found is prop)
            self._assume(f"{owner.__name__}.{name}", value)
        return value

    def _precision(self, original: Any, owner: Any, name: str) -> Any:
        """The same of what ``torch.backends.cuda.matmul`` says."""
        value = original(owner, name)
        if self._asks(sys._getframe(2)):
            self._assume(f"torch.backends.cuda.matmul.{name}", value)
        return value

    def _attribute(self, name: str, read: Any, owner: Any) -> Any:
        """The same of an attribute that is a property of a module."""
        value = read(owner)
        if self._asks(sys._getframe(2)):
            self._assume(name, value)
        return value

    def _assume(self, name: str, value: Any) -> None:
        self.recorder.nodes.assume_answer(setting, tuple(name.split(".")[1:]), value, name)
