"""What closed modules may read of others, and leave: the modules that they hold on to, the names in their code."""

from __future__ import annotations

import types
import weakref
from collections.abc import Collection
from typing import Any

from torch import nn

from graphaug.capture.recording.relied.code_names import read_names
from graphaug.capture.recording.values.inside import any_inside
from graphaug.capture.state import OF_EVERY_MODULE


def read_by(m: nn.Module) -> frozenset[str]:
    """The names that the code of a module, and of those in it, may read."""
    return frozenset[str]().union(*(read_names(cls) for cls in {type(inner) for inner in m.modules()}))


def held_elsewhere(m: nn.Module) -> dict[int, nn.Module]:
    """The modules outside of a module that it, or those in it, hold on to: in lists, weak references, methods."""
    within = {id(inner) for inner in m.modules()}
    found: dict[int, nn.Module] = {}
    waiting = list(m.modules())

    def note(value: Any) -> bool:
        value = value() if isinstance(value, weakref.ref) else value
        value = value.__self__ if isinstance(value, types.MethodType) else value
        if isinstance(value, nn.Module) and id(value) not in within and id(value) not in found:
            found[id(value)] = value
            waiting.append(value)
        return False

    while waiting:
        held = vars(waiting.pop())
        any_inside([value for name, value in held.items() if name not in OF_EVERY_MODULE], note)
    return found


def is_left(
    module: nn.Module, path: str, name: str, changed: Collection[str], rebound: Collection[tuple[int, str]]
) -> bool:
    """Whether an attribute, what it holds, or where it is of its class, that of the class, is something else now."""
    if name not in vars(module) and any((id(cls), name) in rebound for cls in type(module).__mro__):
        return True
    place = f"{path}.{name}"
    return any(c == place or (c.startswith(place) and c[len(place)] in ".[") for c in changed)
