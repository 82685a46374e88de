"""What a picture leaves out: look-ups and the arithmetic of shapes, which say nothing of what is computed."""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any

from torch import fx

from graphaug.capture.dataflow import reads_metadata
from graphaug.capture.names import CONSTANTS

if TYPE_CHECKING:
    import networkx as nx

_ARITHMETIC = {operator.getitem.__module__, math.__name__, "builtins"}


def metadata(graph: fx.Graph) -> set[str]:
    """Names of the nodes that hold sizes, types and devices, or numbers reckoned from them; and of constants."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        inputs = node.all_input_nodes
        reckoned = node.op == "call_function" and getattr(node.target, "__module__", "") in _ARITHMETIC
        if (
            reads_metadata(node)
            or (node.op == "get_attr" and str(node.target).startswith(f"{CONSTANTS}."))
            or (reckoned and inputs and all(n in found for n in inputs))
        ):
            found.add(node)
    return {node.name for node in found}


def entries(graph: fx.Graph) -> set[str]:
    """Names of the nodes that take an entry of what a layer returns: they belong to the layer's own box."""
    return {node.name for node in graph.nodes if node.op == "call_function" and _takes_an_entry(node)}


def _takes_an_entry(node: fx.Node) -> bool:
    if node.target is getattr:
        return True
    return node.target is operator.getitem and isinstance(node.args[1], (int, str))


def without(graph: nx.DiGraph, dropped: set[str], passed: set[str]) -> nx.DiGraph:
    """A copy without the nodes ``dropped``, in which those ``passed`` are links from what is above to what is below."""
    left = graph.copy()
    left.remove_nodes_from(dropped & set(left))
    for name in [name for name in left if name in passed]:
        left.add_edges_from((a, b) for a in left.predecessors(name) for b in left.successors(name))
        left.remove_node(name)
    return left


def slice_of(node: fx.Node) -> str | None:
    """``[:, 0]`` for a node that indexes; what it reckons or looks up first is ``…``. None for any other."""
    if node.op != "call_function" or node.target is not operator.getitem:
        return None
    index = node.args[1]
    return f"[{', '.join(map(_spelled, index if isinstance(index, tuple) else (index,)))}]"


def _spelled(part: Any) -> str:
    if isinstance(part, slice):
        bounds = ["" if bound is None else _spelled(bound) for bound in (part.start, part.stop)]
        return ":".join(bounds if part.step is None else [*bounds, _spelled(part.step)])
    return str(part) if part is None or isinstance(part, int) else "…"
