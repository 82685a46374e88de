"""The values of one graph at two batch sizes: which dimension counts the rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from graphaug.capture.dataflow import data_dependent
from graphaug.capture.values import UNKNOWN, describe, value_of
from graphaug.errors import SparseBackwardError
from graphaug.proof.independence.places import Meeting


@dataclass(frozen=True)
class Viewed:
    """A training graph in which rows become views at the cut.

    Attributes:
        graph: with ``[h; …; h]`` in the place of ``h``.
        cut: the augmentation's node in it.
        batch: the values of its nodes as they are without views, at two batch sizes.
        times: how many views.
        draws: what is drawn once for all views and used behind the cut, beside what is drawn before it.
    """

    graph: fx.Graph
    cut: fx.Node
    batch: Batch
    times: int
    draws: tuple[Meeting, ...] = ()


@dataclass(frozen=True)
class Batch:
    """The values of one graph at two batch sizes, node by node."""

    graph: fx.Graph
    sizes: tuple[int, int]
    other: dict[fx.Node, Any]

    def rows_of(self, node: fx.Node) -> int | None:
        """The dimension of a tensor that counts the rows, or None if it has none.

        Raises:
            SparseBackwardError: more than one dimension follows the batch size, or a multiple of it.
        """
        a, b = value_of(node), self.other.get(node, UNKNOWN)
        if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.dim() != b.dim():
            raise SparseBackwardError(f"the rows of {describe(node)} cannot be followed")
        moving = [d for d in range(a.dim()) if a.shape[d] != b.shape[d]]
        if not moving:
            return None
        if len(moving) > 1 or (a.shape[moving[0]], b.shape[moving[0]]) != self.sizes:
            raise SparseBackwardError(f"{describe(node)} does not hold one row per sample")
        return moving[0]

    def merge_of(self, node: fx.Node) -> Any:
        """How a plain value of the whole batch is made from those of its two parts."""

        def compare(a: Any, b: Any) -> Any:
            if isinstance(a, (tuple, list)) and type(a) is type(b) and len(a) == len(b):
                return tuple(compare(s, t) for s, t in zip(a, b, strict=True))
            if isinstance(a, Tensor):
                raise SparseBackwardError(f"{describe(node)} leaves the prefix and is no plain number")
            if _equal(a, b):
                return "same"
            if type(a) is int and type(b) is int and a * self.sizes[1] == b * self.sizes[0]:
                return "sum"
            raise SparseBackwardError(
                f"{describe(node)} depends on the batch size in a way that cannot be split"
            )

        return compare(value_of(node), self.other.get(node, UNKNOWN))


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except Exception:  # arrays, whose comparison has no single answer
        return False


def check_single(value: fx.Node) -> None:
    """Refuse a value at the cut that is not one tensor, or of which that is not known.

    Raises:
        SparseBackwardError: with the reason, as a clause.
    """
    found = value_of(value)
    if found is UNKNOWN:
        source, of = data_dependent(value), ""
        if source is not None:
            of = f": it depends on the data in '{describe(source)}' ({source.meta['unknown_because']})"
        raise SparseBackwardError(f"the size of the value at the cut is not known{of}")
    if not isinstance(found, Tensor):
        raise SparseBackwardError("the value at the cut is no single tensor")


def single(node: fx.Node, rows: int | None) -> tuple[int, tuple[int, ...]] | None:
    """Of a tensor without rows, its dimensions and those of size 1; where these grow, it may have rows."""
    value = value_of(node)
    if rows is not None or not isinstance(value, Tensor):
        return None
    return value.dim(), tuple(d for d, size in enumerate(value.shape) if size == 1)
