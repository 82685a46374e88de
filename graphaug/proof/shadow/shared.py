"""Objects that modules share: what is watched of each, whichever way it was found first."""

from __future__ import annotations

import itertools
import types
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from graphaug.capture.recording.values.inside import inside
from graphaug.capture.state import is_configuration
from graphaug.proof.shadow.watched import PLAIN, Watched

ENTRIES = 1000
"""Entries of one container that are followed."""
REGISTRIES = frozenset(vars(nn.Module()))
"""Names of attributes that torch itself gives every module."""
_ENDS = (*PLAIN, Tensor, type, nn.Module, types.ModuleType)
_DEPTH = 4


class Shared:
    """What is watched of every object."""

    def __init__(self) -> None:
        self._watched: dict[int, list[Watched]] = {}

    def note(self, value: Any, watched: Watched) -> None:
        """Note something that is watched of an object."""
        self._watched.setdefault(id(value), []).append(watched)

    def reached_from(self, module: nn.Module) -> Iterator[Watched]:
        """What is watched of the objects that a module, and those in it, hold."""
        seen = set[int]()
        for inner in module.modules():
            waiting = [(v, _DEPTH) for k, v in vars(inner).items() if k not in REGISTRIES]
            while waiting:
                value, depth = waiting.pop()
                if isinstance(value, _ENDS) or id(value) in seen or is_configuration(value):
                    continue
                seen.add(id(value))
                yield from self._watched.get(id(value), ())
                if depth > 1 and not isinstance(value, types.FunctionType):
                    waiting.extend((v, depth - 1) for _, v in itertools.islice(inside(value), ENTRIES))
