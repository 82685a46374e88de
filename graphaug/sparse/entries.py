"""Inputs that are dicts, lists and tuples, taken apart: a part of the rows is taken of every tensor by itself."""

from __future__ import annotations

import dataclasses
import operator
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, fx

from graphaug.capture.dataflow import before, written
from graphaug.capture.recording.values.structures import entries, tensors_in
from graphaug.capture.values import UNKNOWN, describe, value_of
from graphaug.errors import SparseBackwardError, an
from graphaug.sparse.batch import Batch

Entry = tuple[str, tuple[Any, ...]]
"""Where a value is found in the inputs: the name of one, and the keys that lead into it."""
_MARK = "found_in_inputs"
"""In ``meta``; an augmentation has an ``entry`` of another kind there, of what its site returns."""


def found_in(values: Mapping[str, Any], entry: Entry) -> Any:
    """What lies at an entry of the inputs of a call."""
    name, keys = entry
    found = values[name]
    for key in keys:
        found = found[key]
    return found


def tensors_by_keys(value: Any, keys: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    """The tensors in an input, with the keys that lead to them."""
    if isinstance(value, Tensor):
        yield keys, value
    elif isinstance(value, (Mapping, list, tuple)):
        for (_, key), inner in entries(value):
            yield from tensors_by_keys(inner, (*keys, key))


def looked_up(graph: fx.Graph, node: fx.Node, keys: Sequence[Any]) -> fx.Node:
    """The node of what lies in an input under keys, made where the graph is at."""
    for key in keys:
        value = value_of(node)
        node = graph.call_function(operator.getitem, (node, key))
        node.meta["value"] = value[key]
    return node


def entry_of(node: fx.Node) -> Entry | None:
    """Where a node's value is found in the inputs, or None of what is computed."""
    if node.op == "placeholder":
        return str(node.target), ()
    found: Entry | None = node.meta.get(_MARK)
    return found


def in_inputs(graph: fx.Graph) -> list[fx.Node]:
    """The inputs of a graph; of those that hold tensors, these in their place, and what lies beside them."""
    return [n for n in graph.nodes if entry_of(n) is not None and not _is_structure(value_of(n))]


def apart(graph: fx.Graph, cut: fx.Node, batch: Batch) -> tuple[fx.Graph, fx.Node, Batch]:
    """The graph with a node for every tensor in the inputs, which the prefix takes in the place of the whole input.

    What lies behind the cut, and the checks of assumptions, get the inputs as they were given.

    Raises:
        SparseBackwardError: the prefix takes a whole that cannot be made of a part of the rows.
    """
    if not any(n.op == "placeholder" and _is_structure(value_of(n)) for n in graph.nodes):
        return graph, cut, batch
    made = _Apart(batch)
    ahead = before(cut)
    for node in graph.nodes:
        made.add(node, node in ahead)
    return made.graph, made.mapping[cut], Batch(made.graph, batch.sizes, made.other)


@dataclasses.dataclass
class _Part:
    """What lies somewhere in an input: its node, and what lies in it in turn."""

    node: fx.Node
    value: Any
    parts: dict[Any, _Part]


class _Apart:
    """A copy of a graph in the making; see `apart`."""

    def __init__(self, batch: Batch) -> None:
        self.graph, self.batch = fx.Graph(), batch
        self.mapping: dict[fx.Node, fx.Node] = {}
        self.other: dict[fx.Node, Any] = {}
        self.parts: dict[fx.Node, _Part] = {}

    def add(self, node: fx.Node, in_prefix: bool) -> None:
        """Copy a node; those of the prefix get wholes that are put together again."""
        whole = self.parts.get(node.args[0]) if node.target is operator.getitem else None  # type: ignore[arg-type]
        if whole is not None and not isinstance(node.args[1], fx.Node) and node.args[1] in whole.parts:
            part = whole.parts[node.args[1]]
            self.mapping[node] = part.node
            if _is_structure(part.value):
                self.parts[node] = part
            return
        if in_prefix and any(n in self.parts for n in node.all_input_nodes):
            for whole_input in written(node):
                if whole_input in self.parts:
                    raise SparseBackwardError(f"opened code changes {describe(whole_input)} in place")
            together = {n: self._together(node, p) for n in node.all_input_nodes if (p := self.parts.get(n))}
            copy = self.graph.node_copy(node, lambda n: together.get(n, self.mapping.get(n)))
        else:
            copy = self.graph.node_copy(node, lambda n: self.mapping[n])
        self.mapping[node] = copy
        self.other[copy] = self.batch.other.get(node, UNKNOWN)
        if node.op == "placeholder" and _is_structure(value_of(node)):
            self.parts[node] = self._taken(copy, value_of(node), self.other[copy], (str(node.target), ()))

    def _taken(self, node: fx.Node, value: Any, other: Any, entry: Entry) -> _Part:
        """The nodes of all that lies in an input."""
        part = _Part(node, value, {})
        if not _is_structure(value) or not isinstance(value, (Mapping, list, tuple)):
            return part
        name, keys = entry
        others = dict(entries(other)) if type(other) is type(value) else {}
        for key, inner in entries(value):
            got = self.graph.call_function(operator.getitem, (node, key[1]))
            got.meta.update({"value": inner, _MARK: (name, (*keys, key[1]))})
            self.other[got] = others.get(key, UNKNOWN)
            part.parts[key[1]] = self._taken(got, inner, self.other[got], got.meta[_MARK])
        return part

    def _together(self, user: fx.Node, part: _Part) -> Any:
        """A whole of the same kind, as an argument of a node.

        Raises:
            SparseBackwardError: it is of a kind that is not known to be made of its entries.
        """
        value, kind = part.value, type(part.value)
        if not _is_structure(value):
            return part.node
        inner = {key: self._together(user, p) for key, p in part.parts.items()}
        if kind is dict:
            return inner
        if kind in (list, tuple):
            return kind(inner.values())
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            made = self.graph.call_function(kind, tuple(inner.values()))
        elif kind is OrderedDict:
            made = self.graph.call_function(kind, (inner,))
        elif isinstance(value, dict) and hasattr(
            value, "__dataclass_fields__"
        ):  # a ModelOutput of transformers
            given = {k: v for k, v in inner.items() if value[k] is not None}
            made = self.graph.call_function(kind, (), given)
        else:
            raise SparseBackwardError(
                f"{describe(user)} before the cut takes an input whole that is {an(value)}, of which no part of the "
                "rows can be made"
            )
        made.meta["value"] = value
        self.other[made] = self.other[part.node]
        return made


def counted_by(nodes: Sequence[fx.Node], batch: Batch) -> Iterator[tuple[fx.Node, int]]:
    """What of the inputs counts the rows, and along which dimension."""
    for node in nodes:
        if isinstance(value_of(node), Tensor):
            try:
                dimension = batch.rows_of(node)
            except SparseBackwardError:  # what it is, is asked of what the prefix takes
                continue
            if dimension is not None:
                yield node, dimension


def _is_structure(value: Any) -> bool:
    """Whether a value holds tensors and is none."""
    return not isinstance(value, Tensor) and next(tensors_in(value), None) is not None
