"""Objects that a forward makes, as a graph makes them: of a plain class of Python's, with the attributes they have."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from graphaug.capture.recording.values.inside import attributes_of, bases, slots_of
from graphaug.capture.recording.values.of_a_class import OfAClass

_HEAP_TYPE = 1 << 9
"""The flag of types that Python code has made."""


class Remade(OfAClass):
    """Makes objects of a class, of which `can_be_remade` is true, from their attributes."""

    def __call__(self, attributes: dict[str, Any]) -> Any:
        """An object with these attributes; no code of the class runs."""
        made: Any = object.__new__(self.cls)
        for name, value in attributes.items():
            object.__setattr__(made, name, value)
        return made


def can_be_remade(value: Any) -> bool:
    """Whether an object is nothing but a class of Python's and a dict of attributes.

    A container, a module or a tensor is more, and so is what has slots, or a class that makes its objects otherwise.
    """
    kind: Any = type(value)
    if not kind.__flags__ & _HEAP_TYPE or kind.__new__ is not object.__new__ or slots_of(value):
        return False
    return attributes_of(value) is not None and {type, nn.Module, Tensor, BaseException}.isdisjoint(
        bases(kind)
    )
