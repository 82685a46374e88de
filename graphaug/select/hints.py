"""What an error about a selector offers instead, and how it spells what was asked for."""

from __future__ import annotations

from collections.abc import Sequence


def last_segment(path: str) -> str:
    """The name of a module in its parent."""
    return path.rpartition(".")[2]


def listed(names: Sequence[object], limit: int = 10) -> str:
    """The first names in quotes, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(str(name)) for name in names[:limit]) + more


def spell(at: object) -> str:
    """What a user selected with, as he wrote it."""
    if isinstance(at, (list, tuple)):
        return f"[{', '.join(map(spell, at))}]"
    return repr(at) if isinstance(at, (str, int)) else getattr(at, "__name__", type(at).__name__)
