"""Where the nodes of a directed graph stand, and which ways its edges go round them."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Hashable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import networkx as nx

LANE = 0.25
"""The width of an edge that passes a layer, where a node has 1."""

Edge = tuple[str, str]


def place(graph: nx.DiGraph, inputs: Collection[str]) -> dict[str, tuple[float, int]]:
    """Give each node a column and a layer, and each edge its ``way``: its columns in the layers between its ends.

    Layers go by the longest way from the top; what has nothing above it and is no input (a parameter) stands right
    above what uses it first. Within a layer nodes, and the edges that only pass it, stand below what leads to them, at
    least their widths apart: no edge goes through a node.
    """
    layers = _layers(graph, inputs)
    # An edge over several layers is a chain: each of its links is placed as a node would be, and takes less room.
    chains: dict[Edge, list[tuple[str, str, int]]] = {
        (a, b): [(a, b, layer) for layer in range(layers[a] + 1, layers[b])] for a, b in graph.edges
    }
    above: dict[Hashable, list[Hashable]] = {name: [] for name in graph}
    for (a, b), chain in chains.items():
        ends: list[Any] = [a, *chain, b]
        for source, target in itertools.pairwise(ends):
            above.setdefault(target, []).append(source)
    rows: dict[int, list[Hashable]] = {}
    for name in graph:
        rows.setdefault(layers[name], []).append(name)
    for chain in chains.values():
        for link in chain:
            rows.setdefault(link[2], []).append(link)
    columns: dict[Hashable, float] = {}
    for layer in sorted(rows):
        columns.update(_row(rows[layer], above, columns, graph))
    for (a, b), chain in chains.items():
        graph.edges[a, b]["way"] = [(columns[link], link[2]) for link in chain]
    return {name: (columns[name], layers[name]) for name in graph}


def _layers(graph: nx.DiGraph, inputs: Collection[str]) -> dict[str, int]:
    import networkx as nx

    layers = {
        name: number for number, names in enumerate(nx.topological_generations(graph)) for name in names
    }
    for name in graph:
        if not graph.in_degree(name) and name not in inputs and graph.out_degree(name):
            layers[name] = min(layers[target] for target in graph.successors(name)) - 1
    return layers


def _row(
    members: list[Hashable],
    above: dict[Hashable, list[Hashable]],
    columns: dict[Hashable, float],
    graph: nx.DiGraph,
) -> Iterator[tuple[Hashable, float]]:
    """The columns of one layer."""
    known = [columns[source] for member in members for source in above[member]]
    middle = sum(known) / len(known) if known else 0.0

    def wanted(member: Hashable) -> float:
        sources = [columns[source] for source in above[member]]
        return sum(sources) / len(sources) if sources else middle

    ordered = sorted(members, key=wanted)
    found: list[float] = []
    for index, member in enumerate(ordered):
        apart = (_width(ordered[index - 1], graph) + _width(member, graph)) / 2 if index else 0.0
        found.append(max(wanted(member), found[-1] + apart) if index else wanted(member))
    # Nodes stay below what leads to them, on the average, and edges that pass give way.
    nodes = [i for i, member in enumerate(ordered) if member in graph] or list(range(len(ordered)))
    shift = sum(wanted(ordered[i]) - found[i] for i in nodes) / len(nodes)
    yield from zip(ordered, (column + shift for column in found), strict=True)


def _width(member: Hashable, graph: nx.DiGraph) -> float:
    return 1.0 if member in graph else LANE
