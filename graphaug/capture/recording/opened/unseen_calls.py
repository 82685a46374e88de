"""Calls of torch that no function mode sees: each is a node, an answer that the graph relies on, or a refusal."""

from __future__ import annotations

import builtins
import functools
import inspect
import io
import logging
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.utils.checkpoint
import torch.utils.dlpack
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from graphaug.capture.recording.calls.autocast import region_of_maybe
from graphaug.capture.recording.calls.operations import Call
from graphaug.capture.recording.checks import (
    ALL_TRUE,
    CHECK,
    all_true_as_assertion,
    as_assertion,
    truth_as_assertion,
)
from graphaug.capture.recording.opened.asked_modes import AskedModes
from graphaug.capture.recording.opened.asked_system import AskedSystem
from graphaug.capture.recording.opened.function_modes import without_modes
from graphaug.capture.recording.opened.functions import AutogradCall
from graphaug.capture.recording.opened.object_calls import ObjectCalls
from graphaug.capture.recording.patches import Patches
from graphaug.capture.recording.recorder import Recorder
from graphaug.capture.recording.relied.code_names import globals_in
from graphaug.capture.recording.values.handles import Handle
from graphaug.capture.recording.values.structures import plain
from graphaug.capture.recording.values.tracked import is_tracked, is_unknown
from graphaug.capture.user_code import global_names, is_internal, user_line
from graphaug.torch_private import FakeTensor

# what checkpoint() calls, from version to version, wherever it was imported from
_CHECKPOINTING = {"_checkpoint_impl", "_checkpoint_without_reentrant_generator"}
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)
_DEVICE: Any = Tensor.device.__get__
_SEEDS = ("manual_seed", "seed", "set_rng_state", "fork_rng")
_TRACED_BY_TORCH = ("cond", "while_loop")
"""Control flow that torch's compiler traces when it is called."""
_TO_DLPACK: Any = vars(torch.utils.dlpack)["to_dlpack"]


def is_parameter(value: Any) -> bool:
    """Whether a tensor is a parameter, as opened code asked."""
    return isinstance(value, nn.Parameter)


