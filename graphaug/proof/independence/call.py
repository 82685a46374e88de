"""One operation of a trace as the rules see it: its arguments by name, their sizes, and where rows lie in them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from graphaug.proof.independence.places import Meeting, Meets, Numbers, Rows, Size, State, common
from graphaug.torch_private import OpOverload


@functools.cache
def argument_names(func: OpOverload) -> tuple[str, ...]:
    """Names of an operation's arguments, in order."""
    return tuple(a.name for a in func._schema.arguments)


@functools.cache
def defaults(func: OpOverload) -> dict[str, Any]:
    """The arguments of an operation that may be left out, with their values."""
    return {a.name: a.default_value for a in func._schema.arguments if a.has_default_value()}


@functools.cache
def plain_name(func: OpOverload) -> str:
    """The name that the rules know an operation by: ``add`` for ``aten::add_.Tensor``, ``view`` for ``view_copy``."""
    name: str = func._schema.name
    space, _, name = name.rpartition("::")
    if space != "aten":
        return f"{space}::{name}"
    name = name.removesuffix("_") if not name.startswith("__") else name
    return (
        name if name in ("copy", "_to_copy", "index_copy", "lift_fresh_copy") else name.removesuffix("_copy")
    )


@functools.cache
def written(func: OpOverload) -> tuple[str, ...]:
    """Names of the arguments that an operation writes into."""
    return tuple(a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write)


class Call:
    """An operation that has run on fake tensors.

    Args:
        func: the operation.
        args, kwargs: what it was called with.
        result: what it returned.
        state: tells the state of a tensor.
        size: reads a size.
    """

    def __init__(
        self,
        func: OpOverload,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Any,
        state: Callable[[Tensor], State],
        size: Callable[[Any], Size],
    ) -> None:
        self.func, self.name = func, plain_name(func)
        self.given = dict(zip(argument_names(func), args, strict=False)) | kwargs
        self.outputs = [t for t in flat(result) if isinstance(t, Tensor)]
        self.tensors = [t for v in self.given.values() for t in flat(v) if isinstance(t, Tensor)]
        self.state, self._size = state, size
        self.statistics: str = ""

    def __getitem__(self, name: str) -> Any:
        """An argument by name, or its default; None where the overload has no such argument."""
        return self.given[name] if name in self.given else defaults(self.func).get(name)

    def sizes(self, tensor: Tensor) -> list[Size]:
        """The sizes of a tensor."""
        return [self._size(n) for n in tensor.shape]

    def size(self, value: Any) -> Size:
        """A size that was given as an argument."""
        return self._size(value)

    @property
    def out(self) -> Tensor:
        """The first output."""
        return self.outputs[0]

    def rows(self, value: Any) -> Rows | None:
        """Where rows lie in an argument, or None if it holds none.

        Raises:
            Meets: it holds the rows' own numbers, which may only index.
        """
        found = self.state(value) if isinstance(value, Tensor) else None
        if isinstance(found, Numbers):
            raise Meets("computes with a row's own number", "place")
        assert not isinstance(found, Meeting)
        return found

    def only(self, name: str = "self") -> Rows:
        """Where rows lie in the one argument that has any.

        Raises:
            Meets: another one has rows too, or this one has none.
        """
        tensor = self[name]
        for other in self.tensors:
            if other is not tensor and self.state(other) is not None:
                raise Meets("has no rule for rows in this argument", "unknown")
        rows = self.rows(tensor)
        if rows is None:
            raise Meets("has no rule for rows in this argument", "unknown")
        return rows

    def aligned(self, tensors: Sequence[Any], rank: int) -> Rows:
        """The common place of rows in operands that are broadcast to so many dimensions.

        Raises:
            Meets: they lie differently.
        """
        found = []
        for t in tensors:
            rows = self.rows(t)
            if rows is not None:
                found.append(rows.at(rows.dim + rank - t.dim()))
        place = common(found) if found else None
        if place is None:
            raise Meets("combines values whose rows lie differently")
        for t in tensors:
            d = place.dim - rank + t.dim() if isinstance(t, Tensor) else -1
            if d >= 0 and self.rows(t) is None and self._size(t.shape[d]) != Size(1, False):
                raise Meets("combines rows with a constant that has an entry for each of them", "place")
        return place


Outcome = State | list[State]
"""What a rule returns: the state of every output, or one for each."""

Rule = Callable[[Call], Outcome]


def named(names: str, rule: Rule) -> dict[str, Rule]:
    """One rule for several operations, for the table."""
    return dict.fromkeys(names.split(), rule)


def flat(value: Any) -> Iterator[Any]:
    """The entries of nested lists and tuples."""
    if isinstance(value, (list, tuple)):
        for v in value:
            yield from flat(v)
    else:
        yield value


def dims_of(value: Any, rank: int) -> list[int]:
    """Dimensions as numbers from 0; none given means all."""
    if value is None:
        return list(range(rank))
    listed = list(value) if isinstance(value, (list, tuple)) else [value]
    return [d % max(rank, 1) for d in listed] or list(range(rank))
