"""What a closed module's result is computed from beside its arguments: what another keeps for it, in objects or hooks.

Fake tensors have gradient graphs. Whatever way a tensor took from one call to another, the second's result stands on
functions that the first made.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from graphaug.capture.held import tensors_of
from graphaug.capture.values import value_of
from graphaug.torch_private import sequence_number

_DEEP = 8
"""So many objects deep arguments are looked into: a cache holds layers, which hold tensors."""
_NO_NUMBER = 1 << 62
"""What gathers a leaf's gradient has a number above all others."""


@dataclass(frozen=True, eq=False)
class _Call:
    """A call that was made.

    Attributes:
        began: the number of its first function.
        node: its node.
        given: by what gradients leave its arguments, held on to for their ids.
        is_blind: whether an argument has no gradient, as token ids, so that what came of it is not seen.
    """

    began: int
    node: fx.Node
    given: dict[int, Any]
    is_blind: bool


class Lineage:
    """Which node of a graph in the making made which function of gradients."""

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._ends: list[int] = []  # of calls, in the order in which they were made
        self._calls: list[_Call] = []
        self._began = 0
        self._given: dict[int, Any] = {}
        self._is_blind = False

    def begin(self, arguments: Any) -> None:
        """Note what a call gets, before it runs."""
        self._given = {id(way): way for way in _ways(arguments)}
        self._is_blind = not all(t.requires_grad for t in tensors_of(arguments, _DEEP))
        self._began = sequence_number()

    def made(self, node: fx.Node) -> None:
        """Note that what ran since `begin` is this node's."""
        self._ends.append(sequence_number())
        self._calls.append(_Call(self._began, node, self._given, self._is_blind))

    def beside(self, node: fx.Node, value: Any) -> list[fx.Node]:
        """The nodes that a value of the last call, which was ``node``, stands on and that were not in its arguments.

        What another module's call made of parameters alone, as a table of positions, is none of them.
        """
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
            if id(way) in seen or id(way) in self._given:
                continue
            seen[id(way)] = way
            call = self._call_of(function)
            if id(way) in inputs:
                found[inputs[id(way)][0]] = None
            elif call is None or call.node is node:
                stack.extend(f for f, _ in function.next_functions if f is not None)
            elif call.node.op != "call_module" or self._is_of_data(function, call, inputs):
                found[call.node] = None
        return list(found)

    def _is_of_data(self, function: Any, call: _Call, inputs: Mapping[int, Any]) -> bool:
        """Whether what a call made stands on anything but parameters, as far as gradients show."""
        seen: dict[int, Any] = {}
        stack = [function]
        while stack:
            function = stack.pop()
            if id(function) in seen:
                continue
            seen[id(function)] = function
            if _is_leaf(function):
                if id(getattr(function, "variable", None)) in inputs:
                    return True
                continue
            if id(function) in call.given or self._call_of(function) not in (call, None):
                return True
            stack.extend(f for f, _ in function.next_functions if f is not None)
        return call.is_blind

    def _call_of(self, function: Any) -> _Call | None:
        """The call that made a function; None if it is a leaf's, or was made between calls."""
        number = function._sequence_nr()
        place = bisect.bisect_right(self._ends, number)
        if number >= _NO_NUMBER or place == len(self._calls):
            return None
        return self._calls[place] if number >= self._calls[place].began else None


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
