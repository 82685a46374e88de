"""What a captured graph relies on besides its inputs: numbers, switches and hooks of opened modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from graphaug.capture.recording.hooks import has_backward_hooks, hooks_of_every_module
from graphaug.errors import AssumptionViolated

PLAIN = (bool, int, str, type(None))
ALL = "__dict__"
"""The name of what a module or an object has for attributes, as a whole."""
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


class Relied(Protocol):
    """Anything that a graph relies on."""

    def check(self, model: nn.Module) -> None:
        """Raise `AssumptionViolated` unless it still holds in the captured model."""


@dataclass(frozen=True)
class Fact:
    """What an attribute of an opened module was when its forward read it.

    Without a name it tells of hooks: ``expected`` says whether the graph calls the forward pre-hooks and the forward
    hooks; there may be none of another kind. With the name `ALL` it tells which attributes there were.
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
        if self.holds(module):
            return
        if self.name == ALL:
            changed = set(attributes_of(module)).symmetric_difference(self.expected)
            what = ", ".join(sorted(changed)) or "their order"
            raise AssumptionViolated(
                f"this model was captured before the attributes of {self.path or 'the model'} changed ({what}), which "
                "its code goes through. Call rewrite again."
            )
        found = getattr(module, self.name, ABSENT)
        gone = not hasattr(module, self.name)
        told = (is_plain(found) or gone) and not torch.compiler.is_compiling()  # which cannot tell a number
        now = repr(found) if told else f"a {type(found).__name__}"
        raise AssumptionViolated(
            f"this model was captured for {self.path + '.' if self.path else ''}{self.name} == {self.expected!r}, "
            f"and {'it is gone' if gone else f'now it is {now}'}. Call rewrite again."
        )

    def holds(self, module: nn.Module) -> bool:
        """Whether the attribute of its module is what it was."""
        if self.expected is ABSENT:
            return not hasattr(module, self.name)
        if self.name == ALL:
            return torch.compiler.is_compiling() or attributes_of(module) == self.expected
        found = getattr(module, self.name, ABSENT)
        if self.expected is None:
            return found is None
        return same(found, self.expected)


def attributes_of(module: nn.Module) -> tuple[str, ...]:
    """The names of a module's own attributes, in their order; without private ones, as torch and others set some."""
    return tuple(name for name in vars(module) if not name.startswith("_"))


@dataclass(frozen=True)
class NoGlobalHooks:
    """That no hooks are registered for all modules of the process: those of opened modules would not be called."""

    opened: str

    def check(self, model: nn.Module) -> None:
        """Raise `AssumptionViolated` if there are any."""
        if hooks_of_every_module():
            raise AssumptionViolated(
                "hooks were registered for all modules of the process after the capture, and modules that this model's "
                f"graph has opened ({self.opened!r}) would not call them. Remove them first."
            )


def is_plain(value: Any, depth: int = 2) -> bool:
    """Whether a value is a constant that compares by what it is: a number, a string, a tuple of such."""
    if type(value) is tuple and depth:
        return all(is_plain(v, depth - 1) for v in value)
    return type(value) in (*PLAIN, float)


def same(a: Any, b: Any) -> bool:
    """Whether two are equal plain values: of one type, and NaN is NaN."""
    return type(a) is type(b) and bool(a == b or (a != a and b != b))
