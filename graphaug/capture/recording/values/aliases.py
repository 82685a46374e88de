"""Tensors that are handed on as they are: each gets another one for it, to be told from what was handed on."""

from __future__ import annotations

from torch import Tensor, fx

from graphaug.capture.dataflow import before, is_of_conversion


class Aliases:
    """What stands for which tensor; ids are names, so the tensors have to be kept."""

    def __init__(self) -> None:
        self._of: dict[int, int] = {}

    def made_of(self, value: Tensor) -> Tensor:
        """A tensor of its own for one that is handed on."""
        made = value.view_as(value)
        self._of[id(made)] = self._of.get(id(value), id(value))
        return made

    def may_be_one(self, a: tuple[Tensor, fx.Node], b: tuple[Tensor, fx.Node]) -> bool:
        """Whether two tensors, each with its node, may be one in the model.

        That is where one is the other handed on, or a conversion that copied it on the example.
        """
        (first, node), (second, other) = a, b
        pairs = ((node, other), (other, node))
        converted = any(is_of_conversion(n) and of in before(n) for n, of in pairs)
        return converted or self._of.get(id(first), id(first)) == self._of.get(id(second), id(second))
