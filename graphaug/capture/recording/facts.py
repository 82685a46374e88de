"""What a captured graph relies on besides its inputs: numbers, switches and hooks of opened modules."""

from __future__ import annotations

import dis
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from graphaug.capture.recording.hooks import has_backward_hooks, has_hooks
from graphaug.errors import AssumptionViolated

PLAIN = (bool, int, str, type(None))


@dataclass(frozen=True)
class Fact:
    """What an attribute of an opened module was when its forward read it; without a name, that it has no hooks."""

    path: str
    name: str
    expected: Any = None

    def check(self, module: nn.Module) -> None:
        """Raise unless it still holds.

        Raises:
            AssumptionViolated: the attribute was set since, or a hook was registered.
        """
        if not self.name:
            if has_hooks(module) if self.expected is None else has_backward_hooks(module):
                raise AssumptionViolated(
                    f"a hook was registered on {self.path!r}, which this model's graph has opened, after the capture. "
                    "Register it first, and call rewrite again."
                )
            return
        found = getattr(module, self.name)
        if found != self.expected:
            raise AssumptionViolated(
                f"this model was captured for {self.path + '.' if self.path else ''}{self.name} == {self.expected!r}, "
                f"and now it is {found!r}. Call rewrite again."
            )


def check_facts(model: nn.Module, facts: Sequence[Fact]) -> None:
    """Check facts of a model.

    Raises:
        AssumptionViolated: one does not hold any more.
    """
    for fact in facts:
        fact.check(model.get_submodule(fact.path))


def is_plain(value: Any, depth: int = 2) -> bool:
    """Whether a value is a constant that compares by what it is: a number, a string, a tuple of such."""
    if type(value) is tuple and depth:
        return all(is_plain(v, depth - 1) for v in value)
    return type(value) in (*PLAIN, float)


def read_names(cls: type) -> frozenset[str]:
    """The names of attributes that the functions of a class read, its constructor's apart."""
    found: set[str] = set()
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] == "torch" or base is object:
            continue
        for name, value in vars(base).items():
            function = getattr(value, "__func__", getattr(value, "fget", value))
            if isinstance(function, types.FunctionType) and name != "__init__":
                _collect(function.__code__, found)
    return frozenset(found)


def _collect(code: types.CodeType, found: set[str]) -> None:
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            found.add(str(instruction.argval))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            _collect(constant, found)
