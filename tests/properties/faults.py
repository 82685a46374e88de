"""Faults that the library once had, put back one at a time: what the fuzzer of forwards has to find.

Each takes one mechanism of the capture out. The comparison by shadow runs is out as well: it would refuse most of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch

import graphaug.operation
import graphaug.rewrite
import graphaug.surgery.rewritten.forward
from graphaug.capture import capture
from graphaug.capture.recording.calls.modes import Modes
from graphaug.capture.recording.calls.questions import Questions
from graphaug.capture.recording.hooks import run_forward_hooks
from graphaug.capture.recording.nodes import Nodes
from graphaug.capture.recording.opened.attributes import Attributes
from graphaug.capture.recording.opened.unseen_calls import UnseenCalls
from graphaug.capture.recording.walk import Walk

patch = mock.patch.object


def _mode_only(self: Modes, function: Any, mode: bool, caller: Any) -> None:
    function(mode)
    self._grad_mode = mode


def _no_hooks(self: Walk, function: Any, module: Any, args: tuple[Any, ...]) -> Any:
    return args[2] if function is run_forward_hooks else args


def _unchecked(self: Nodes, node: Any, expected: Any, what: str) -> None:
    return None


def _assigned_at_once(self: Questions, tensor: Any, name: str, value: Any) -> None:
    self.session.call_unrecorded(setattr, tensor, name, self.ledger.evaluable(value))


def _applied(self: UnseenCalls, apply: Callable[..., Any], cls: Any, *args: Any, **kwargs: Any) -> Any:
    return cls.forward(torch.autograd.function.FunctionCtx(), *args, **kwargs)


@contextlib.contextmanager
def both(*patches: Any) -> Iterator[None]:
    """Several patches."""
    with contextlib.ExitStack() as stack:
        for one in patches:
            stack.enter_context(one)
        yield


FAULTS: dict[str, Callable[[], Any]] = {
    "a block without gradients has them": lambda: patch(Modes, "set_grad_mode", _mode_only),
    "numbers of modules are those of the capture": lambda: patch(
        Attributes, "_noted", lambda self, m, name, value: value
    ),
    "switches that were relied on are not looked at": lambda: patch(
        graphaug.surgery.rewritten.forward, "check_facts", lambda *a: None
    ),
    "hooks of opened modules are not called": lambda: patch(Walk, "_hooks", _no_hooks),
    "what a forward sets is not set": lambda: patch(Attributes, "write_back", lambda self, state: None),
    "assumptions are not checked": lambda: patch(Nodes, "_check", _unchecked),
    "what is assigned to a tensor is lost": lambda: patch(Questions, "assign", _assigned_at_once),
    "seeds are set while capturing only": lambda: both(
        patch(UnseenCalls, "_seed", lambda self, original, *a, **k: original(*a, **k)),
        patch(Modes, "check", lambda self: None),
    ),
    "draws in Python are those of the capture": lambda: patch(capture, "python_draws", lambda: ()),
    "autocast regions are left out": lambda: both(
        patch(Modes, "check", lambda self: None),
        patch(UnseenCalls, "_autocast", lambda self, enter, region: enter(region)),
    ),
    "a custom backward is that of its forward": lambda: patch(UnseenCalls, "_apply", _applied),
    "what a forward leaves in a global": contextlib.nullcontext,  # what shadow runs alone see
    "what a forward leaves in a class": contextlib.nullcontext,
    "what a forward leaves in a default argument": contextlib.nullcontext,
    "what a forward does to a child's mode": contextlib.nullcontext,
    "what a forward asks of the type of its input": contextlib.nullcontext,
}


@contextlib.contextmanager
def planted(fault: str) -> Iterator[None]:
    """Put one fault back."""
    with patch(graphaug.operation, "check_faithful", lambda *a: ""), FAULTS[fault]():
        yield


FOUND_BY = {
    "a block without gradients has them": "no_gradients",
    "numbers of modules are those of the capture": "number_moved_by_the_loop",
    "switches that were relied on are not looked at": "switch_turned_by_the_loop",
    "hooks of opened modules are not called": "hooks_on_the_block",
    "what a forward sets is not set": "counter",
    "assumptions are not checked": "rows_branch",
    "what is assigned to a tensor is lost": "data_assigned",
    "seeds are set while capturing only": "seeded",
    "draws in Python are those of the capture": "drawn_by_python",
    "autocast regions are left out": "autocast_on",
    "a custom backward is that of its forward": "custom_function",
    "what a forward leaves in a global": "global_counted",
    "what a forward leaves in a class": "class_counted",
    "what a forward leaves in a default argument": "mutable_default",
    "what a forward does to a child's mode": "mode_of_a_child",
    "what a forward asks of the type of its input": "type_asked",
}
"""The idiom that shows each of them."""
