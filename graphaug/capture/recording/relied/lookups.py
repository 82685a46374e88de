"""How what code reaches is looked up: by the name that it has for it, and by what it asks of that."""

from __future__ import annotations

import types
from collections.abc import Iterable
from typing import Any

from torch import nn

from graphaug.capture.user_code import is_internal


def last_of(name: str) -> str:
    """The name that code has for what is reached as ``self.a``, ``the global 'a'`` or ``a['b']``."""
    return name.rpartition(".")[2].strip("'").rpartition("'")[2]


def by_owner(pairs: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    """Of pairs of an owner and an attribute, all attributes of each owner."""
    found: dict[str, set[str]] = {}
    for owner, name in pairs:
        found.setdefault(owner, set()).add(name)
    return found


def own_attributes(value: Any) -> dict[str, Any]:
    """What an object has in its ``__dict__``; nothing of one that has slots alone."""
    try:
        return dict(vars(value))
    except TypeError:
        return {}


def lacks(value: Any, attribute: str) -> bool:
    """Whether an object has no attribute of a name; False where asking for it fails."""
    try:
        return not hasattr(value, attribute)
    except Exception:
        return False


def asks_for_all(frame: types.FrameType | None) -> types.CodeType | None:
    """The code that reads a module's ``__dict__`` in a frame, for `dir` one further out; None if it is torch's own."""
    if frame is not None and frame.f_code is nn.Module.__dir__.__code__:
        frame = frame.f_back
    return None if frame is None or is_internal(frame.f_code.co_filename) else frame.f_code
