"""A picture of a rewritten model: the shallow graph from input to output, with the cut in colour.

networkx and matplotlib alone, so that no system package is needed; both are imported when a graph is drawn. May import:
errors, `graphaug.terminal`, capture's data flow, augment's sites, what separates.
"""

from graphaug.draw.layout import COLOURS, DrawnNode, layout
from graphaug.draw.picture import check_format, draw_graph

__all__ = ["COLOURS", "DrawnNode", "check_format", "draw_graph", "layout"]
