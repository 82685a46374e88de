"""What an error about a selector offers instead, and how it spells what was asked for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def last_segment(path: str) -> str:
    """The name of a module in its parent."""
    return path.rpartition(".")[2]


def close_to(wrong: str, names: Iterable[str]) -> list[str]:
    """The three names most like a wrong one, whatever their case; the best first."""
    folded: dict[str, str] = {}
    for name in names:
        folded.setdefault(name.lower(), name)
    return [folded[name] for name in difflib.get_close_matches(wrong.lower(), folded, n=3, cutoff=0.5)]


def listed(names: Sequence[object], limit: int = 10) -> str:
    """The first names in quotes, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(str(name)) for name in names[:limit]) + more


def spell(at: object) -> str:
    """What a user selected with, as he wrote it."""
    if isinstance(at, (list, tuple)):
        return f"[{', '.join(map(spell, at))}]"
    return repr(at) if isinstance(at, (str, int)) else getattr(at, "__name__", type(at).__name__)
