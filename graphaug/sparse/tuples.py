"""Tuples of masks or tables, taken apart so that each entry is a value of its own."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

from torch import Tensor, fx

from graphaug.capture.dataflow import carries_gradient
from graphaug.capture.values import UNKNOWN, value_of
from graphaug.sparse.batch import Batch
from graphaug.sparse.entries import entry_of


def tuples_apart(graph: fx.Graph, cut: fx.Node, batch: Batch) -> tuple[fx.Graph, fx.Node, Batch]:
    """The graph with tuples of masks or tables (rotary embeddings) taken apart, so that each entry can be shared."""
    tuples = {n for n in graph.nodes if entry_of(n) is None and _is_untrained_tuple(n)}
    if not tuples:
        return graph, cut, batch
    found = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    other: dict[fx.Node, Any] = {}
    copies = {}
    for node in graph.nodes:
        copies[node] = made = found.node_copy(node, lambda n: mapping[n])
        other[made] = batch.other.get(node, UNKNOWN)
        mapping[node] = made
        if node in tuples:
            entries = []
            for i, entry in enumerate(value_of(node)):
                entries.append(found.call_function(operator.getitem, (made, i)))
                entries[i].meta["value"] = entry
                other[entries[i]] = UNKNOWN if other[made] is UNKNOWN else other[made][i]
            mapping[node] = found.call_function(together, tuple(entries))
            mapping[node].meta["value"] = value_of(node)
            other[mapping[node]] = other[made]
    return found, copies[cut], Batch(found, batch.sizes, other)


def _is_untrained_tuple(node: fx.Node) -> bool:
    value = value_of(node)
    flat = isinstance(value, tuple) and len(value) > 0 and all(isinstance(v, Tensor) for v in value)
    made = node.op.startswith("call_") and node.target is not type(value)
    return made and flat and not carries_gradient(value)


def users(node: fx.Node) -> Iterator[fx.Node]:
    """What uses a value, by itself or in a tuple."""
    for user in node.users:
        yield from user.users if user.target is together else (user,)


def together(*entries: Any) -> tuple[Any, ...]:
    """A tuple of what was taken apart."""
    return entries
