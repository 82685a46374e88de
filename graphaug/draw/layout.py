"""What is drawn of a rewritten model: which nodes, in which part, with which label, at which place."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import fx

from graphaug.augment.deep_augment import DeepAugment
from graphaug.augment.site import Augmentation
from graphaug.augment.transformed import Transformed
from graphaug.draw.places import place
from graphaug.draw.plumbing import entries, metadata, slice_of, without
from graphaug.errors import NotRewritten
from graphaug.proof.separation import SEPARATES, data_graph
from graphaug.terminal.printable import printable

if TYPE_CHECKING:
    import networkx as nx

COLOURS = {"prefix": "#cfe2f3", "cut": "#f6b26b", "suffix": "#d9ead3", "beside": "#eeeeee"}
"""The parts of a model, and their colours."""

_SEAM = re.compile(r"(?<=[._ ])|(?<=[a-z])(?=[A-Z])")


@dataclass(frozen=True)
class DrawnNode:
    """A node as it is drawn: its ``label``, its ``part`` (a key of ``COLOURS``), and its place (column, layer)."""

    label: str
    part: str
    place: tuple[float, int]


def layout(aug: fx.GraphModule) -> tuple[dict[str, DrawnNode], nx.DiGraph, set[tuple[str, str]]]:
    """Say what is drawn: the nodes by name, the graph of names, and the edges of it that bypass a cut.

    An edge of the graph has its ``way``, see `graphaug.draw.places.place`.

    Raises:
        NotRewritten: ``aug`` is no graph module.

    """
    import networkx as nx

    if not isinstance(aug, fx.GraphModule):
        raise NotRewritten(
            f"only a rewritten model can be drawn, not {type(aug).__name__}: use graphaug.rewrite first."
        )
    graph = nx.DiGraph()
    for node in aug.graph.nodes:
        graph.add_node(node.name)
        graph.add_edges_from((source.name, node.name) for source in node.all_input_nodes)
    inputs = {node.name for node in aug.graph.nodes if node.op == "placeholder"}
    plumbing = metadata(aug.graph), entries(aug.graph)
    graph = without(graph, *plumbing)
    # What the output does not depend on, and constants, would only be in the way.
    output = next(node.name for node in aug.graph.nodes if node.op == "output")
    used = nx.ancestors(graph, output) | {output}
    graph = graph.subgraph(used).copy()
    cuts = {node.name for node in aug.graph.nodes if node.name in used and _is_cut(aug, node)}
    before = set().union(*(nx.ancestors(graph, cut) for cut in cuts)) - cuts if cuts else set()
    behind = set().union(*(nx.descendants(graph, cut) for cut in cuts)) - cuts if cuts else set()
    flow = nx.relabel_nodes(data_graph(aug.graph), lambda node: node.name)
    flow = without(flow, *plumbing).subgraph(used)
    open_cuts = cuts - _separating(aug)
    bypass = set().union(*(_bypass_edges(flow, cut, inputs & used, output) for cut in open_cuts))
    parts = {
        name: "cut"
        if name in cuts
        else "suffix"
        if name in behind
        else "prefix"
        if name in before
        else "beside"
        for name in graph
    }
    places = place(graph, inputs)
    nodes = {
        node.name: DrawnNode(_label(aug, node), parts[node.name], places[node.name])
        for node in aug.graph.nodes
        if node.name in used
    }
    return nodes, graph, bypass


def _is_cut(aug: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(aug.get_submodule(str(node.target)), Augmentation)


def _separating(aug: fx.GraphModule) -> set[str]:
    """The cuts that were found to separate the input from the output when the model was rewritten."""
    sites = getattr(getattr(aug, "plan", None), "sites", ())
    modules = {site.module for site in sites if site.note.startswith(SEPARATES)}
    return {node.name for node in aug.graph.nodes if node.op == "call_module" and node.target in modules}


def _bypass_edges(graph: nx.DiGraph, cut: str, inputs: set[str], output: str) -> set[tuple[str, str]]:
    """The edges of ways from an input to the output that miss ``cut``, between what is before it and behind it."""
    import networkx as nx

    open_ways = graph.subgraph(set(graph) - {cut})
    reached = inputs.union(*(nx.descendants(open_ways, name) for name in inputs if name in open_ways))
    on_the_way = reached & (nx.ancestors(open_ways, output) | {output})
    before, behind = (f(graph, cut) if cut in graph else set() for f in (nx.ancestors, nx.descendants))
    edges = open_ways.subgraph(on_the_way - {cut}).edges
    return {(a, b) for a, b in edges if b not in before and a not in behind}


def _label(aug: fx.GraphModule, node: fx.Node) -> str:
    if node.op == "call_module":
        module = aug.get_submodule(str(node.target))
        name = type(module).__name__
        if isinstance(module, Augmentation):
            stop = "\ngradient stopped" if module.stop_grad else ""
            rate = f"rate {float(module.rate):g}, " if isinstance(module, DeepAugment) else ""
            name = type(module.transform).__name__ if isinstance(module, Transformed) else name
            return f"{name}\n{rate}subset {float(module.subset):g}{stop}"
        return f"{_shorten(str(node.target))}\n{name}"
    if node.op in ("call_function", "call_method"):
        target = (
            node.target
            if isinstance(node.target, str)
            else getattr(node.target, "__name__", str(node.target))
        )
        return slice_of(node) or _shorten(f"{target}()")
    return _shorten(str(node.target))


def _shorten(text: str, width: int = 30) -> str:
    """At most three lines of ``width`` characters, broken behind dots, underscores and words where there are some."""
    lines = [""]
    for piece in _SEAM.split(printable(text)):
        while len(lines[-1]) + len(piece) > width:
            room = 0 if lines[-1] else width
            lines[-1] += piece[:room]
            piece = piece[room:]
            lines.append("")
        lines[-1] += piece
    lines = [line.strip() for line in lines if line.strip()]
    return "\n".join(lines if len(lines) <= 3 else [*lines[:2], f"{lines[2][: width - 2]} …"])
