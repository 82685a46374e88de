"""Attributes that opened code sets on tensors: a graph's tensors do not have them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from graphaug.capture.recording.values.structures import DEPTH, entries, is_structure
from graphaug.capture.recording.values.watched import Watched


class Labels:
    """The attributes that tensors had as opened code got them; ids are names, so the tensors have to be kept."""

    def __init__(self) -> None:
        self._before: dict[int, set[str]] = {}

    def note(self, tensor: Tensor) -> None:
        """Take what a tensor has now as what it came with, if it comes for the first time."""
        self._before.setdefault(id(tensor), set(vars(tensor)))

    def check(
        self,
        value: Any,
        what: str,
        refuse: Callable[..., Exception],
        reads: Callable[[], bool] = lambda: True,
    ) -> None:
        """Refuse a value with a tensor on which an attribute was set since.

        Args:
            value: tensors in containers and objects.
            what: what is done with it, for the message.
            refuse: makes the error, of a clause and ``reason``.
            reads: whether the one who gets it may read attributes that torch does not know.

        Raises:
            CaptureError: there is one.
        """
        for tensor in _tensors(value):
            known = self._before.get(id(tensor))
            name = next((n for n in vars(tensor) if known is not None and n not in known), None)
            if name is not None and reads():
                raise refuse(
                    f"it sets an attribute, {name!r}, on a tensor that {what}",
                    reason=" A graph's tensors do not have it: return it beside the tensor, or choose a site outside "
                    "that module, so that it stays closed.",
                )


def _tensors(value: Any, depth: int = DEPTH) -> Iterator[Tensor]:
    """The tensors in a value; a dict that notes what is asked of it is an input, and nothing was set on its tensors."""
    if isinstance(value, Tensor):
        yield value
    elif depth and type(value) is not Watched and is_structure(value):
        for _, entry in entries(value):
            yield from _tensors(entry, depth - 1)
