"""Names of files and modules for a terminal or a picture: what is no character to be seen is written as its escape."""

from __future__ import annotations

import sys
from typing import Any


def printable(text: str) -> str:
    r"""The text with every character that cannot be shown as its escape, as in ``repr``.

    A file may be called anything. Its name must not move the cursor, set a window's title, turn the direction of
    writing, begin a line of its own, or end a program whose output has no bytes for it.

    Args:
        text: of one line, for example a path or the label of an axis.

    Example:
        >>> print(printable("photo\x1b[31m.png"))
        photo\x1b[31m.png
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def printable_lines(text: str) -> str:
    r"""A text of several lines, each as `printable` gives it; tabs stay."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def print_names(*values: object, **options: Any) -> None:
    """``print``, for output that has names of files in it: see `printable_lines`."""
    encoding = getattr(options.get("file") or sys.stdout, "encoding", None) or "utf-8"
    texts = (printable_lines(str(value)) for value in values)
    print(*(text.encode(encoding, "backslashreplace").decode(encoding) for text in texts), **options)
