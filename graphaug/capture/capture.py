"""Capture: the graph of a model, opened as far as its targets need."""

from __future__ import annotations

import builtins
import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from graphaug.capture.inputs.signature import Signature
from graphaug.capture.names import Assumption
from graphaug.capture.recording.opened.cached_properties import properties_kept
from graphaug.capture.recording.patches import LOCK
from graphaug.capture.recording.relied.facts import Relied
from graphaug.capture.recording.relied.reached import Reached
from graphaug.capture.recording.tables import Tables
from graphaug.capture.recording.walk import Walk
from graphaug.capture.refusals import drew, located, refuse_changed, refuse_filled_constants
from graphaug.capture.state import ModelState, python_draws, unchanged, undrawn
from graphaug.capture.switches import switched_back
from graphaug.capture.target import Target
from graphaug.errors import CaptureError, GraphaugError
from graphaug.torch_private import quiet_fakes


@dataclass
class Captured:
    """A model's graph, opened as far as its targets need.

    Nodes carry ``meta["site"]`` (a `Target`, on whatever can be targeted), ``meta["value"]`` (the example value, if
    known), and if FLOPs are counted ``meta["flops"]`` and ``meta["uncounted"]`` (the operators that have no formula).
    """

    graph: fx.Graph
    signature: Signature
    opened: frozenset[str]
    assumptions: list[Assumption]
    constants: dict[str, Any]
    calls: Mapping[str, int]
    edges: dict[Target, fx.Node] = field(default_factory=dict)
    """Inputs and outputs of opened modules, marked where asked for."""
    assigned: tuple[str, ...] = ()
    """Attributes that opened code sets in every call."""
    facts: tuple[Relied, ...] = ()
    """Children, hooks, numbers and switches of opened modules that the graph relies on."""
    reached: tuple[Reached, ...] = ()
    """What opened code reaches beside them, and leaves as it is."""
    changed: frozenset[str] = frozenset()
    """Names of what it reaches and changes itself."""
    unwatched: tuple[str, ...] = ()
    """Names of what it reaches that is not compared in every call, with why."""
    prints: tuple[str, ...] = ()
    """Lines of opened code that print."""
    asks: tuple[str, ...] = ()
    """Lines of opened code that ask the system what nothing compares, or write to files."""


def capture(
    model: nn.Module,
    opened: Sequence[str] | frozenset[str],
    signature: Signature,
    *,
    training: bool,
    marks: frozenset[Target] = frozenset(),
    open_functions: frozenset[str] = frozenset(),
    count_flops: bool = False,
) -> Captured:
    """Capture ``model`` in one mode, opening the root and the modules in ``opened``.

    A module that is handed a function of the very call, ``self.sublayer(h, lambda h: self.attend(h, mask))``, is opened
    with them, and so is one that fills an object. The model is left exactly as it was: flags, buffers, attributes and
    the random state.

    Raises:
        CaptureError: the forward cannot be captured; names the file and line that is in the way.
    """
    asked = opened = frozenset(opened) | {""}
    shared, lenient, left_tensors = True, False, False
    instead: CaptureError | None = None
    while True:
        with properties_kept(model, opened):
            walk = Walk(
                model,
                opened,
                signature,
                marks=marks,
                open_functions=open_functions,
                count_flops=count_flops,
                shared=shared,
                lenient=lenient,
            )
            try:
                captured = _recorded(walk, model, signature, training)
            except CaptureError as error:
                session = walk.session
                left_tensors |= session.left_tensors
                if not session.to_open <= opened:
                    instead = session.unless_opened or instead
                    for path in session.to_open:
                        opened |= set(itertools.accumulate(path.split("."), "{}.{}".format))
                elif left_tensors and not lenient:  # which may lie where they are, if nothing reads them
                    opened, instead, lenient = asked, None, True
                else:
                    raise (instead or error) from error.__cause__
                continue
        if not walk.shared_for_nothing:
            return captured
        shared = False  # each input by itself, as they may come in another call


def _recorded(walk: Walk, model: nn.Module, signature: Signature, training: bool) -> Captured:
    tables = Tables(model, signature.examples.values())
    with (
        LOCK,
        switched_back(),
        _restored(tables),
        unchanged(model) as state,
        torch.enable_grad(),
        undrawn(),
        quiet_fakes(),
    ):
        draws = python_draws(), tables.states()
        try:
            model.train(training)
            walk.recorder.leaves.tables = tables
            graph = walk.record(state)
            walk.attributes.check_left({*state.changes(), *tables.changed()}, tables.rebound())
            if draws != (python_draws(), tables.states()):
                raise drew(model, tables.counted(draws[1]))
            reached = walk.reached
            changed = [r for r in reached if not r.holds()]
            refuse_changed(walk, changed)
            refuse_filled_constants(walk, model)
            assigned = _assigned(walk, state)
        except GraphaugError as error:
            error.failed_in = walk.failed_in  # type: ignore[attr-defined]
            raise
        except Exception as error:
            raise located(model, error, walk, signature) from error
    _drop_dead(graph)
    return _captured(walk, graph, reached, changed, assigned)


def _captured(
    walk: Walk, graph: fx.Graph, reached: list[Reached], changed: list[Reached], assigned: tuple[str, ...]
) -> Captured:
    """What was recorded, as it is handed on."""
    return Captured(
        graph,
        walk.signature,
        walk.opened,
        list(walk.assumptions.values()),
        walk.constants,
        walk.calls,
        walk.marks.edges,
        assigned,
        (*walk.held, *walk.facts.values(), *walk.unseen_calls.system.answers()),
        tuple(reached),
        frozenset(r.name for r in changed),
        tuple(walk.unwatched),
        tuple(walk.unseen_calls.prints),
        tuple(walk.unseen_calls.system.lines),
    )


def _assigned(walk: Walk, state: ModelState) -> tuple[str, ...]:
    """The attributes that the forward of an opened module set, and the graph does not."""
    of_opened = (name for name in state.changes() if name.rpartition(".")[0] in walk.opened)
    return tuple(name for name in of_opened if name not in walk.attributes.set_again)


@contextlib.contextmanager
def _restored(tables: Tables) -> Iterator[None]:
    """Put back what code keeps, after `unchanged`, which has the very objects in a module's attributes again."""
    try:
        yield
    finally:
        tables.restore()


def relied_on(training: Captured, evaluating: Captured) -> dict[bool, tuple[Relied, ...]]:
    """What the graphs of training (True) and eval mode rely on besides their inputs.

    What the forward changes itself, in either mode, is none of it: whether the graph does the same is compared.
    """
    changed = training.changed | evaluating.changed
    return {
        mode: (*captured.facts, *(r for r in captured.reached if r.name not in changed))
        for mode, captured in ((True, training), (False, evaluating))
    }


def _drop_dead(graph: fx.Graph) -> None:
    """Remove look-ups that nothing uses; anything that computes may have an effect and stays."""
    for node in reversed(list(graph.nodes)):
        structural = node.op == "get_attr" or node.target in (getattr, builtins.len)
        if structural and not node.users:
            graph.erase_node(node)
