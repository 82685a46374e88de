"""A table in plain text that fits a width: what matters least is left out, and said."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

LEAST = 12
"""Characters that a cell is cut to at least."""


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        title: its head.
        cells: one for each row.
        rank: 0 for what is never left out; of the others the highest goes first.
        cut: which end a cell that is too long loses, "start" or "end"; None: it is not cut.
    """

    title: str
    cells: tuple[str, ...]
    rank: int = 0
    cut: str | None = None

    @property
    def width(self) -> int:
        """Of the longest cell."""
        return max(map(len, (self.title, *self.cells)))

    def at_most(self, width: int) -> Column:
        """The column with cells of at most so many characters, if it may be cut."""
        if self.cut is None:
            return self
        return replace(self, cells=tuple(_cut(cell, width, self.cut) for cell in self.cells))


def _cut(text: str, width: int, end: str) -> str:
    if len(text) <= width:
        return text
    return text[: width - 1] + "…" if end == "end" else "…" + text[len(text) - width + 1 :]


def render(columns: Sequence[Column], width: int | None = None) -> list[str]:
    """The lines of a table.

    Args:
        columns: from left to right.
        width: in characters; None for as many as it takes.

    Returns:
        The head, a rule, a line for each row; and what was left out to fit, if anything was.
    """
    shown, gone = list(columns), list[str]()
    if width is not None:
        shown = [column.at_most(max(LEAST, width // 3)) for column in shown]
        for column in sorted((c for c in shown if c.rank), key=lambda c: -c.rank):
            if _total(shown) <= width:
                break
            shown.remove(column)
            gone.append(column.title)
        for number, column in enumerate(shown):
            over = _total(shown) - width
            if over > 0 and column.cut is not None:
                shown[number] = column.at_most(max(LEAST, column.width - over))
    rows = zip(*((column.title, *column.cells) for column in shown), strict=True)
    widths = [column.width for column in shown]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * w for w in widths))
    if gone:
        lines.append(f"left out to fit {width} columns: {', '.join(reversed(gone))}")
    return lines


def _total(columns: Sequence[Column]) -> int:
    return sum(column.width for column in columns) + 2 * (len(columns) - 1)


def terminal_width() -> int | None:
    """How wide the terminal is, ``$COLUMNS`` first; None where the output goes to a file or another program."""
    if not os.environ.get("COLUMNS") and not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size().columns
