"""What the code of modules reaches by a name, and whether it is what it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from graphaug.capture.recording.relied.classes import is_of_a_package
from graphaug.capture.recording.relied.reach import found_again, reached_by
from graphaug.capture.recording.relied.reached import Reached

Packed = tuple[str, int, tuple[Any, ...] | None]
"""What `Reached.packed` gives."""
_OF_DICTS = ("item", "function")
_OF_OBJECTS = ("attribute", "method", "property")


class Reach:
    """What the code of modules reaches by a name beside their plain attributes, as it was; see `reached_by`.

    Hundreds of things are asked in every step: each by one look-up in the dict that has it, and only where that gives
    something else by `Reached.holds`. What a class has is asked of the class, once for all of its modules.
    """

    def __init__(self, modules: dict[str, nn.Module], packed: Iterable[Packed] | None) -> None:
        owner = nn.Module()  # no forward of its own: nothing but the modules is asked about
        owner._modules.update(modules)
        found = reached_by(owner, modules)
        self.strings, self.functions = found.strings, found.functions
        if packed is None:
            self.things = [thing for thing in found.things if _counts(thing, found.names)]
        else:
            self.things = list(found_again(packed, owner, modules))
        own = {cls for m in modules.values() for cls in type(m).__mro__ if cls not in (nn.Module, object)}
        self.classes = [(cls, len(vars(cls)), frozenset(vars(cls))) for cls in own]
        tensors = [t for m in modules.values() for t in (*m._parameters.values(), *m._buffers.values())]
        self.tensors = [
            (vars(t), len(vars(t)), frozenset(vars(t))) for t in tensors if t is not None and self.strings
        ]
        self.quick: list[tuple[Callable[[Any], Any], Any, Any, Reached]] = []
        self.slow: list[Reached] = []
        self.of_classes: dict[tuple[type, str], tuple[Any, Reached]] = {}
        self.held: dict[int, tuple[Any, int, list[Reached]]] = {}
        for thing in self.things:
            self._add(thing)

    def _add(self, thing: Reached) -> None:
        holder, key = thing.holder, thing.key
        held = holder if thing.kind in _OF_DICTS else getattr(holder, "__dict__", {})
        if thing.kind in ("attribute", *_OF_DICTS) and type(held) is dict and held.get(key) is thing.expected:
            self.quick.append((held.get, key, thing.expected, thing))
        elif thing.kind in _OF_OBJECTS and isinstance(holder, nn.Module) and key not in held:
            self.of_classes.setdefault((type(holder), key), (getattr(type(holder), key, None), thing))
            self.held.setdefault(id(holder), (held, len(held), []))[2].append(thing)
        else:
            self.slow.append(thing)

    def changed(self) -> str:
        """The first thing that is not what it was, as a clause."""
        for get, key, expected, thing in self.quick:
            if get(key) is not expected and not _holds(thing):
                return f"{thing.name} has changed"
        for (kind, key), (expected, thing) in self.of_classes.items():
            if getattr(kind, key, None) is not expected and not _holds(thing):
                return f"{thing.name} has changed"
        for held, count, things in self.held.values():
            if len(held) != count:  # it may have one of its own now
                for thing in things:
                    if not _holds(thing):
                        return f"{thing.name} has changed"
        for cls, count, names in self.classes:  # what was asked for by a string and was not there
            if len(vars(cls)) != count and (new := (vars(cls).keys() - names) & self.strings):
                return f"{cls.__name__} has {min(new)} now"
        for held, count, names in self.tensors:
            if len(held) != count and (new := (held.keys() - names) & self.strings):
                return f"a parameter or buffer has {min(new)} now"
        return next((f"{thing.name} has changed" for thing in self.slow if not _holds(thing)), "")

    def packed(self) -> list[Packed]:
        """What to find again in a copy."""
        return [thing.packed() for thing in self.things]


def _counts(thing: Reached, names: frozenset[str]) -> bool:
    """Whether a change of a thing may be one of the prefix: the code of its modules has the name.

    What closed code reads is not seen, and a library's configuration is written to by much that is none of the
    forward, as when a model is saved. Defaults are changed by code alone.
    """
    of_an_object = thing.kind in _OF_OBJECTS and not isinstance(thing.holder, (nn.Module, type))
    if of_an_object and (thing.key not in names or is_of_a_package(type(thing.holder).__module__)):
        return False
    return "a default of " not in thing.name and (thing.within is None or _counts(thing.within, names))


def _holds(thing: Reached) -> bool:
    """Whether a thing is what it was; a dict of tensors is a table, which is filled on the way."""
    tables = (
        thing.kind == "keys"
        and isinstance(thing.holder, dict)
        and any(isinstance(v, Tensor) for v in thing.holder.values())
    )
    return tables or thing.holds()
