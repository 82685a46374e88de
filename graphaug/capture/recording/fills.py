"""What a call of closed code fills of the containers and objects that it is handed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import Tensor

from graphaug.capture.recording.values.structures import changed_in, held_by, holders_in


class Filled(NamedTuple):
    """Something that a call has filled or changed.

    Attributes:
        holder: the container or object.
        by_tensors: whether by tensors alone, which may lie there if nothing reads them.
    """

    holder: Any
    by_tensors: bool


def holders(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    """What a call could fill of what it is given: each argument is looked into as deep as another."""
    return itertools.chain.from_iterable(map(holders_in, (*args, *kwargs.values())))


class Fills:
    """What is handed to a call, as it is before.

    Args:
        args, kwargs: of the call.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._before = [(holder, held_by(holder)) for holder in holders(args, kwargs)]

    def found(self, *, in_fakes: bool, is_watched: Callable[[Any], bool]) -> Filled | None:
        """The first that the call has filled or changed, by anything but tensors if there is one.

        Args:
            in_fakes: whether the call ran on fakes: a tensor in them is known to be another's, a number is not.
            is_watched: whether it matters that a holder has tensors it had not.
        """
        filled = [(holder, changed_in(held_by(holder), before)) for holder, before in self._before]
        changed = [(holder, all(isinstance(v, Tensor) for v in new)) for holder, new in filled if new]
        by_others = (Filled(h, False) for h, by_tensors in changed if not (in_fakes and by_tensors))
        by_tensors = (Filled(h, True) for h, _ in changed if is_watched(h))
        return next(itertools.chain(by_others, by_tensors), None)
