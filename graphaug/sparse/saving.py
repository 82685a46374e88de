"""How much of a step the backward of stopped rows is, by FLOPs."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from graphaug.capture.dataflow import before
from graphaug.errors import SparseBackwardError

SMALLEST_SAVING = 0.1
"""Share of the step's backward FLOPs that "auto" wants to save before it splits.

Measured by benchmarks/step.py: at 0.08 BERT-base gains nothing, at 0.17 all models do.
"""
SPLIT_ANYWAY = "backward='sparse' splits the rows"


def flop_share(graph: fx.Graph, cut: fx.Node) -> float:
    """Share of the forward FLOPs up to a node, in [0, 1]."""
    total = sum(n.meta.get("flops", 0) for n in graph.nodes)
    return sum(n.meta.get("flops", 0) for n in before(cut)) / total if total else 0.0


def saving(graph: fx.Graph, cut: fx.Node, subset: float, views: int, backward: str) -> str:
    """How much of the step a split would save, in words.

    Raises:
        SparseBackwardError: ``backward="auto"``, and it is too little, or cannot be told.
    """
    share, uncounted = flop_share(graph, cut), _uncounted(graph.nodes)
    saved = subset * share / views / floor(0, share, views)
    if backward == "auto" and saved < SMALLEST_SAVING:
        if _uncounted(before(cut)):
            raise SparseBackwardError(f"what it saves cannot be told without {uncounted}; {SPLIT_ANYWAY}")
        raise SparseBackwardError(
            f"it would save the backward of {saved:.0%} of the FLOPs only; {SPLIT_ANYWAY}"
        )
    left_out = f", without {uncounted}" if uncounted else ""
    return f"prefix {share:.0%} of the FLOPs, floor of the step {floor(subset, share, views):.2f}{left_out}"


def _uncounted(nodes: Iterable[fx.Node]) -> str:
    """The operators of which nothing says how many FLOPs they take, in words; or an empty string."""
    names = sorted(set[str]().union(*(n.meta.get("uncounted", ()) for n in nodes)))
    return f"the FLOPs of {', '.join(names)}, for which torch has no formula" if names else ""


def floor(subset: float, share: float, views: int = 1) -> float:
    """The least time of a sparse step relative to the plain one: 1 - (2/3)·s·f (docs/sparse-backward.md).

    Of a step's time a third is the forward and two thirds the backward; that of the share ``subset`` of the rows is
    saved in the share ``share`` of the network that lies before the cut. Where ``views`` are made at the cut the plain
    step is that of as many copies of every row, and the network before it runs for one of them.
    """
    return 1 - share + share / views * (1 - 2 / 3 * subset)
