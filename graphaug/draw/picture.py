"""The picture itself, by matplotlib."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import fx

from graphaug.draw.layout import COLOURS, DrawnNode, layout
from graphaug.errors import InvalidOption

BYPASS_COLOUR = "#cc0000"
FORMATS = (".svg", ".png", ".pdf")

LAYER = 0.8
"""Inches between the middles of two boxes, downwards."""

CHARACTER = 0.085
"""Inches that a character of a label takes at most."""

PASSING = 0.3
"""Half of the height, in layers, over which an edge that passes a layer goes straight down: no box is higher."""

Point = tuple[float, float]


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

    ways = {(a, b): way for a, b, way in graph.edges(data="way")}
    columns = [node.place[0] for node in nodes.values()] + [x for way in ways.values() for x, _ in way]
    left, right = min(columns) - 0.6, max(columns) + 0.6
    layers = max(node.place[1] for node in nodes.values()) + 1
    longest = max(len(line) for node in nodes.values() for line in node.label.split("\n"))
    column = longest * CHARACTER + 0.35
    width, height = max(4.5, (right - left) * column), (layers + 0.9) * LAYER
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    middle = (left + right) / 2
    axes.set_xlim(middle - width / column / 2, middle + width / column / 2)
    axes.set_ylim(-layers + 0.4, 1.3)
    texts = {name: _draw_node(axes, node) for name, node in nodes.items()}
    _draw_legend(axes, {node.part for node in nodes.values()}, bool(bypass))
    figure.draw_without_rendering()  # now the boxes have their sizes
    boxes = {
        name: text.get_bbox_patch().get_window_extent().transformed(axes.transData.inverted())
        for name, text in texts.items()
    }
    for (source, target), way in ways.items():
        points = [_end(boxes[source], below=True), *_passed(way), _end(boxes[target], below=False)]
        _draw_edge(axes, points, (source, target) in bypass)
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


def _draw_node(axes: Any, node: DrawnNode) -> Any:
    column, layer = node.place
    box = {"boxstyle": "round,pad=0.35", "facecolor": COLOURS[node.part], "edgecolor": "0.35"}
    text = axes.text(column, -layer, node.label, ha="center", va="center", fontsize=9, bbox=box, zorder=3)
    text.set_parse_math(False)  # a dollar in a name begins no formula
    return text


def _end(box: Any, below: bool) -> Point:
    """Where an edge leaves a box, below it, or where its arrow touches one from above."""
    return (box.x0 + box.x1) / 2, box.y0 if below else box.y1


def _passed(way: Sequence[tuple[float, int]]) -> list[Point]:
    """The points of an edge in the layers that it passes: above and below each, in its own lane."""
    return [(x, -layer + side) for x, layer in way for side in (PASSING, -PASSING)]


def _draw_edge(axes: Any, points: Sequence[Point], bypass: bool) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Line

    arrow = FancyArrowPatch(
        path=Line([points[0], *points[1:]]),
        arrowstyle="-|>,head_length=5,head_width=2.5",
        color=BYPASS_COLOUR if bypass else "0.35",
        linewidth=2.0 if bypass else 1.2,
        linestyle="--" if bypass else "-",
        joinstyle="round",
        mutation_scale=1,
        zorder=2,
    )
    axes.add_patch(arrow)


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
