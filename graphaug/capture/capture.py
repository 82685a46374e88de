"""Capture: the graph of a model, opened as far as its targets need (design section 4)."""

from __future__ import annotations

import builtins
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphaug.capture.names import Assumption
from graphaug.capture.recording.facts import Fact, is_plain
from graphaug.capture.recording.patches import LOCK
from graphaug.capture.recording.tables import Tables
from graphaug.capture.recording.walk import Walk
from graphaug.capture.signature import Signature
from graphaug.capture.state import ModelState, python_draws, unchanged, undrawn_in_python
from graphaug.capture.target import Target
from graphaug.capture.tracer import CaptureTracer
from graphaug.capture.user_code import is_internal
from graphaug.errors import CaptureError, GraphaugError
from graphaug.torch_private import FakeTensor


@dataclass
class Captured:
    """A model's graph, opened as far as its targets need.

    Nodes carry ``meta["site"]`` (a `Target`, on whatever can be targeted), ``meta["value"]`` (the
    example value, if known) and ``meta["flops"]`` (if counted).
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
    facts: tuple[Fact, ...] = ()
    """Numbers and switches of opened modules that the graph relies on."""


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

    The model is left exactly as it was: flags, buffers, attributes and the random state.

    Raises:
        CaptureError: the forward cannot be captured; names the file and line that is in the way.
    """
    options: dict[str, Any] = {"marks": marks, "open_functions": open_functions, "count_flops": count_flops}
    tracer: CaptureTracer | Walk
    if signature.has_examples:
        tracer = Walk(model, frozenset(opened) | {""}, signature, **options)
    else:
        tracer = CaptureTracer(frozenset(opened) | {""}, signature, **options)
    tables = Tables(model)
    with LOCK, unchanged(model) as state, torch.enable_grad(), undrawn_in_python():
        try:
            model.train(training)
            draws = python_draws(), tables.states()
            if isinstance(tracer, Walk):
                tracer.recorder.leaves.tables = tables
                graph = tracer.record(state)
            else:
                graph = _traced(tracer, model, state)
            if draws != (python_draws(), tables.states()):
                raise CaptureError(
                    f"{type(model).__name__}.forward cannot be captured: it draws random numbers in Python, and a "
                    "graph would keep those of its capture. Turn that off (layerdrop, a mask that is drawn), or "
                    "choose a site outside the module that does it."
                )
            _refuse_filled_constants(tracer, model)
            assigned = tuple(name for name in state.changes() if name.rpartition(".")[0] in tracer.opened)
        except GraphaugError as error:
            error.failed_in = tracer.failed_in  # type: ignore[attr-defined]
            raise
        except Exception as error:
            raise _located(model, error, tracer, signature) from error
        finally:
            tables.set_states(draws[1])
            tables.restore()
    _drop_dead(graph)
    return Captured(
        graph,
        signature,
        tracer.opened,
        list(tracer.assumptions.values()),
        tracer.constants,
        tracer.calls,
        tracer.edges,
        assigned,
        tuple(tracer.facts.values()) if isinstance(tracer, Walk) else (),
    )


def _traced(tracer: CaptureTracer, model: nn.Module, state: ModelState) -> fx.Graph:
    """Trace without examples.

    Raises:
        CaptureError: the forward sets attributes, or seeds torch's generator.
    """
    name, drawn = type(model).__name__, torch.get_rng_state()
    graph = tracer.trace(model)
    if not torch.equal(drawn, torch.get_rng_state()):
        raise CaptureError(
            f"{name}.forward cannot be captured: it seeds torch's generator, or draws numbers as it is traced."
        )
    kept = []
    for n, before in list(state.replaced()):
        path, _, attribute = n.rpartition(".")
        if path not in tracer.opened or _same(model, n, before):
            continue
        module = model.get_submodule(path)
        value = vars(module).get(attribute, module._buffers.get(attribute))
        if attribute in module._buffers and issubclass(type(value), fx.Proxy):
            tracer.write_attribute(module, attribute, value)
        else:
            kept.append(n)
    if kept:
        raise CaptureError(
            f"{name}.forward needs example_inputs: it sets {', '.join(map(repr, kept))}, in every call."
        )
    return graph


def _same(model: nn.Module, name: str, before: Any) -> bool:
    path, _, attribute = name.rpartition(".")
    value = vars(model.get_submodule(path)).get(attribute)
    return is_plain(value) and is_plain(before) and value == before


def _refuse_filled_constants(tracer: CaptureTracer | Walk, model: nn.Module) -> None:
    """Refuse an object that opened code makes and its modules fill: a graph would go on filling it.

    Raises:
        CaptureError: there is one; names the argument that turns it off, if the forward has one.
    """
    for value in tracer.constants.values():
        if isinstance(value, (Tensor, nn.Module)) or not _holds_fake(value):
            continue
        switches = [name for name in tracer.signature.defaults if name.startswith("use_") and "cache" in name]
        if switches:
            fix = f"Pass {switches[0]}=False in example_inputs."
        elif hasattr(getattr(model, "config", None), "use_cache"):
            fix = "Set model.config.use_cache = False."
        else:
            fix = "Turn that off, or choose a site outside the module that does it."
        raise CaptureError(
            f"{type(model).__name__}.forward cannot be captured: it makes a {type(value).__name__} in every call, "
            f"which its modules fill, and a graph has one for all calls. {fix}"
        )


def _holds_fake(value: Any, depth: int = 4) -> bool:
    if isinstance(value, FakeTensor):
        return True
    if depth == 0 or isinstance(value, (type, types.ModuleType, types.FunctionType, nn.Module)):
        return False
    if isinstance(value, Mapping):
        inner: Any = value.values()
    elif isinstance(value, (list, tuple, set)):
        inner = value
    else:
        inner = list(getattr(value, "__dict__", {}).values())
    return any(_holds_fake(v, depth - 1) for v in inner)


def _located(
    model: nn.Module, error: Exception, tracer: CaptureTracer | Walk, signature: Signature
) -> CaptureError:
    """Turn what went wrong inside opened code into a `CaptureError` that says where and what to do."""
    trace, where = error.__traceback__, ""
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if not is_internal(name):
            where = f" ({name.rpartition('/')[2]} line {trace.tb_lineno})"
        trace = trace.tb_next
    name = type(model).__name__
    said = str(error).strip().splitlines()
    detail = f"{type(error).__name__}: {said[0] if said else ''}".rstrip(": ")
    if signature.has_examples:
        text = f"{name}.forward failed on example_inputs{where}: {detail}"
    else:
        text = f"{name}.forward needs example_inputs: without them it fails{where} with {detail}"
    found = CaptureError(text)
    found.failed_in = tracer.failed_in  # type: ignore[attr-defined]
    return found


def _drop_dead(graph: fx.Graph) -> None:
    """Remove look-ups that nothing uses; anything that computes may have an effect and stays."""
    for node in reversed(list(graph.nodes)):
        structural = node.op == "get_attr" or node.target in (getattr, builtins.len)
        if structural and not node.users:
            graph.erase_node(node)
