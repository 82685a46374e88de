"""What a closed module's result is computed from beside its arguments: what another keeps for it, in objects or hooks.

Fake tensors have gradient graphs. Whatever way a tensor took from one call to another, the second's result stands on
functions that the first made.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from typing import Any

from torch import Tensor, fx

from graphaug.capture.dataflow import tensors_of
from graphaug.capture.values import value_of
from graphaug.torch_private import sequence_number

_DEEP = 8
"""So many objects deep arguments are looked into: a cache holds layers, which hold tensors."""
_NO_NUMBER = 1 << 62
"""What gathers a leaf's gradient has a number above all others."""


class Lineage:
    """Which node of a graph in the making made which function of gradients."""

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._ends: list[int] = []  # of calls, in the order in which they were made
        self._calls: list[tuple[int, fx.Node]] = []  # the first number of a call, and its node
        self._began = 0
        self._given: list[Any] = []

    def begin(self, arguments: Any) -> None:
        """Note what a call gets, before it runs."""
        self._given = [*_ways(arguments)]
        self._began = sequence_number()

    def made(self, node: fx.Node) -> None:
        """Note that what ran since `begin` is this node's."""
        self._ends.append(sequence_number())
        self._calls.append((self._began, node))

    def beside(self, node: fx.Node, value: Any) -> list[fx.Node]:
        """The nodes that a value of the last call, which was ``node``, stands on and that were not in its arguments."""
        stops = {id(way) for way in self._given}
        placeholders = self._graph.find_nodes(op="placeholder")
        inputs = {
            id(way): (n, way) for n in placeholders for way in _ways(value_of(n))
        }  # held on to, for their ids
        seen: dict[int, Any] = {}
        stack = [t.grad_fn for t in tensors_of(value, _DEEP) if t.grad_fn is not None]
        found: dict[fx.Node, None] = {}
        while stack:
            function = stack.pop()
            way = getattr(function, "variable", function) if _is_leaf(function) else function
            if id(way) in seen or id(way) in stops:
                continue
            seen[id(way)] = way
            owner = inputs[id(way)][0] if id(way) in inputs else self._owner(function)
            if owner is not None and owner is not node:
                found[owner] = None
            else:
                stack.extend(f for f, _ in function.next_functions if f is not None)
        return list(found)

    def _owner(self, function: Any) -> fx.Node | None:
        """The node whose call made a function; None if it is a leaf's, or was made between calls."""
        number = function._sequence_nr()
        place = bisect.bisect_right(self._ends, number)
        if number >= _NO_NUMBER or place == len(self._calls):
            return None
        first, node = self._calls[place]
        return node if number >= first else None


def _is_leaf(function: Any) -> bool:
    return bool(function._sequence_nr() >= _NO_NUMBER)


def _ways(value: Any) -> Iterator[Any]:
    """By what a gradient leaves the tensors of a value: a leaf itself, else its function, and that of its base."""
    for tensor in tensors_of(value, _DEEP):
        for held in (tensor, tensor._base):
            if isinstance(held, Tensor):
                yield held
                if held.grad_fn is not None:
                    yield held.grad_fn
