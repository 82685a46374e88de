"""A picture of a rewritten model: the shallow graph from input to output, with the cut in colour.

networkx and matplotlib alone, so that no system package is needed; both are imported when a graph is drawn.
"""

from __future__ import annotations

import os
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import fx

from graphaug.augment.deep_augment import DeepAugment
from graphaug.augment.site import Augmentation
from graphaug.augment.transformed import Transformed
from graphaug.errors import InvalidOption, NotRewritten
from graphaug.terminal.printable import printable

if TYPE_CHECKING:
    import networkx as nx

COLOURS = {"prefix": "#cfe2f3", "cut": "#f6b26b", "suffix": "#d9ead3", "beside": "#eeeeee"}
BYPASS_COLOUR = "#cc0000"
FORMATS = (".svg", ".png", ".pdf")


@dataclass(frozen=True)
class DrawnNode:
    """A node as it is drawn: its ``label``, its ``part`` (a key of ``COLOURS``), and its place (column, layer)."""

    label: str
    part: str
    place: tuple[float, int]


def draw_graph(aug: fx.GraphModule, path: str | os.PathLike[str]) -> Path:
    """Draw a rewritten model, input at the top.

    What runs before the first cut is the prefix, what runs behind any cut is the suffix; an edge past a cut on a
    way from input to output is a bypass, and red.

    Args:
        aug: what ``graphaug.rewrite`` returned.
        path: where to; the ending says the format, ``.svg``, ``.png`` or ``.pdf``.

    Returns:
        The path.

    Raises:
        NotRewritten: ``aug`` is no graph module.
        InvalidOption: another ending, or a place that cannot be written to.

    """
    path = check_format(path)
    nodes, graph, bypass = layout(aug)
    from matplotlib.figure import Figure

    columns = [node.place[0] for node in nodes.values()]
    layers = max(node.place[1] for node in nodes.values()) + 1
    width = max(columns) - min(columns) + 1
    figure = Figure(figsize=(max(4.0, 2.6 * width + 1.2), 0.8 * layers + 1.0), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_xlim(min(columns) - 0.75, max(columns) + 0.75)
    axes.set_ylim(-layers + 0.4, 0.9)
    for source, target in graph.edges:
        _draw_edge(axes, nodes[source], nodes[target], (source, target) in bypass)
    for node in nodes.values():
        column, layer = node.place
        box = {"boxstyle": "round,pad=0.35", "facecolor": COLOURS[node.part], "edgecolor": "0.35"}
        text = axes.text(column, -layer, node.label, ha="center", va="center", fontsize=9, bbox=box, zorder=3)
        text.set_parse_math(False)  # a dollar in a name begins no formula
    _draw_legend(axes, {node.part for node in nodes.values()}, bool(bypass))
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise InvalidOption(f"{str(path)!r} cannot be written: {error.strerror or error}.") from error
    return path


def check_format(path: str | os.PathLike[str]) -> Path:
    """The path, if its ending is a format; raises ``InvalidOption`` otherwise."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise InvalidOption(f"a drawing ends in {', '.join(FORMATS)}; {str(path)!r} does not.")
    return path


def layout(aug: fx.GraphModule) -> tuple[dict[str, DrawnNode], nx.DiGraph, set[tuple[str, str]]]:
    """Say what is drawn: the nodes by name, the graph of names, and the edges of it that bypass a cut.

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
    # What the output does not depend on, and constants, would only be in the way.
    output = next(node.name for node in aug.graph.nodes if node.op == "output")
    used = nx.ancestors(graph, output) | {output}
    graph = graph.subgraph(used).copy()
    cuts = {node.name for node in aug.graph.nodes if node.name in used and _is_cut(aug, node)}
    before = set().union(*(nx.ancestors(graph, cut) for cut in cuts)) - cuts if cuts else set()
    behind = set().union(*(nx.descendants(graph, cut) for cut in cuts)) - cuts if cuts else set()
    bypass = set().union(*(_bypass_edges(graph, cut, inputs & used, output) for cut in cuts))
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
    places = _places(graph)
    nodes = {
        node.name: DrawnNode(_label(aug, node), parts[node.name], places[node.name])
        for node in aug.graph.nodes
        if node.name in used
    }
    return nodes, graph, bypass


def _is_cut(aug: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(aug.get_submodule(str(node.target)), Augmentation)


def _bypass_edges(graph: nx.DiGraph, cut: str, inputs: set[str], output: str) -> set[tuple[str, str]]:
    """The edges of ways from an input to the output that miss ``cut``, between what is before it and behind it."""
    import networkx as nx

    open_ways = graph.subgraph(set(graph) - {cut})
    reached = inputs.union(*(nx.descendants(open_ways, name) for name in inputs if name in open_ways))
    on_the_way = reached & (nx.ancestors(open_ways, output) | {output})
    before, behind = nx.ancestors(graph, cut), nx.descendants(graph, cut)
    edges = open_ways.subgraph(on_the_way - {cut}).edges
    return {(a, b) for a, b in edges if b not in before and a not in behind}


def _places(graph: nx.DiGraph) -> dict[str, tuple[float, int]]:
    """Layers by longest way from the top; within a layer, nodes stand near what feeds them and do not overlap."""
    import networkx as nx

    places: dict[str, tuple[float, int]] = {}
    for layer, names in enumerate(nx.topological_generations(graph)):
        wanted = {
            name: sum(places[source][0] for source in graph.predecessors(name))
            / max(1, graph.in_degree(name))
            for name in names
        }
        ordered = sorted(names, key=lambda name: wanted[name])
        centre = sum(wanted.values()) / len(wanted)
        for index, name in enumerate(ordered):
            places[name] = (centre + index - (len(ordered) - 1) / 2, layer)
    return places


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
        return _shorten(f"{target}()")
    return _shorten(str(node.target))


def _shorten(text: str, width: int = 30) -> str:
    """At most three lines of ``width`` characters."""
    text = printable(text)
    return "\n".join(textwrap.wrap(text, width, max_lines=3, placeholder=" …", break_on_hyphens=False))


def _draw_edge(axes: Any, source: DrawnNode, target: DrawnNode, bypass: bool) -> None:
    (x0, y0), (x1, y1) = source.place, target.place
    # An edge over several layers bends round the nodes between its ends.
    bend = "arc3" if y1 - y0 == 1 else "arc3,rad=0.45"
    arrow = {
        "arrowstyle": "-|>",
        "connectionstyle": bend,
        "color": BYPASS_COLOUR if bypass else "0.35",
        "linewidth": 2.0 if bypass else 1.2,
        "linestyle": "--" if bypass else "-",
        # In points, from the middle of a label to just outside its box.
        "shrinkA": 5.5 * (source.label.count("\n") + 1) + 5,
        "shrinkB": 5.5 * (target.label.count("\n") + 1) + 6,
    }
    axes.annotate("", xy=(x1, -y1), xytext=(x0, -y0), arrowprops=arrow, zorder=2)


def _draw_legend(axes: Any, parts: set[str], bypassed: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: list[Any] = [
        Patch(facecolor=colour, edgecolor="0.35", label=part)
        for part, colour in COLOURS.items()
        if part in parts
    ]
    if bypassed:
        entries.append(Line2D([], [], color=BYPASS_COLOUR, linestyle="--", label="bypass"))
    axes.legend(handles=entries, loc="upper center", ncols=len(entries), frameon=False, fontsize=8)
