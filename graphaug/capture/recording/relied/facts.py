"""What a captured graph relies on besides its inputs: numbers, switches and hooks of opened modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from graphaug.capture.recording.hooks import has_backward_hooks, has_hooks
from graphaug.errors import AssumptionViolated

PLAIN = (bool, int, str, type(None))
WITHOUT_EFFECT = ("gradient_checkpointing", "grad_checkpointing", "use_cache")
"""Switches that change no value and no gradient; a forward that fills a cache is refused."""


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
        found = getattr(module, self.name)
        if found != self.expected:
            raise AssumptionViolated(
                f"this model was captured for {self.path + '.' if self.path else ''}{self.name} == {self.expected!r}, "
                f"and now it is {found!r}. Call rewrite again."
            )


def is_plain(value: Any, depth: int = 2) -> bool:
    """Whether a value is a constant that compares by what it is: a number, a string, a tuple of such."""
    if type(value) is tuple and depth:
        return all(is_plain(v, depth - 1) for v in value)
    return type(value) in (*PLAIN, float)
