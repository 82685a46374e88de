"""Capture: the graph of a model, opened as far as its targets need."""

from __future__ import annotations

import builtins
import collections
import contextlib
import inspect
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphaug.capture.inputs.signature import Signature, map_tensors
from graphaug.capture.names import Assumption
from graphaug.capture.recording.kept.kinds import is_of_a_capture
from graphaug.capture.recording.leaves import DATA_DEPENDENT
from graphaug.capture.recording.opened.cached_properties import properties_kept
from graphaug.capture.recording.patches import LOCK
from graphaug.capture.recording.relied.classes import is_of_a_library
from graphaug.capture.recording.relied.code_names import written_in
from graphaug.capture.recording.relied.facts import Relied
from graphaug.capture.recording.relied.reached import Reached
from graphaug.capture.recording.relied.told import CACHED
from graphaug.capture.recording.session import RETURN_IT
from graphaug.capture.recording.tables import Tables
from graphaug.capture.recording.values.inside import any_inside
from graphaug.capture.recording.walk import Walk
from graphaug.capture.state import ModelState, python_draws, unchanged, undrawn
from graphaug.capture.switches import switched_back
from graphaug.capture.target import Target
from graphaug.capture.user_code import is_internal
from graphaug.errors import CaptureError, GraphaugError, an, in_a_line
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
    """Names of what it reaches that is too large to be compared in every call."""
    prints: tuple[str, ...] = ()
    """Lines of opened code that print."""


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
    with them. The model is left exactly as it was: flags, buffers, attributes and the random state.

    Raises:
        CaptureError: the forward cannot be captured; names the file and line that is in the way.
    """
    opened = frozenset(opened) | {""}
    while True:
        with properties_kept(model, opened):
            walk = Walk(
                model,
                opened,
                signature,
                marks=marks,
                open_functions=open_functions,
                count_flops=count_flops,
            )
            try:
                return _recorded(walk, model, signature, training)
            except CaptureError:
                if not walk.to_open or walk.to_open in opened:
                    raise
        opened |= set(itertools.accumulate(walk.to_open.split("."), "{}.{}".format))


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
                raise _drew(model, tables.counted(draws[1]))
            reached = walk.reached
            changed = [r for r in reached if not r.holds()]
            _refuse_changed(walk, changed)
            _refuse_filled_constants(walk, model)
            assigned = _assigned(walk, state)
        except GraphaugError as error:
            error.failed_in = walk.failed_in  # type: ignore[attr-defined]
            raise
        except Exception as error:
            raise _located(model, error, walk, signature) from error
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
        walk.edges,
        assigned,
        (*walk.held, *walk.facts.values()),
        tuple(reached),
        frozenset(r.name for r in changed),
        tuple(walk.unwatched),
        tuple(walk.unseen_calls.prints),
    )


def _refuse_changed(walk: Walk, changed: Sequence[Reached]) -> None:
    """Refuse what opened code may read and something else changes in a call: a closed module, or a hook."""
    if not changed:
        return
    written = frozenset[str]().union(*(written_in(f.__code__) for f in walk.in_reach.functions))
    for reached in changed:
        dotted = re.findall(r"\w+\.[\w.]+", reached.name)
        if written.isdisjoint(re.findall(r"[^\W\d]\w*", reached.name)) and not is_of_a_library(
            type(reached.holder).__module__, *dotted
        ):
            what, way = _what_changes(reached)
            raise walk.session.refuse(f"it may read {reached.name}, {what}", reason=way, line="")


def _what_changes(reached: Reached) -> tuple[str, str]:
    """What changes a thing in a call, as far as its kind tells, and what to do about it."""
    if isinstance(inspect.getattr_static(reached.holder, str(reached.key), None), CACHED):
        return (
            "a method whose results functools keeps for later calls",
            " A graph has no memory but buffers: make the result one (register_buffer), cache a function that no "
            "module owns, or choose a site outside that module, so that it stays closed.",
        )
    if isinstance(reached.holder, collections.defaultdict):
        return (
            "a defaultdict, which a read of a missing key fills",
            " Put the key there before, or read it by get.",
        )
    return "which is changed in its call, as by a closed module or a hook", RETURN_IT


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


def _drew(model: nn.Module, counted: str) -> CaptureError:
    return CaptureError(
        f"{type(model).__name__}.forward cannot be captured: {counted or 'it draws random numbers in Python'}, and a "
        "graph would keep those of its capture. Turn that off (layerdrop, a mask that is drawn), or choose a site "
        "outside the module that does it."
    )


def relied_on(training: Captured, evaluating: Captured) -> dict[bool, tuple[Relied, ...]]:
    """What the graphs of training (True) and eval mode rely on besides their inputs.

    What the forward changes itself, in either mode, is none of it: whether the graph does the same is compared.
    """
    changed = training.changed | evaluating.changed
    return {
        mode: (*captured.facts, *(r for r in captured.reached if r.name not in changed))
        for mode, captured in ((True, training), (False, evaluating))
    }


def _refuse_filled_constants(walk: Walk, model: nn.Module) -> None:
    """Refuse an object that opened code makes and its modules fill: a graph would go on filling it.

    Raises:
        CaptureError: there is one; names the argument that turns it off, if the forward has one.
    """
    for value in walk.constants.values():
        if isinstance(value, (Tensor, nn.Module)) or not any_inside(value, is_of_a_capture):
            continue
        otherwise = (
            " Return a tuple, a dict or a dataclass, or choose a site outside the module that does it."
        )
        raise CaptureError(
            f"{type(model).__name__}.forward cannot be captured: it makes {an(value)} in every call, "
            f"and a graph would have one for all calls.{walk.session.about_caches(value) or otherwise}"
        )


_TRANSFORMS = ("_functorch/vmap.py", "_functorch/eager_transforms.py")


def _located(model: nn.Module, error: Exception, walk: Walk, signature: Signature) -> CaptureError:
    """Turn what went wrong inside opened code into a `CaptureError` that says where and what to do."""
    trace, where, detail = error.__traceback__, "", in_a_line(error)
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if not is_internal(name):
            where = f" ({name.rpartition('/')[2]} line {trace.tb_lineno})"
        elif name.endswith(_TRANSFORMS):  # their own errors tell of torch's insides
            detail = (
                "it calls a transform of torch.func (vmap, grad), which works on wrapped tensors of its own"
            )
        trace = trace.tb_next
    if detail.startswith("TypeError: new(): "):
        detail = (
            "an old constructor of tensors takes no size of another one; write torch.empty or torch.zeros"
        )
    name = type(model).__name__
    given = f"those taken from {signature.guessed}" if signature.guessed else "example_inputs"
    text = f"{name}.forward failed on {given}{where}: {detail}"
    if not signature.guessed and _runs(model, signature):
        text = (
            f"{name}.forward cannot be captured: it runs on example_inputs, but not on tensors without data{where}: "
            f"{detail}. Keep what fails inside of a module that stays closed, and choose a site outside of that module."
        )
    if isinstance(error, DATA_DEPENDENT):  # with its numbers the model may well run
        text = (
            f"{name}.forward cannot be captured: what it calls{where} needs the numbers in its tensors, and a capture "
            f"knows those of integer inputs only ({detail}). Keep it inside of a module that stays closed, and choose "
            "a site outside of that module; of packed sequences the packing, the recurrent layer and the padding."
        )
    found = CaptureError(text)
    found.failed_in = walk.failed_in  # type: ignore[attr-defined]
    return found


def _runs(model: nn.Module, signature: Signature) -> bool:
    """Whether the forward itself runs on the examples."""
    args, kwargs = signature.arrange(map_tensors(lambda t: t.detach().clone(), dict(signature.examples)))
    try:
        with undrawn(), torch.no_grad():
            model.forward(*args, **kwargs)
    except Exception:
        return False
    return True


def _drop_dead(graph: fx.Graph) -> None:
    """Remove look-ups that nothing uses; anything that computes may have an effect and stays."""
    for node in reversed(list(graph.nodes)):
        structural = node.op == "get_attr" or node.target in (getattr, builtins.len)
        if structural and not node.users:
            graph.erase_node(node)
