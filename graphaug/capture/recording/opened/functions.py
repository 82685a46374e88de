"""Functions that a graph calls as one node: plain ones of the model's files, and custom autograd functions."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from graphaug.capture.recording.patches import Patches
from graphaug.capture.recording.recorder import Recorder
from graphaug.capture.recording.values.handles import Text
from graphaug.capture.recording.values.of_a_class import OfAClass
from graphaug.capture.recording.values.structures import holds
from graphaug.capture.recording.values.tracked import is_tracked
from graphaug.capture.user_code import global_names
from graphaug.torch_private import FakeTensor

_ASKS_WHETHER_TRACED = {"is_tracing", "is_fx_tracing", "is_torch_fx_proxy"}


class AutogradCall(OfAClass):
    """``Function.apply`` of a custom autograd function."""

    def __call__(self, *args: Any) -> Any:
        """Apply the function."""
        return self.cls.apply(*args)


class PlainFunctions:
    """Makes the functions that opened code calls by a global name into nodes.

    Args:
        recorder: what records them.
        patches: puts functions of ours in their places.
        opened: the opened modules.
        open_functions: modules whose functions are recorded through, as they have a target inside.
    """

    def __init__(
        self,
        recorder: Recorder,
        patches: Patches,
        opened: frozenset[str],
        open_functions: frozenset[str],
    ) -> None:
        self.recorder, self.patches = recorder, patches
        self.opened, self.open_functions = opened, open_functions

    def watch(self, m: nn.Module) -> None:
        """See every call of a function that the forward of ``m`` can reach by a global name."""
        for cls in type(m).__mro__:
            if cls.__module__.partition(".")[0] in ("torch", "builtins"):
                continue
            scope = global_names(cls)
            if not scope or not self.patches.first_visit(scope):
                continue
            for name, fn in list(scope.items()):
                function = isinstance(fn, types.FunctionType) and not name.startswith("__")
                if function and (fn.__module__ or "torch").partition(".")[0] not in ("torch", "builtins"):
                    self.patches.entry(scope, name, self._called)

    def _called(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        if getattr(fn, "__name__", "") in _ASKS_WHETHER_TRACED:
            return True  # it is; and the answer is no fact about the inputs
        with self.recorder.session.unrecorded():
            if holds((args, kwargs), _is_traced) and not self._is_open(args, kwargs):
                node, value = self.recorder.call("call_function", fn, fn, args, kwargs)
                if isinstance(value, torch.autocast):
                    raise self.recorder.session.refuse(
                        f"it gets an autocast region from a function that it gives a tensor ({fn.__name__})",
                        reason=" Make it where it is entered, `with torch.autocast(...):`, or choose a site outside "
                        "that module, so that it stays closed.",
                    )
                self.recorder.nodes.name(node)
                return self.recorder.adopt(value, node, fn)
        return fn(*args, **kwargs)

    def _is_open(self, args: Any, kwargs: Any) -> bool:
        """True if a function has to be recorded through: it gets code, or a target lies inside."""
        frames = self.recorder.session.frames
        if frames and frames[-1].path in self.open_functions:
            return True
        for value in torch.utils._pytree.tree_leaves((args, kwargs)):
            if isinstance(value, nn.Module):
                paths = {self.recorder.ledger.paths.get(child) for child in value.modules()}
                if None in paths or paths & self.opened:
                    return True
            elif callable(value) and not isinstance(value, (type, Tensor)) and not is_tracked(value):
                return True
        return False


def _is_traced(value: Any) -> bool:
    """Whether a function that gets a value computes with it: of the type of a device it makes a region of autocast."""
    tracked = is_tracked(value) and type(value) is not Text
    return tracked or (isinstance(value, Tensor) and isinstance(value, FakeTensor))
