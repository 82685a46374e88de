"""Functions of nodes that belong to a class of the user's, under names that code can be generated for."""

from __future__ import annotations

from typing import Any


class OfAClass:
    """A callable that bears the name of a class.

    Args:
        cls: the class.
    """

    def __init__(self, cls: Any) -> None:
        self.cls = cls
        self.__name__, self.__qualname__ = cls.__name__, cls.__qualname__
        # code that is generated spells what lies in torch by its own name, which is the class
        self.__module__ = __name__ if cls.__module__.partition(".")[0] == "torch" else cls.__module__

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.cls is self.cls

    def __hash__(self) -> int:
        return hash((type(self), self.cls))
