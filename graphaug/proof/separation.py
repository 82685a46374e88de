"""Which part of a graph lies before a node, and whether that node separates the input from the output."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx

from graphaug.capture.capture import Captured
from graphaug.capture.dataflow import carries_gradient, reads, reads_no_data, writes
from graphaug.capture.held import tensors_of
from graphaug.capture.recording.values.structures import entries as held_by
from graphaug.capture.recording.values.structures import holds, is_container
from graphaug.capture.recording.values.used import is_entry
from graphaug.capture.target import Target
from graphaug.capture.values import UNKNOWN, value_of
from graphaug.errors import BypassedSite, SiteNotFound, an
from graphaug.select.nodes import node_name

if TYPE_CHECKING:  # imported where it is used: it takes half of the library's own import time
    import networkx as nx

SEPARATES = "separates the input from the output"
BYPASSED = "bypassed (allowed): "
FROM_NO_TENSOR = (
    "What a forward makes of strings or numbers is the same in every call of its graph: make tensors of them (a "
    "tokenizer) outside of it, and rewrite the module that takes these."
)


def data_graph(graph: fx.Graph) -> nx.DiGraph:
    """The differentiable data flow: nodes that depend on an input and carry a gradient, and the output.

    Where example values are known, their ``requires_grad`` decides; elsewhere the kind of the node does.
    """
    import networkx as nx

    flow = nx.DiGraph()
    depends: set[fx.Node] = set()
    for node, inputs in reads(graph).items():
        if node.op == "output":
            flow.add_node(node)
            flow.add_edges_from((n, node) for n in inputs if n in flow)
            continue
        value = value_of(node)
        known = value is not UNKNOWN
        from_input = node.op == "placeholder" or any(n in depends for n in inputs)
        if not from_input or (reads_no_data(node) and not known):
            continue
        if writes(node) and value is None:  # what it changed carries what it wrote
            value = [value_of(n) for n in node.all_input_nodes]
            known = not any(v is UNKNOWN for v in value)
        if known and next(tensors_of(value), None) is None:
            continue
        depends.add(node)
        # of an unknown value anything may be data, from integers too (an embedding)
        # what was made empty and then filled has a gradient by now, but not from where its size comes
        if not reads_no_data(node) and (not known or carries_gradient(value)):
            flow.add_node(node)
            flow.add_edges_from((n, node) for n in inputs if n in flow)
    return flow


@dataclass(frozen=True)
class Bypass:
    """A differentiable way around a cut: ``join`` also receives ``value``, which the cut depends on."""

    value: fx.Node
    join: fx.Node
    nearest: fx.Node | None
    """The first node behind the cut that does separate, if there is one."""
    other_entry: bool = False
    """What passes is another entry of what lies at the cut itself."""


def find_bypass(flow: nx.DiGraph, cut: fx.Node) -> Bypass | None:
    """Return a way from the input to the output around ``cut``, or None if ``cut`` separates them.

    What lies beside the cut and never feeds it (another tower, a mask) is no bypass.
    """
    import networkx as nx

    found = _way_around(flow, cut)
    if found is None:
        return None
    output = next(n for n in flow if n.op == "output")
    nearest = None
    if cut in flow and nx.has_path(flow, cut, output):
        dominators = nx.immediate_dominators(flow.reverse(copy=False), output)
        step = dominators[cut]
        while step is not None and step.op != "output":
            if "site" in step.meta and _way_around(flow, step) is None:
                nearest = step
                break
            step = dominators[step]
    return Bypass(*found, nearest, other_entry=found[0] is cut)


def in_front(flow: nx.DiGraph, bypass: Bypass) -> fx.Node | None:
    """The last node that separates in front of a cut, at or before the value that passes around it."""
    import networkx as nx

    ahead = {bypass.value, *nx.ancestors(flow, bypass.value)}
    candidates = (n for n in reversed(list(flow)) if n in ahead and "site" in n.meta)
    return next((n for n in candidates if _way_around(flow, n) is None), None)


def _way_around(flow: nx.DiGraph, cut: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    import networkx as nx

    if cut not in flow:
        return None
    ahead = nx.ancestors(flow, cut)
    behind = nx.descendants(flow, cut)
    leak = _second_output(flow, cut)
    if leak is not None:
        return cut, leak
    stack: list[tuple[fx.Node, fx.Node]] = [(n, n) for n in reversed([n for n in flow if n in ahead])]
    seen = set(ahead)
    reaches = nx.ancestors(flow, next(n for n in flow if n.op == "output"))
    while stack:
        value, node = stack.pop()
        for user in flow.successors(node):
            if user is cut:
                continue
            if user in behind or user.op == "output":
                if user.op == "output" or user in reaches:
                    return value, user
            elif user not in seen:
                seen.add(user)
                stack.append((value, user))
    return None


def _second_output(flow: nx.DiGraph, cut: fx.Node) -> fx.Node | None:
    """The user of another entry than the first of what lies at the cut: it is not augmented.

    Who takes the whole takes the other entries with it, wherever they carry a gradient.
    """
    value = value_of(cut)
    if isinstance(value, Tensor):
        return None
    user: fx.Node
    if value is UNKNOWN:
        entries = [user for user in flow.successors(cut) if is_entry(user, cut)]
        others = (
            [user for user in entries if user.args[1] != 0]
            if 0 in [u.args[1] for u in entries]
            else entries[1:]
        )
        return others[0] if others else None
    for user in flow.successors(cut):
        if _past_the_first(_taken(user, value)):
            return user
    return None


def _taken(user: fx.Node, value: Any) -> list[tuple[bool, Any]]:
    """The entries of a value that a user of it takes: (whether it is the first, the entry)."""
    held = held_by(value)
    keys = [key for (_, key), _ in held]
    entries = [(place == 0, entry) for place, (_, entry) in enumerate(held)]
    if user.target is getattr and user.args[1] in keys:
        return [entries[keys.index(user.args[1])]]
    if user.target is not operator.getitem:
        return entries
    index = user.args[1]
    if isinstance(index, slice):
        bounds = (index.start, index.stop, index.step)
        return entries if any(isinstance(bound, fx.Node) for bound in bounds) else list(entries[index])
    if isinstance(index, int) and isinstance(value, (tuple, list)):
        return entries[index:][:1]
    chosen: Any = index
    return [entries[keys.index(chosen)]] if chosen in keys else entries


def _past_the_first(entries: list[tuple[bool, Any]]) -> bool:
    """Whether more than what the augmentation acts on, the first entry of the first, carries a gradient."""
    for first, entry in entries:
        if not first:
            if carries_gradient(entry):
                return True
        elif is_container(entry):
            inner = [(place == 0, part) for place, (_, part) in enumerate(held_by(entry))]
            if _past_the_first(inner):
                return True
    return False


def around(bypass: Bypass, captured: Captured) -> str:
    """A bypass in words."""
    join, value = node_name(bypass.join, captured), f"'{node_name(bypass.value, captured)}'"
    quoted = join if join == "the output" else f"'{join}'"
    if bypass.value.op == "placeholder" and len(captured.graph.find_nodes(op="placeholder")) > 1:
        value = f"the input '{bypass.value.target}'"  # of several, which one
    return f"{quoted} also receives {'another entry of ' if bypass.other_entry else ''}{value}"


def check_sites(
    captured: Captured, graph: fx.Graph, placed: Mapping[Target, fx.Node], allow_bypass: bool
) -> dict[Target, str]:
    """What there is to say of every site.

    Raises:
        BypassedSite: one does not separate the input from the output, and that is not allowed.
        SiteNotFound: its value can be no batch of activations, or is complex.
    """
    flow = data_graph(graph)
    notes = {}
    for target, cut in placed.items():
        value = value_of(cut)
        if value is not UNKNOWN and cut not in flow:
            raise SiteNotFound(f"'{target}' {_no_activations(value, graph)}")
        if isinstance(value, Tensor) and value.is_complex():
            raise SiteNotFound(
                f"'{target}' holds complex numbers, for which no augmentation is defined: choose a site with real ones."
            )
        if isinstance(value, Tensor) and value.dim() < 2 and (not value.dim() or _has_features(graph)):
            raise SiteNotFound(
                f"'{target}' holds a tensor of shape {tuple(value.shape)}, and an augmentation needs features beside "
                "the samples: choose a site with activations."
            )
        bypass = find_bypass(flow, cut)
        if bypass is None:
            notes[target] = SEPARATES
            continue
        how = around(bypass, captured)
        if not allow_bypass:
            raise BypassedSite(
                f"'{target}' does not separate input from output: {how}. {_instead(target, bypass, flow, captured)}"
            )
        notes[target] = f"{BYPASSED}{how}"
    return notes


def _has_features(graph: fx.Graph) -> bool:
    """Whether an input has features beside its samples; else the example may be one sample, without a batch."""
    inputs = (value_of(node) for node in graph.nodes if node.op == "placeholder")
    return any(tensor.dim() > 1 for value in inputs for tensor in tensors_of(value))


def _no_activations(value: Any, graph: fx.Graph) -> str:
    inputs = [value_of(node) for node in graph.nodes if node.op == "placeholder"]
    if not any(v is UNKNOWN or holds(v, lambda inner: isinstance(inner, Tensor)) for v in inputs):
        return f"does not depend on any tensor that the model is called with. {FROM_NO_TENSOR}"
    if carries_gradient(value):
        return "is not computed from the inputs, as far as the graph shows: choose a site with activations."
    return f"holds {_kind(value)}, which carries no gradient: choose a site with activations."


def _instead(target: Target, bypass: Bypass, flow: nx.DiGraph, captured: Captured) -> str:
    """What to do about a bypass."""
    alone = _encoder_alone(target, bypass, captured)
    use = bypass.nearest or (None if alone else in_front(flow, bypass))
    if use is not None:
        return f"Use '{node_name(use, captured)}', or pass allow_bypass=True."
    listed = " The column 'separates' of graphaug.sites(model) tells which sites would do."
    return f"Pass allow_bypass=True.{alone or listed}"


def _encoder_alone(target: Target, bypass: Bypass, captured: Captured) -> str:
    """The way out where the input itself is read again behind the cut, by a loss that reconstructs it say.

    No site separates such a model; the part of it that the site lies in may well be separated.
    """
    part, _, rest = target.path.partition(".")
    join = node_name(bypass.join, captured)
    if (
        bypass.nearest is not None
        or bypass.value.op != "placeholder"
        or not rest
        or join.startswith(f"{part}.")
    ):
        return ""
    return (
        f" The input is read again behind every site, as by a loss that reconstructs it: cut the part alone, "
        f"model.{part} = graphaug.rewrite(model.{part}, {rest!r}, …)."
    )


def _kind(value: Any) -> str:
    return f"{value.dtype} values" if hasattr(value, "dtype") else an(value)
