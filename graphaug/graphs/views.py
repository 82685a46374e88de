"""GraphCL's views of graphs (You et al. 2020, table 1), of a whole batch at once.

Each function takes a share for every graph of the batch; a graph with the share 0 stays as it is.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from graphaug.graphs.batch import Batch, undirected
from graphaug.graphs.config import VIEWS


def drop_nodes(graphs: Batch, share: Tensor, generator: Generator) -> Batch:
    """Take out a share of the nodes with their edges; one node of each graph stays.

    Args:
        graphs: a batch.
        share: ``(graphs,)``, of each graph's nodes; rounded to whole ones.
        generator: of the draw.

    """
    dropped = _round(share, graphs.sizes).minimum(graphs.sizes - 1)
    return _induced(graphs, ~drawn(graphs.batch, dropped, generator))


def mask_attributes(graphs: Batch, share: Tensor, generator: Generator) -> Batch:
    """Set all features of a share of the nodes to 0; arguments as for `drop_nodes`."""
    masked = drawn(graphs.batch, _round(share, graphs.sizes), generator)
    return graphs._replace(x=graphs.x.masked_fill(masked[:, None], 0))


def perturb_edges(graphs: Batch, share: Tensor, generator: Generator) -> Batch:
    """Take out a share of the edges, and join as many pairs of nodes at random; some may be edges already.

    Args:
        graphs: a batch.
        share: ``(graphs,)``, of each graph's edges; rounded to whole ones.
        generator: of the draw.

    """
    pairs = graphs.edge_index[:, graphs.edge_index[0] < graphs.edge_index[1]]
    owner = graphs.batch[pairs[0]]
    moved = _round(share, owner.bincount(minlength=graphs.total))
    kept = pairs[:, ~drawn(owner, moved, generator)]
    owner = torch.repeat_interleave(torch.arange(graphs.total), moved)
    sizes = graphs.sizes[owner]
    start = (graphs.sizes.cumsum(0) - graphs.sizes)[owner]
    one, step = torch.rand(2, len(owner), generator=generator, dtype=torch.float64)
    first = (one * sizes).long()
    second = (first + 1 + (step * (sizes - 1)).long()) % sizes  # any node but the first one
    edges = undirected(torch.cat([kept, start + torch.stack([first, second])], 1))
    return graphs._replace(edge_index=edges)


def subgraph(graphs: Batch, share: Tensor, generator: Generator) -> Batch:
    """Keep a connected part that grows from one node, by one neighbour at a time, till a share is left out.

    Args:
        graphs: a batch.
        share: ``(graphs,)``, of each graph's nodes that are left out; more, if the part can grow no further.
        generator: of the draw.

    """
    wanted = (graphs.sizes - _round(share, graphs.sizes)).clamp(min=1)
    one = torch.ones(graphs.total, dtype=torch.int64)
    keep = drawn(graphs.batch, one, generator) | (share == 0)[graphs.batch]
    source, to = graphs.edge_index
    while True:
        growing = graphs.batch[keep].bincount(minlength=graphs.total) < wanted
        near = torch.zeros_like(keep)
        near[to[keep[source]]] = True
        (found,) = (near & ~keep & growing[graphs.batch]).nonzero(as_tuple=True)
        if not len(found):
            return _induced(graphs, keep)
        keep[found[drawn(graphs.batch[found], one, generator)]] = True


FUNCTIONS = dict(zip(VIEWS, (drop_nodes, perturb_edges, mask_attributes, subgraph), strict=True))
"""The views by the name they have on the command line."""


def random_view(graphs: Batch, views: tuple[str, ...], ratio: float, generator: Generator) -> Batch:
    """Each graph in one of ``views``, drawn for it alone, as GraphCL's ``random`` augmentation."""
    chosen = torch.randint(len(views), (graphs.total,), generator=generator)
    for number, name in enumerate(views):
        graphs = FUNCTIONS[name](graphs, ratio * (chosen == number), generator)
    return graphs


def drawn(owner: Tensor, counts: Tensor, generator: Generator) -> Tensor:
    """A mask of ``counts[i]`` of the entries of each owner i, uniformly without replacement.

    Args:
        owner: ``(entries,)``.
        counts: ``(owners,)``; with more than there are, all of them are drawn.
        generator: of the draw.

    """
    order = torch.argsort(owner + torch.rand(len(owner), generator=generator, dtype=torch.float64))
    sizes = owner.bincount(minlength=len(counts))
    rank = torch.empty_like(owner)
    rank[order] = torch.arange(len(owner)) - (sizes.cumsum(0) - sizes)[owner[order]]
    return rank < counts[owner]


def _round(share: Tensor, sizes: Tensor) -> Tensor:
    return (share * sizes).round().long()


def _induced(graphs: Batch, keep: Tensor) -> Batch:
    """What is left of the graphs with some of their nodes, and the edges between these."""
    number = keep.cumsum(0) - 1
    inside = keep[graphs.edge_index].all(0)
    edges = number[graphs.edge_index[:, inside]]
    return graphs._replace(x=graphs.x[keep], edge_index=edges, batch=graphs.batch[keep])
