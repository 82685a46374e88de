"""Graphs as plain rows: what is copied and pickled of them, without the objects that a node points to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

_KEPT_META = ("site", "augmentation", "frozen")


@dataclass(frozen=True)
class _Ref:
    """Stands for a node, by its position in the graph."""

    index: int


def pack_graph(graph: fx.Graph | None) -> list[tuple[Any, ...]] | None:
    """A graph as one row a node, which copies and pickles."""
    if graph is None:
        return None
    position = {node: i for i, node in enumerate(graph.nodes)}

    def ref(value: Any) -> Any:
        return fx.map_arg(value, lambda node: _Ref(position[node]))  # type: ignore[arg-type, return-value]

    return [
        (
            n.op,
            n.name,
            n.target,
            ref(n.args),
            ref(n.kwargs),
            {k: n.meta[k] for k in _KEPT_META if k in n.meta},
        )
        for n in graph.nodes
    ]


def unpack_graph(rows: list[tuple[Any, ...]] | None) -> fx.Graph | None:
    """The graph that `pack_graph` made rows of."""
    if rows is None:
        return None
    graph = fx.Graph()
    nodes: list[fx.Node] = []

    def deref(value: Any) -> Any:
        return fx.node.map_aggregate(value, lambda v: nodes[v.index] if isinstance(v, _Ref) else v)

    for op, name, target, args, kwargs, meta in rows:
        node = graph.create_node(op, target, deref(args), deref(kwargs), name)
        node.meta.update(meta)
        nodes.append(node)
    return graph