class UnseenCalls:
    """Puts functions of ours in the places of those that opened code could call unseen.

    Attributes:
        prints: where opened code prints or logs, which no node does.
        system: what opened code asks Python and the system.
    """

    def __init__(self, recorder: Recorder, patches: Patches) -> None:
        self.recorder, self.patches = recorder, patches
        self.prints: dict[str, None] = {}
        self._files: set[str] = set()
        self.of_objects = ObjectCalls(recorder, patches, self._asks)
        self.asked_modes = AskedModes(recorder, patches, self._asks)
        self.system = AskedSystem(recorder.session, patches, self._asks, self._files)
        self._by_function: dict[Any, Callable[..., Any]] = {}
        self._made_before: set[type] = set()  # the autograd functions that there are before opened code runs

    def watch(self) -> None:
        """See all that is reached through torch itself."""
        method = self.patches.method
        for name in _CHECKPOINTING & vars(torch.utils.checkpoint).keys():
            method(torch.utils.checkpoint, name, self._checkpoint)
        self._made_before = _subclasses(torch.autograd.Function)
        self.patches.class_method(torch.autograd.Function, "apply", self._apply)
        autocast = self.recorder.modes.autocast
        method(torch.autocast, "__init__", autocast.make)
        method(torch.autocast, "__enter__", autocast.enter)
        method(torch.autocast, "__exit__", autocast.leave)
        if (library := sys.modules.get("transformers.utils.generic")) and hasattr(library, "maybe_autocast"):
            self._by_function[library.maybe_autocast] = region_of_maybe
            method(library, "maybe_autocast", region_of_maybe)
        method(torch.autograd.graph.saved_tensors_hooks, "__enter__", self._saved_tensors)
        for owner in (torch, torch.utils.dlpack):  # on a fake tensor it ends the process
            if hasattr(owner, "to_dlpack"):
                method(owner, "to_dlpack", self._dlpack)
        for name in _SEEDS:
            for owner in (o for o in (torch, torch.random) if hasattr(o, name)):
                method(owner, name, self._seed)
        for name in (n for n in _TRACED_BY_TORCH if hasattr(torch, n)):
            refused = functools.partial(self._traced_by_torch, name)
            self._by_function[getattr(torch, name)] = refused
            method(torch, name, refused)
        method(torch, "from_numpy", self._from_numpy)
        method(FakeTensor, "tolist", self._tolist)
        for name in ("finfo", "iinfo"):
            method(torch, name, self._type_info)
        self._by_function[torch.broadcast_shapes] = self._broadcast_shapes
        method(torch, "broadcast_shapes", self._broadcast_shapes)
        method(torch, CHECK, as_assertion)
        method(torch, ALL_TRUE, all_true_as_assertion)
        method(FakeTensor, "__bool__", truth_as_assertion)
        self.of_objects.watch()
        self.patches.entry(vars(builtins), "print", self._print)
        for names in (vars(builtins), vars(io)):
            self.patches.entry(names, "open", self.system.open)
        method(logging.Logger, "handle", self._log)
        self.patches.getter(FakeTensor, "device", self._device)
        method(type(nn.Parameter), "__instancecheck__", self._is_parameter)
        self.asked_modes.watch(self._by_function)
        self.system.watch(self._by_function)
        without_modes(self.patches, self._asks)

    def watch_names(self, m: nn.Module) -> None:
        """See what the file of an opened module has imported by a name of its own, and what its code asks."""
        for cls in (c for c in type(m).__mro__ if c not in (nn.Module, object)):
            functions = [inspect.unwrap(value) for value in vars(cls).values() if callable(value)]
            self._files.update(f.__code__.co_filename for f in functions if isinstance(f, types.FunctionType))
        for cls in type(m).__mro__:
            scope = global_names(cls)
            if cls.__module__.partition(".")[0] != "torch":
                for name in [n for n, value in scope.items() if value is _TO_DLPACK]:
                    self.patches.entry(scope, name, self._dlpack)
                self.of_objects.watch_names(scope)
                self._watch_scope(scope, list(scope))

    def watch_functions(self, functions: Iterable[types.FunctionType]) -> None:
        """The same of the files of functions that opened code calls."""
        for function in functions:
            self.of_objects.watch_names(function.__globals__)
            self._watch_scope(function.__globals__, globals_in(function.__code__))

    def _watch_scope(self, scope: dict[str, Any], names: Iterable[str]) -> None:
        for name in names:
            value = scope.get(name)
            if isinstance(value, _FUNCTIONS) and value in self._by_function:
                self.patches.entry(scope, name, self._by_function[value])

    def seen(self, value: Any) -> Any:
        """In the place of a function of torch that an attribute holds, and that would be called unseen, one of ours."""
        if not isinstance(value, _FUNCTIONS) or value not in self._by_function:
            return value
        replacement = self._by_function[value]

        def call(*args: Any, **kwargs: Any) -> Any:
            return replacement(value, *args, **kwargs)

        return call

    # --- what becomes of them -------------------------------------------------------------------

    def _apply(self, apply: Callable[..., Any], cls: Any, /, *args: Any, **kwargs: Any) -> Any:
        """A custom autograd function is one node."""
        if "CheckpointFunction" in cls.__name__:
            self._checkpoint()
        if "<locals>" in cls.__qualname__ and cls not in self._made_before:
            raise self.recorder.session.refuse(
                f"it makes an autograd function in every call ({cls.__name__}), which may hold what only this call has",
                reason=" Define the class outside of the forward, or choose a site outside that module.",
            )
        with self.recorder.session.unrecorded():
            return self.recorder.record(Call("function", AutogradCall(cls)), apply, args, kwargs)

    def _print(self, original: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Nothing is printed of a recording, and so nothing asked of what is to be printed; the plan has a note."""
        if not self._asks(sys._getframe(2)):
            return original(*args, **kwargs)
        self.prints[user_line().strip(" ()")] = None
        return None

    def _log(self, original: Callable[..., Any], logger: logging.Logger, record: logging.LogRecord) -> None:
        """A record of opened code's goes nowhere, like what it prints; those of libraries do, if they are asked for."""
        if record.pathname in self._files:
            self.prints[user_line().strip(" ()")] = None
        else:
            original(logger, record)

    def _traced_by_torch(self, name: str, original: Any, /, *args: Any, **kwargs: Any) -> Any:
        raise self.recorder.session.refuse(f"it calls torch.{name}, whose branches torch itself traces")

    def _from_numpy(self, original: Any, values: Any) -> Any:
        """An array of the user's as a tensor: the array itself, as it is in every call."""
        if not self._asks(sys._getframe(2)):
            return original(values)
        with self.recorder.session.unrecorded():
            return self.recorder.record(Call("function", original), original, (values,), {})

    def _tolist(self, original: Any, tensor: Tensor) -> Any:
        """The integers of a tensor as opened code takes them, to split by."""
        recorder = self.recorder
        if recorder.session.aside or not self._asks(sys._getframe(2)):
            return original(tensor)
        with recorder.session.unrecorded():
            return recorder.numbers(tensor)

    def _type_info(self, original: Any, /, *args: Any, **kwargs: Any) -> Any:
        """``torch.finfo(h.dtype)``, read in every call."""
        if len(args) != 1 or kwargs or type(args[0]) is not Handle:
            return original(*plain(args), **plain(kwargs))
        return self.recorder.answers.type_info(original, args[0])

    def _broadcast_shapes(self, original: Any, /, *shapes: Any) -> Any:
        """The shape that shapes have together is computed in every call, as sizes of the batch are among them."""
        sizes = [n for shape in shapes for n in (shape if isinstance(shape, (tuple, list)) else [shape])]
        if self.recorder.session.aside or not any(map(is_tracked, sizes)):
            return original(*shapes)
        if (unknown := next(filter(is_unknown, sizes), None)) is not None:
            raise self.recorder.session.depends(unknown._fx_node(), "needs the numbers in")
        return self.recorder.answers.derived(original, shapes)

    def _device(self, read: Callable[[Tensor], torch.device], tensor: Tensor) -> Any:
        """The device of a fake tensor is a property in Python, which asks no function mode; that of a real one does."""
        if not has_torch_function((tensor,)):
            return read(tensor)
        return handle_torch_function(_DEVICE, (tensor,), tensor)

    def _is_parameter(self, original: Any, cls: type, value: Any) -> bool:
        """Whether an input is a parameter: it may be one in another call."""
        found = bool(original(cls, value))
        if cls is nn.Parameter and isinstance(value, FakeTensor) and self._asks(sys._getframe(2)):
            ledger, nodes = self.recorder.ledger, self.recorder.nodes
            if ledger.knows(value) and (node := ledger.node_of(value)).op == "placeholder":
                nodes.assume(nodes.once(is_parameter, node, value=found), found)
        return found

    def _asks(self, frame: types.FrameType) -> bool:
        """Whether a frame runs opened code, which may be torch's own, and no plumbing."""
        name = frame.f_code.co_filename
        return name in self._files or not is_internal(name)

    def _checkpoint(self, *_: Any, **__: Any) -> Any:
        raise self.recorder.session.refuse(
            "it calls torch.utils.checkpoint around code that has to be opened",
            reason=" A graph does not keep that: switch activation checkpointing off for the rewriting, or checkpoint "
            "inside the modules that stay closed.",
        )

    def _dlpack(self, *_: Any, **__: Any) -> Any:
        raise self.recorder.session.refuse("it hands a tensor to other code by dlpack")

    def _seed(self, *_: Any, **__: Any) -> Any:
        raise self.recorder.session.refuse(
            "it seeds torch's generator, and a graph would go on drawing from the caller's"
        )

    def _saved_tensors(self, *_: Any, **__: Any) -> Any:
        raise self.recorder.session.refuse(
            "it changes what autograd keeps for the backward (saved_tensors_hooks), which a graph does not do"
        )


def _subclasses(cls: type) -> set[type]:
    """All classes below a class that are still alive."""
    return {cls}.union(*map(_subclasses, type.__subclasses__(cls)))
