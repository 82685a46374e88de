"""The sparse-backward pass: split a graph at the cut, so that stopped rows can run without a backward.

Three graphs come out of one. ``shared`` computes, once and for all rows, what carries no gradient
(attention masks, position ids); ``prefix`` runs twice, on the stopped rows without grad and on the
others with grad; ``suffix`` takes the augmented rows, back in their places, to the output.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from torch import Tensor, fx

from graphaug.augment.rows import BATCH, Rows
from graphaug.capture.dataflow import (
    before,
    carries_gradient,
    memory,
    needed,
    writes,
    written,
    written_memory,
)
from graphaug.capture.recording.checks import ASSERTIONS
from graphaug.capture.recording.values.structures import holds
from graphaug.capture.values import UNKNOWN, assume, describe, value_of
from graphaug.errors import SparseBackwardError
from graphaug.sparse.batch import Batch, check_single, single
from graphaug.sparse.entries import Entry, apart, counted_by, entry_of, in_inputs
from graphaug.sparse.run import Split
from graphaug.sparse.tuples import tuples_apart, users
from graphaug.sparse.within import read_around, regions_of
from graphaug.surgery.called.views import repeated
from graphaug.torch_private import enter_autocast

SHARED_FLOPS = 0.1  # of the prefix: more than that is not computed a third time for a mask


def split(graph: fx.Graph, cut: fx.Node, batch: Batch, place: Rows = BATCH) -> Split:
    """Split a training graph at the augmentation node ``cut``, where rows lie at ``place``.

    Raises:
        SparseBackwardError: it cannot be split; the message is the reason, as a clause.
    """
    graph, cut, batch = tuples_apart(*apart(graph, cut, batch))
    value, views = _once(cut.args[0])
    check_single(value)

    ahead = _with_sizes(graph, before(value))
    trained = {n for n in ahead if entry_of(n) is None and _differentiable(n)}
    # what is written in place is made where it is used, with what was written into it by then
    owner, in_place = memory(graph), written_memory(graph)
    behind = _behind(graph, cut, ahead, trained)
    inputs, given = [n for n in graph.nodes if n.op == "placeholder"], in_inputs(graph)
    shared = [
        n
        for n in graph.nodes
        if n in ahead
        and n.op != "get_attr"
        and entry_of(n) is None
        and n not in trained
        and owner[n] not in in_place
        and isinstance(value_of(n), Tensor)
        and any(user in trained or user in behind for user in users(n))
    ]
    _check_shared_cost(shared, ahead)
    crossing = list(
        dict.fromkeys([*_crossing(behind, ahead, trained, set(shared), value), *read_around(cut)])
    )
    outputs = [value, *crossing]
    in_prefix = needed(outputs, stop={*given, *shared})
    _check_modules(in_prefix, before(value) | {value})
    used = [n for n in given if n in in_prefix]
    _check_writes(in_prefix, owner)
    in_suffix = needed(behind, stop={*inputs, *shared, cut, *crossing})
    _check_effects(graph, {cut, *in_prefix, *in_suffix, *needed(shared, stop=set(inputs))})
    prefix_graph = _extract(graph, outputs, [*used, *shared])
    shared_graph = _extract(graph, shared, inputs) if shared else None
    rows = [batch.rows_of(n) if isinstance(value_of(n), Tensor) else None for n in [*used, *shared]]
    suffix_graph = _suffix(graph, cut, behind, [*inputs, *shared, cut, *crossing])
    # any input tells how many rows there are, also one that reaches the prefix through shared values only
    counted, dimension = next(counted_by(given, batch), (None, None))
    if counted is None or dimension is None:
        raise SparseBackwardError("no tensor of the inputs has a dimension that counts the rows")
    return Split(
        shared=shared_graph,
        prefix=prefix_graph,
        suffix=suffix_graph,
        inputs=tuple(map(_entry, used)),
        rows=tuple(rows),
        single=tuple(map(single, [*used, *shared], rows)),
        crossing=tuple(batch.merge_of(n) for n in crossing),
        augmentation=str(cut.target),
        batch=(_entry(counted), dimension),
        place=place,
        views=views,
        regions=regions_of(cut, crossing),
    )


def _entry(node: fx.Node) -> Entry:
    found = entry_of(node)
    assert found is not None
    return found


def _once(value: Any) -> tuple[fx.Node, int]:
    """The value at the cut before its rows become views, and how many of them."""
    if value.target is repeated:
        value, *_, times = value.args
        return value, times
    return value, 1


def _with_sizes(graph: fx.Graph, ahead: set[fx.Node]) -> set[fx.Node]:
    """The prefix, and what is made of it alone and carries no gradient: sizes and types, and tables made by them."""
    found, tables = set(ahead), set()
    given = {n for n in graph.nodes if n.op == "get_attr" or entry_of(n) is not None}
    for node in graph.nodes:
        acts = node.target is assume or node.target in ASSERTIONS or writes(node)
        if not node.op.startswith("call_") or node in found or acts:
            continue
        inputs, value = node.all_input_nodes, value_of(node)
        if not inputs or value is UNKNOWN or not all(n in found or n in given for n in inputs):
            continue
        if carries_gradient(value):
            continue
        if any(n in tables or (n not in given and carries_gradient(value_of(n))) for n in inputs):
            tables.add(node)
            found.add(node)
        elif _is_plain(value) and node.op != "call_module":
            found.add(node)
    return found


def _is_plain(value: Any) -> bool:
    return value is not UNKNOWN and not holds(value, _is_tensor)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _behind(graph: fx.Graph, cut: fx.Node, ahead: set[fx.Node], trained: set[fx.Node]) -> set[fx.Node]:
    """What the suffix computes: all that the output needs, and the checks of the assumptions."""
    roots = [n for n in graph.nodes if n.op == "output" or n.target is assume]
    sizes = {n for n in ahead if _is_plain(value_of(n))}
    for node in graph.nodes:
        if not node.users and _acts(node) and node not in ahead:
            if needed([node], stop={cut, *sizes}) & trained:
                raise _takes_parts(node)
            roots.append(node)
    wanted = needed(roots, stop={cut}) - {cut}
    # a region that the cut lies in begins on both sides
    behind = {n for n in wanted if (n not in ahead or n.target is enter_autocast) and n.op != "placeholder"}
    for node in itertools.takewhile(lambda n: n is not cut, graph.nodes):
        # of a module that is called for what it changes, the suffix would be too late
        if node in behind and node.op == "call_module" and not holds(value_of(node), _is_tensor):
            raise _takes_parts(node)
    return behind


def _check_modules(in_prefix: set[fx.Node], proved: set[fx.Node]) -> None:
    """Refuse modules beside the way to the cut: of their rows, and of what they keep, nothing is proved."""
    for node in in_prefix - proved:
        if node.op == "call_module":
            raise _takes_parts(node)


def _takes_parts(node: fx.Node) -> SparseBackwardError:
    return SparseBackwardError(
        f"{describe(node)} takes what trained layers before the cut compute, or changes them, and they run in two parts"
    )


def _check_effects(graph: fx.Graph, parts: set[fx.Node]) -> None:
    """Refuse to leave out what is called, or written, for what it changes: nothing may use its result."""
    for node in graph.nodes:
        if _acts(node) and node not in parts:
            raise SparseBackwardError(
                f"no part of a split step needs {describe(node)}, which may change something"
            )


def _acts(node: fx.Node) -> bool:
    return node.op == "call_module" or node.target in ASSERTIONS or writes(node)


def _check_writes(in_prefix: set[fx.Node], owner: dict[fx.Node, fx.Node]) -> None:
    """Refuse writes into what the caller or the model owns: the two runs of the prefix would make them twice."""
    for node in in_prefix:
        for held in (owner[n] for n in written(node)):
            if held.op in ("get_attr", "placeholder"):
                raise SparseBackwardError(f"opened code changes {describe(held)} in place")


def _differentiable(node: fx.Node) -> bool:
    value = value_of(node)
    if value is UNKNOWN:
        raise SparseBackwardError(f"the value of {describe(node)} is not known from the example")
    return carries_gradient(value)


def _check_shared_cost(shared: Iterable[fx.Node], ahead: set[fx.Node]) -> None:
    """What a mask is computed from may hold trained modules (an embedding): not the expensive ones."""
    again: set[fx.Node] = set().union(*(before(n) for n in shared), set())
    total = sum(n.meta.get("flops", 0) for n in ahead)
    cost = sum(n.meta.get("flops", 0) for n in again)
    if total and cost > SHARED_FLOPS * total:
        raise SparseBackwardError(
            f"what the suffix needs without gradient would cost {cost / total:.0%} of the prefix once more"
        )


def _crossing(
    behind: set[fx.Node], ahead: set[fx.Node], trained: set[fx.Node], shared: set[fx.Node], value: fx.Node
) -> list[fx.Node]:
    """Plain values (sizes) that the suffix reads off the prefix and cannot compute from the inputs itself."""
    known: dict[fx.Node, bool] = {}

    def computable(node: fx.Node) -> bool:
        if node not in known:
            if node.op == "get_attr" or entry_of(node) is not None or node in shared:
                known[node] = True
            elif node in trained and not _is_local(node):
                known[node] = False
            else:
                known[node] = all(map(computable, node.all_input_nodes))
        return known[node]

    found: dict[fx.Node, None] = {}

    def demand(node: fx.Node, parent: fx.Node) -> None:
        if parent not in ahead or parent in found or computable(parent):
            return
        if not _is_plain(value_of(parent)):
            raise SparseBackwardError(f"'{describe(node)}' behind the cut uses {describe(parent)} before it")
        if any(not _is_plain(value_of(n)) for n in parent.all_input_nodes):
            found[parent] = None
        else:  # what is made of sizes is made of those of all rows
            for size in parent.all_input_nodes:
                demand(parent, size)

    for node in behind:
        for parent in node.all_input_nodes:
            demand(node, parent)
    return [n for n in value.graph.nodes if n in found]


def _is_local(node: fx.Node) -> bool:
    """A trained value made of parameters and sizes only, such as a table of positions: either side can make it."""
    if node.op == "get_attr":
        return True
    if node.op == "call_module" or entry_of(node) is not None:
        return False
    return all(
        parent.op == "get_attr" or not isinstance(value_of(parent), Tensor) or _is_local(parent)
        for parent in node.all_input_nodes
    )


def _extract(graph: fx.Graph, outputs: list[fx.Node], inputs: list[fx.Node]) -> fx.Graph:
    """The part of ``graph`` that computes ``outputs`` from the nodes in ``inputs``."""
    part, mapping = _part(graph, needed(outputs, stop=set(inputs)), inputs)
    part.output(tuple(mapping[n] for n in outputs))
    return part


def _suffix(graph: fx.Graph, cut: fx.Node, behind: set[fx.Node], inputs: list[fx.Node]) -> fx.Graph:
    """Everything behind the cut; what it can compute from the inputs it computes itself."""
    return _part(graph, needed(behind, stop=set(inputs)), inputs)[0]


def _part(
    graph: fx.Graph, nodes: set[fx.Node], inputs: list[fx.Node]
) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    part = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    for node in inputs:
        name = str(node.target) if node.op == "placeholder" else f"{node.name}_value"
        mapping[node] = part.placeholder(name)
        mapping[node].meta.update(node.meta)
    for node in graph.nodes:
        if node in nodes and node not in mapping:
            mapping[node] = part.node_copy(node, lambda n: mapping[n])
    return part, mapping
