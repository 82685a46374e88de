"""What a captured graph relies on besides its inputs: numbers, switches and hooks of opened modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from graphaug.capture.recording.hooks import has_backward_hooks, has_hooks
from graphaug.errors import AssumptionViolated

PLAIN = (bool, int, str, type(None))
WITHOUT_EFFECT = ("gradient_checkpointing", "grad_checkpointing", "use_cache")
"""Switches of libraries that change no value and no gradient; a forward that fills a cache is refused."""


class _Absent:
    """Compares and pickles as one object."""

    def __repr__(self) -> str:
        return "not there"

    def __reduce__(self) -> str:
        return "ABSENT"


ABSENT: Any = _Absent()
"""Stands for an attribute that was not there."""


@dataclass(frozen=True)
class Fact:
    """What an attribute of an opened module was when its forward read it; without a name, that it has no hooks."""

    path: str
    name: str
    expected: Any = None

    def check(self, model: nn.Module) -> None:
        """Raise unless it still holds.

        Args:
            model: the captured one.

        Raises:
            AssumptionViolated: the attribute was set since, or a hook was registered.
        """
        module = model.get_submodule(self.path)
        if not self.name:
            if has_hooks(module) if self.expected is None else has_backward_hooks(module):
                raise AssumptionViolated(
                    f"a hook was registered on {self.path!r}, which this model's graph has opened, after the capture. "
                    "Register it first, and call rewrite again."
                )
            return
        if not self.holds(module):
            found = getattr(module, self.name, ABSENT)
            now = repr(found) if is_plain(found) or found is ABSENT else f"a {type(found).__name__}"
            raise AssumptionViolated(
                f"this model was captured for {self.path + '.' if self.path else ''}{self.name} == {self.expected!r}, "
                f"and now it is {now}. Call rewrite again."
            )

    def holds(self, module: nn.Module) -> bool:
        """Whether the attribute of its module is what it was."""
        if self.expected is ABSENT:
            return not hasattr(module, self.name)
        found = getattr(module, self.name, ABSENT)
        if self.expected is None:
            return found is None
        return same(found, self.expected)


def is_plain(value: Any, depth: int = 2) -> bool:
    """Whether a value is a constant that compares by what it is: a number, a string, a tuple of such."""
    if type(value) is tuple and depth:
        return all(is_plain(v, depth - 1) for v in value)
    return type(value) in (*PLAIN, float)


def same(a: Any, b: Any) -> bool:
    """Whether two are equal plain values: of one type, and NaN is NaN."""
    return type(a) is type(b) and bool(a == b or (a != a and b != b))
