"""The tables of `functools.lru_cache` that are alive."""

from __future__ import annotations

import functools
import gc
import sys
import weakref
from typing import Any

from graphaug.capture.recording.kept.kinds import is_of_a_capture
from graphaug.capture.recording.values.inside import any_inside, results_of

_MOST = 300
"""Objects that are looked at in a table: the last results come first."""
_KIND = functools._lru_cache_wrapper


class _Tables:
    """All tables of the process. To find them, every object alive is looked at, which takes a tenth of a second.

    So they are looked for only where there may be one more than before: each refers to its type, whose count of
    references is another then.
    """

    def __init__(self) -> None:
        self._found: list[tuple[weakref.ref[Any], str]] = []
        self._references = -1

    def known(self) -> list[tuple[Any, str]]:
        """Those of the last look that are still alive, each with the package of its function."""
        return [(table, package) for ref, package in self._found if (table := ref()) is not None]

    def alive(self) -> list[tuple[Any, str]]:
        """Every table with the package of its function, in no order."""
        found = self.known()
        references = sys.getrefcount(
            _KIND
        )  # before the look: of what another thread makes meanwhile, the next knows
        gone = len(found) < len(self._found)
        counted = references >= len(found)  # else the type is one whose references are not counted
        if gone or not counted or references != self._references:
            tables = [t for t in gc.get_referrers(_KIND) if type(t) is _KIND]
            found = [(t, (t.__module__ or "").partition(".")[0]) for t in tables]
            self._found, self._references = [(weakref.ref(t), package) for t, package in found], references
        return found


_TABLES = _Tables()


def cached_functions(but: tuple[str, ...], *, search: bool = True) -> list[Any]:
    """The functions alive that keep their results by `functools.lru_cache` or `functools.cache`.

    Args:
        but: packages whose functions are left out.
        search: look for new ones, too.

    Example:
        >>> import functools
        >>> @functools.cache
        ... def square(n):
        ...     return n * n
        >>> square in cached_functions(but=("torch",))
        True
    """
    found = _TABLES.alive() if search else _TABLES.known()
    return [table for table, package in found if package not in but]


_EMPTIED: weakref.WeakSet[Any] = weakref.WeakSet()
"""Tables that were emptied here: their counts began anew, and may be equal to earlier ones by chance."""


def filled_since(cache: Any, before: Any) -> bool:
    """Whether a cached function may keep other results than when its `cache_info` was this one; None: it is new."""
    return bool(_KIND.cache_info(cache) != before or cache in _EMPTIED)


class Results:
    """What a cached function kept of its results: not told by its counts, which begin anew when it is cleared."""

    def __init__(self, cache: Any, reached: bool) -> None:
        self._cache = cache
        self._before = {id(v): v for v in results_of(cache)} if reached else None

    def restore(self) -> None:
        """Empty it if it keeps something of a capture, or if it is the model's and keeps what it did not."""
        if not _KIND.cache_info(self._cache).currsize:
            return
        before = self._before
        new = before is not None and any(id(v) not in before for v in results_of(self._cache))
        if new or any_inside(self._cache, is_of_a_capture, _MOST):
            _KIND.cache_clear(self._cache)
            _EMPTIED.add(self._cache)
