"""Graphs, and many of them below each other: nodes, edges, and whose each node is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Graph(NamedTuple):
    """``x``: ``(nodes, features)``; ``edge_index``: ``(2, edges)``, each edge in both directions."""

    x: Tensor
    edge_index: Tensor


class Batch(NamedTuple):
    """``total`` graphs, node by node: ``batch`` ``(nodes,)`` says whose each is, in rising order."""

    x: Tensor
    edge_index: Tensor
    batch: Tensor
    total: int

    @property
    def sizes(self) -> Tensor:
        """Nodes of each graph."""
        return self.batch.bincount(minlength=self.total)

    def beside(self, other: Batch) -> Batch:
        """Both, one behind the other."""
        return Batch(
            torch.cat([self.x, other.x]),
            torch.cat([self.edge_index, other.edge_index + len(self.x)], 1),
            torch.cat([self.batch, other.batch + self.total]),
            self.total + other.total,
        )

    def inputs(self, device: torch.device) -> dict[str, Tensor]:
        """What a network is called with; ``ptr``, as in torch_geometric: where each graph begins, and the last ends."""
        ptr = torch.cat([torch.zeros(1, dtype=torch.int64), self.sizes.cumsum(0)])
        found = {"x": self.x, "edge_index": self.edge_index, "batch": self.batch, "ptr": ptr}
        return {name: value.to(device) for name, value in found.items()}


def join(graphs: Sequence[Graph]) -> Batch:
    """A batch of graphs, of which each has a node."""
    sizes = torch.tensor([len(graph.x) for graph in graphs])
    starts = (sizes.cumsum(0) - sizes).tolist()
    return Batch(
        torch.cat([graph.x for graph in graphs]),
        torch.cat([graph.edge_index + start for graph, start in zip(graphs, starts, strict=True)], 1),
        torch.repeat_interleave(torch.arange(len(graphs)), sizes),
        len(graphs),
    )


def undirected(pairs: Tensor) -> Tensor:
    """``(2, pairs)`` of nodes as edges in both directions, each once and sorted, without loops."""
    pairs = pairs[:, pairs[0] != pairs[1]]
    if not pairs.numel():
        return pairs.new_empty(2, 0)
    both: Tensor = torch.unique(torch.cat([pairs, pairs.flip(0)], 1), dim=1)
    return both
