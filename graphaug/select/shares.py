"""How much of a model lies up to a site."""

from __future__ import annotations

from torch import fx, nn

from graphaug.capture.capture import Captured
from graphaug.capture.dataflow import before, parameters_of


class Shares:
    """How much of a model lies up to a node."""

    def __init__(self, model: nn.Module, captured: Captured) -> None:
        self.per_node = {
            n: {id(p): p.numel() for p in parameters_of(n, model.get_submodule, model.get_parameter)}
            for n in captured.graph.nodes
        }
        self.total = sum(p.numel() for p in model.parameters())
        self.all_flops = sum(n.meta.get("flops", 0) for n in captured.graph.nodes)

    def parameters(self, node: fx.Node) -> float:
        """Share of the parameters up to and including a node, in [0, 1]."""
        used: dict[int, int] = {}
        for n in before(node):
            used.update(self.per_node[n])
        return sum(used.values()) / self.total if self.total else 0.0

    def flops(self, node: fx.Node) -> float | None:
        """The same of the forward FLOPs; None if none were counted."""
        up_to = sum(n.meta.get("flops", 0) for n in before(node))
        return float(up_to / self.all_flops) if self.all_flops else None
