"""What every value that was read off a tensor has in common: a value on the example, and a node that reads it again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import fx


class _Unknown:
    def __repr__(self) -> str:
        return "unknown"


DATA: Any = _Unknown()
"""The value of a number that depends on data: ``x.max().item()``."""


class Answers(Protocol):
    """Who answers what opened code asks of a tracked value."""

    def derived(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """The result of arithmetic, tracked again."""

    def answer(self, function: Callable[..., Any], args: tuple[Any, ...]) -> bool:
        """The result of a comparison, which the graph then relies on."""

    def ask(self, tracked: Any, verb: str) -> Any:
        """The value itself, which the graph then relies on; ``verb`` says in an error what it is needed for."""

    def attribute(self, tracked: Any, name: str) -> Any:
        """An attribute of the value."""


class Tracked:
    """Something that was read off a tensor: its value on the example, and a node that reads it in every call."""

    _answers: Answers
    _value: Any
    _make: Callable[[], fx.Node]
    _made: fx.Node | None
    _doubtful: bool = False
    """Whether the value on the example may depend on data: it is good enough to run on, and no answer to a question."""

    def _set(self, answers: Answers, value: Any, make: Callable[[], fx.Node]) -> None:
        object.__setattr__(self, "_answers", answers)
        object.__setattr__(self, "_value", value)
        object.__setattr__(self, "_make", make)
        object.__setattr__(self, "_made", None)

    def _fx_node(self) -> fx.Node:
        """The node that reads it; made when it is first needed, so that what is not needed leaves nothing behind."""
        if self._made is None:
            object.__setattr__(self, "_made", self._make())
        assert self._made is not None
        return self._made

    def _ask(self, verb: str = "needs the number in") -> Any:
        """The value itself; from here on the graph holds for that value only."""
        return self._answers.ask(self, verb)


def is_tracked(value: Any) -> bool:
    """Whether a value was read off a tensor; by its true type, since ``__class__`` answers for the value."""
    return issubclass(type(value), Tracked)


def is_unknown(value: Any) -> bool:
    """Whether a value depends on data."""
    return is_tracked(value) and (value._value is DATA or value._doubtful)


def doubtful(value: Any) -> Any:
    """The value, marked as one that may depend on data."""
    if is_tracked(value):
        object.__setattr__(value, "_doubtful", True)
    return value
