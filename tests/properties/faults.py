"""Faults that the library once had, put back one at a time: what the fuzzer of forwards has to find.

Each takes one mechanism of the capture out. The comparison by shadow runs is out as well: it would refuse most of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch

import graphaug.operation
import graphaug.rewrite
from graphaug.capture import capture
from graphaug.capture.recording.calls.autocast import Regions
from graphaug.capture.recording.calls.modes import Modes
from graphaug.capture.recording.calls.questions import Questions
from graphaug.capture.recording.hooks import run_forward_hooks
from graphaug.capture.recording.nodes import Nodes
from graphaug.capture.recording.opened.attributes import Attributes
from graphaug.capture.recording.opened.unseen_calls import UnseenCalls
from graphaug.capture.recording.recorder import Recorder
from graphaug.capture.recording.relied.answered import Answered
from graphaug.capture.recording.relied.facts import Fact
from graphaug.capture.recording.relied.reached import Reached
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


def _unwatched() -> Any:
    return patch(Reached, "check", lambda self, model: None)


@contextlib.contextmanager
def _nothing_watched() -> Iterator[None]:
    with _unwatched(), patch(Fact, "check", lambda self, model: None):
        yield


def _calls_unchecked() -> Any:
    return patch(Attributes, "check_call", lambda self, m, path: None)


def _changes_unseen() -> Any:
    return patch(capture, "refuse_changed", lambda walk, changed: None)


class Fault(NamedTuple):
    """A fault: what puts it back, and the idiom that shows it."""

    put_back: Callable[[], Any]
    shown_by: str


def seen_in_shadow(idiom: str) -> Fault:
    """A fault that shadow runs alone keep out."""
    return Fault(contextlib.nullcontext, idiom)


FAULTS: dict[str, Fault] = {
    "a block without gradients has them": Fault(
        lambda: patch(Modes, "set_grad_mode", _mode_only), "no_gradients"
    ),
    "numbers of modules are those of the capture": Fault(
        lambda: patch(Attributes, "_noted", lambda self, m, name, value: value), "number_moved_by_the_loop"
    ),
    "switches that were relied on are not looked at": Fault(
        lambda: patch(Fact, "check", lambda self, model: None), "switch_turned_by_the_loop"
    ),
    "options in a dict are those of the capture": Fault(_unwatched, "entry_of_a_dict_moved"),
    "variables of closures are those of the capture": Fault(_unwatched, "closure_moved"),
    "globals are those of the capture": Fault(_unwatched, "global_moved"),
    "what lies on torch is that of the capture": Fault(_unwatched, "number_put_on_torch"),
    "which attributes there are is that of the capture": Fault(
        lambda: patch(Fact, "check", lambda self, model: None), "number_put_on_the_block"
    ),
    "what the system says is that of the capture": Fault(
        lambda: patch(Answered, "check", lambda self, model: None), "file_put_there"
    ),
    "class attributes are those of the capture": Fault(_nothing_watched, "class_attribute_shadowed"),
    "numbers of closed modules are those of the capture": Fault(
        lambda: patch(Attributes, "_noted", lambda self, m, name, value: value), "number_of_a_child_moved"
    ),
    "hooks of opened modules are not called": Fault(
        lambda: patch(Walk, "_hooks", _no_hooks), "hooks_on_the_block"
    ),
    "what a forward sets is not set": Fault(
        lambda: patch(Attributes, "write_back", lambda self, state: None), "counter"
    ),
    "assumptions are not checked": Fault(lambda: patch(Nodes, "_check", _unchecked), "rows_branch"),
    "what is assigned to a tensor is lost": Fault(
        lambda: patch(Questions, "assign", _assigned_at_once), "data_assigned"
    ),
    "seeds are set while capturing only": Fault(
        lambda: both(
            patch(UnseenCalls, "_seed", lambda self, original, *a, **k: original(*a, **k)),
            patch(Modes, "check", lambda self, **_: None),
        ),
        "seeded",
    ),
    "draws in Python are those of the capture": Fault(
        lambda: patch(capture, "python_draws", lambda: ()), "drawn_by_python"
    ),
    "autocast regions are left out": Fault(
        lambda: both(
            patch(Regions, "check", lambda self: None),
            patch(Regions, "enter", lambda self, enter, region: enter(region)),
            patch(Regions, "leave", lambda self, leave, region, *error: leave(region, *error)),
        ),
        "autocast_on",
    ),
    "a custom backward is that of its forward": Fault(
        lambda: patch(UnseenCalls, "_apply", _applied), "custom_function"
    ),
    "what a forward leaves in a global": Fault(_changes_unseen, "global_counted"),
    "what a forward leaves in a class": Fault(_nothing_watched, "class_counted"),
    "what a forward leaves in a default argument": Fault(_changes_unseen, "mutable_default"),
    "what a forward does to a child's mode": Fault(_calls_unchecked, "mode_of_a_child"),
    "what a forward sets on a child for its call": Fault(_calls_unchecked, "momentum_of_a_child_set"),
    "what a forward exchanges in a child for its call": Fault(
        lambda: patch(Recorder, "_check_lineage", lambda *_: None), "weights_exchanged"
    ),
    "what a forward switches around a call": seen_in_shadow("context_that_a_child_reads"),
    "what a forward asks of the type of its input": seen_in_shadow("type_asked"),
}


@contextlib.contextmanager
def planted(fault: str) -> Iterator[None]:
    """Put one fault back."""
    with patch(graphaug.operation, "check_faithful", lambda *a: ""), FAULTS[fault].put_back():
        yield
