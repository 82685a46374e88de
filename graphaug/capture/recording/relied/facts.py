"""What a captured graph relies on besides its inputs: numbers, switches and hooks of opened modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from graphaug.capture.recording.hooks import has_backward_hooks, has_global_hooks
from graphaug.errors import AssumptionViolated

PLAIN = (bool, int, str, type(None))
WITHOUT_EFFECT = ("gradient_checkpointing", "grad_checkpointing", "use_cache")
"""Switches that change no value and no gradient; a forward that fills a cache is refused."""


class Relied(Protocol):
    """Anything that a graph relies on."""

    def check(self, model: nn.Module) -> None:
        """Raise `AssumptionViolated` unless it still holds in the captured model."""


@dataclass(frozen=True)
class Fact:
    """What an attribute of an opened module was when its forward read it.

    Without a name it tells of hooks: ``expected`` says whether the graph calls the forward pre-hooks and the forward
    hooks; there may be none of another kind.
    """

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
            before, behind = self.expected
            unheard = (module._forward_pre_hooks and not before) or (module._forward_hooks and not behind)
            if unheard or has_backward_hooks(module):
                raise AssumptionViolated(
                    f"a hook was registered on {self.path!r}, which this model's graph has opened, after the capture. "
                    "Register it first, and call rewrite again."
                )
            return
        found = getattr(module, self.name, _GONE)
        if found != self.expected:
            now = "it is gone" if found is _GONE else f"now it is {found!r}"
            raise AssumptionViolated(
                f"this model was captured for {self.path + '.' if self.path else ''}{self.name} == {self.expected!r}, "
                f"and {now}. Call rewrite again."
            )


@dataclass(frozen=True)
class NoGlobalHooks:
    """That no hooks are registered for all modules of the process: those of opened modules would not be called."""

    opened: str

    def check(self, model: nn.Module) -> None:
        """Raise `AssumptionViolated` if there are any."""
        if has_global_hooks():
            raise AssumptionViolated(
                "hooks were registered for all modules of the process after the capture, and modules that this model's "
                f"graph has opened ({self.opened!r}) would not call them. Remove them first."
            )


_GONE = object()


def is_plain(value: Any, depth: int = 2) -> bool:
    """Whether a value is a constant that compares by what it is: a number, a string, a tuple of such."""
    if type(value) is tuple and depth:
        return all(is_plain(v, depth - 1) for v in value)
    return type(value) in (*PLAIN, float)
