"""Functions that a graph calls as one node because nothing can look into them."""

from __future__ import annotations

from typing import Any


class AutogradCall:
    """``Function.apply`` of a custom autograd function, under a name that code can be generated for."""

    def __init__(self, cls: Any) -> None:
        self.cls = cls
        self.__name__ = cls.__name__
        self.__qualname__ = cls.__qualname__
        self.__module__ = cls.__module__

    def __call__(self, *args: Any) -> Any:
        """Apply the function."""
        return self.cls.apply(*args)
