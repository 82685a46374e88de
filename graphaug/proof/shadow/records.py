"""What one forward did, as values that compare: its operations in order, with all that they depend on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Token = Any
"""Something that compares: what stands for an argument in a record."""


@dataclass
class Entry:
    """One call of a closed module, one operation, or one change of a tensor that is no operation.

    ``modes`` are what surrounds it (gradients, autocast); ``effect`` says that it matters even if nobody uses its
    results: it draws, writes, calls a module, or hands a number to Python.
    """

    name: str
    args: Token
    modes: tuple[Any, ...]
    line: str
    effect: bool
    reads: frozenset[int]


@dataclass
class Record:
    """What one forward did, and what it returned."""

    entries: list[Entry] = field(default_factory=list)
    output: Token = None
    values: list[Tensor] = field(default_factory=list)
    """The tensors that were returned, to compare their values."""
    unseen: str = ""
    """What was done to a tensor that no record can follow, if anything was."""
    left: dict[str, Token] = field(default_factory=dict)
    """What was left changed, by its place."""


@dataclass(frozen=True)
class Result:
    """Stands for a tensor that an entry made."""

    entry: int
    index: int


def results(token: Token) -> Iterator[int]:
    """The entries whose results a token names."""
    if isinstance(token, Result):
        yield token.entry
    elif isinstance(token, tuple):
        for part in token:
            yield from results(part)


def live(record: Record) -> list[int]:
    """The entries that matter: those with an effect, and what they and the output are computed from."""
    wanted = {i for i, e in enumerate(record.entries) if e.effect} | set(results(record.output))
    wanted |= {i for token in record.left.values() for i in results(token)}
    stack = list(wanted)
    while stack:
        for below in record.entries[stack.pop()].reads - wanted:
            wanted.add(below)
            stack.append(below)
    return sorted(wanted)


def renumbered(token: Token, numbers: Mapping[int, int]) -> Token:
    """A token with the entries that it names numbered anew."""
    if isinstance(token, Result):
        return Result(numbers.get(token.entry, -1), token.index)
    if isinstance(token, tuple):
        return tuple(renumbered(part, numbers) for part in token)
    return token
