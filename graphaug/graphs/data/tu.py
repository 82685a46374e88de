"""A folder in the format of TU Dortmund's graph data sets: ``NAME_A.txt``, ``NAME_graph_indicator.txt`` and others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from graphaug.errors import DataError
from graphaug.graphs.batch import Graph, undirected
from graphaug.graphs.config import GraphsConfig
from graphaug.graphs.data.files import read_lines, readable

DEGREES = 16
"""Nodes without labels and attributes have their degree as their one feature, one-hot, up to this less one."""


def read_folder(config: GraphsConfig) -> tuple[list[Graph], list[str] | None, list[str]]:
    """Graphs with node labels, one-hot, and node attributes; edges in both directions, their labels unread.

    ``NAME_graph_attributes.txt``, where it is there, has the labels, else ``NAME_graph_labels.txt``.

    Raises:
        DataError: a file is missing, or they do not fit together.

    """
    folder = Path(config.data)
    prefix = _prefix(folder)
    edges = _table(prefix, "A").long() - 1
    owner = _table(prefix, "graph_indicator").long()[:, 0] - 1
    _check(prefix, edges, owner)
    count = int(owner[-1]) + 1
    pairs = undirected(edges.T)
    x = _features(prefix, pairs, len(owner))
    ends = owner.bincount(minlength=count).cumsum(0).tolist()
    edge_ends = owner[pairs[0]].bincount(minlength=count).cumsum(0).tolist()
    graphs = [
        Graph(x[start:end], pairs[:, first:last] - start)
        for start, end, first, last in zip([0, *ends], ends, [0, *edge_ends], edge_ends, strict=False)
    ]
    return graphs, None if config.task == "none" else _labels(prefix, count), []


def _prefix(folder: Path) -> str:
    found = sorted(path.name.removesuffix("_A.txt") for path in folder.glob("*_A.txt"))
    if len(found) != 1:
        raise DataError(
            f"the folder {str(folder)!r} is not in TU's format: it needs one file NAME_A.txt, and has {len(found)}."
        )
    return str(folder / found[0])


def _table(prefix: str, name: str) -> Tensor:
    """``(lines, columns)``."""
    path = Path(f"{prefix}_{name}.txt")
    with readable(path):
        return torch.from_numpy(np.loadtxt(path, delimiter=",", ndmin=2))


def _check(prefix: str, edges: Tensor, owner: Tensor) -> None:
    """Refuse nodes that are not graph by graph, graphs without nodes, and edges to nowhere or to another graph."""
    if not len(owner) or owner[0] != 0 or bool(((owner.diff() != 0) & (owner.diff() != 1)).any()):
        raise DataError(
            f"{prefix}_graph_indicator.txt does not number the graphs from 1, node by node, in order."
        )
    if edges.shape[1] != 2 or (edges.numel() and not 0 <= int(edges.min()) <= int(edges.max()) < len(owner)):
        raise DataError(f"{prefix}_A.txt is not of pairs of nodes from 1 to {len(owner)}.")
    crossing = (owner[edges[:, 0]] != owner[edges[:, 1]]).nonzero()
    if len(crossing):
        raise DataError(f"{prefix}_A.txt line {int(crossing[0]) + 1}: an edge joins two graphs.")


def _features(prefix: str, pairs: Tensor, nodes: int) -> Tensor:
    parts = []
    if Path(f"{prefix}_node_attributes.txt").exists():
        parts.append(_table(prefix, "node_attributes"))
    if Path(f"{prefix}_node_labels.txt").exists():
        for column in _table(prefix, "node_labels").T:
            kinds, index = column.unique(return_inverse=True)
            parts.append(torch.nn.functional.one_hot(index, len(kinds)))
    if not parts:
        degree = pairs[0].bincount(minlength=nodes).clamp(max=DEGREES - 1)
        parts.append(torch.nn.functional.one_hot(degree, DEGREES))
    if any(len(part) != nodes for part in parts):
        raise DataError(f"{prefix}: {nodes} nodes, and {len(parts[0])} lines of node labels or attributes.")
    return torch.cat([part.float() for part in parts], 1)


def _labels(prefix: str, count: int) -> list[str]:
    path = next(
        (p for kind in ("attributes", "labels") if (p := Path(f"{prefix}_graph_{kind}.txt")).exists()), None
    )
    if path is None:
        raise DataError(
            f"there is no file {prefix}_graph_labels.txt: train without labels, task='none' (--task none)."
        )
    labels = [line.strip() for line in read_lines(path) if line.strip()]
    if len(labels) != count:
        raise DataError(f"{str(path)!r} has {len(labels)} labels for {count} graphs.")
    return labels
