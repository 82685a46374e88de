"""Where the data of every sample lie in a value, how a view moves them, and what is proved of them in the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from graphaug.augment.rows import Rows

__all__ = [
    "NOTHING",
    "NUMBERS",
    "Kind",
    "Meeting",
    "Meets",
    "Numbers",
    "Proof",
    "Rows",
    "Size",
    "State",
    "Verdict",
    "common",
    "reshaped",
]

Kind = Literal["coupled", "statistics", "place", "draw", "state", "decision", "failure", "unknown"]
Verdict = Literal["proved", "coupled", "statistics", "unknown"]
NOTHING = "the value holds nothing of any row"
NUMBERS = "it holds each row's own number"


@dataclass(frozen=True)
class Numbers:
    """The rows' own numbers: entries at index ``b`` of dimension ``dim`` are ``b``. They may index rows, no more."""

    dim: int


@dataclass(frozen=True)
class Meeting:
    """Where rows meet, or cannot be followed any further; what is computed from it inherits it.

    Attributes:
        kind: "coupled": rows see each other; "statistics": by batch normalisation; "place": a row sees its own number
            or the number of rows; "draw": rows share one draw; "state": something is kept from call to call;
            "decision": the forward asks for the value of a tensor; "failure": it raises an error with
            the rows' number left open; "unknown": there is no rule for it.
        op: the operation, as torch names it.
        why: what it does, as a clause.
        module: path of the module in whose forward it happened, if there is one.
        line: the user's line, as " (file.py line 3)", if it is known.
    """

    kind: Kind
    op: str
    why: str
    module: str = ""
    line: str = ""

    def __str__(self) -> str:
        where = f" in '{self.module}'" if self.module else ""
        return f"{self.why}{where}{self.line}"


State = Rows | Numbers | Meeting | None
"""What is known of a value: its rows, or None where it holds nothing of any sample."""


@dataclass(frozen=True)
class Proof:
    """What a trace tells of the rows of a value.

    Attributes:
        verdict: "proved": no row sees another, in value or gradient; "coupled": they meet, in ``meeting``;
            "statistics": in batch statistics only; "unknown": something could not be followed.
        place: where the samples lie in the value, or None if that cannot be told.
        meeting: the first operation at which rows meet or are lost, or None.
        statistics: every normalisation by statistics of the batch.
        draws: every operation of the trace that draws random numbers.
        operations: how many operations were followed.
        sizes: where they lie as far as sizes tell: the one dimension that is as long as there are rows.
        least: the least number of rows that it holds for: 1, or 2 where the code asks whether there is more than one.
    """

    verdict: Verdict
    place: Rows | None
    meeting: Meeting | None = None
    statistics: tuple[Meeting, ...] = ()
    operations: int = 0
    sizes: Rows | None = None
    least: int = 1
    draws: tuple[Meeting, ...] = ()

    @property
    def nothing(self) -> bool:
        """Whether it is known that the value holds nothing of any row."""
        return self.place is None and self.meeting == Meeting("place", "", NOTHING)

    def __str__(self) -> str:
        if self.verdict == "proved":
            return f"rows proved independent over {self.operations} operations"
        if self.verdict == "unknown":
            return f"not proved: {self.meeting}"
        return f"rows meet: {self.meeting}"


class Meets(Exception):
    """Raised by a rule where rows meet.

    Args:
        why: what happens, as a clause.
        kind: the kind of `Meeting`.
    """

    def __init__(self, why: str, kind: Kind = "coupled") -> None:
        super().__init__(why)
        self.why, self.kind = why, kind


@dataclass(frozen=True)
class Size:
    """A size that is ``count``, or with ``batch`` ``count`` times the number of rows."""

    count: int
    batch: bool


def reshaped(rows: Rows, old: Sequence[Size], new: Sequence[Size]) -> Rows:
    """Where rows lie after a view in row-major order.

    Neighbouring samples are ``step`` entries apart in the old value. In the new one the dimension that counts the batch
    advances every ``below`` entries, so that a sample is ``step / below`` neighbours there, and the rest of it must be
    whole batches.

    Args:
        rows: where they lie in the old value.
        old, new: its sizes, and those of the new one.

    Raises:
        Meets: the view tears the rows apart.
    """
    counted = [d for d, size in enumerate(new) if size.batch]
    if len(counted) != 1:
        raise Meets("a view tears the rows apart")
    (dim,) = counted
    below = math.prod(size.count for size in new[dim + 1 :])
    if rows.uniform:
        if new[dim].count == old[rows.dim].count and below == math.prod(s.count for s in old[rows.dim + 1 :]):
            return rows.at(dim)
        raise Meets("a view tears apart what is drawn or filled for every row")
    step = rows.inner * math.prod(size.count for size in old[rows.dim + 1 :])
    if not below or not step or step % below:
        raise Meets("a view tears the rows apart")
    inner = step // below
    if new[dim].count % inner:
        raise Meets("a view tears the rows apart")
    return Rows(dim, new[dim].count // inner, inner)


def common(states: Sequence[Rows]) -> Rows | None:
    """The one place that all of them agree on, or None if they do not."""
    fixed = {s for s in states if not s.uniform}
    if len(fixed) > 1:
        return None
    chosen = next(iter(fixed)) if fixed else states[0]
    agree = all(s.dim == chosen.dim and s.slices == chosen.slices for s in states)
    return chosen if agree else None
