"""Text files that are read, or named in an error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from graphaug.errors import DataError


def read_lines(path: Path) -> list[str]:
    """The lines of a text file.

    Raises:
        DataError: it cannot be read, or is no UTF-8.

    """
    with readable(path):
        return path.read_text(encoding="utf-8").splitlines()


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what goes wrong while a file is read into a ``DataError`` that names it."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise DataError(f"{str(path)!r} cannot be read: {error}") from error
