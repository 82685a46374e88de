"""Children that the rewritten model and the user's model have in common: exchanged in one, they are in both.

Each has a registry of children, for the rewritten one has the augmentations besides. They are compared with what both
had when they were the same, which tells where a child was exchanged.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from graphaug.capture.recording.relied.children import CONTAINERS, Children
from graphaug.capture.recording.relied.facts import Fact
from graphaug.capture.state import OF_EVERY_MODULE

_GONE: Any = object()


def child_of(aug: Any, name: str) -> nn.Module | None:
    """A child of both, as it is now."""
    own, theirs = aug.__dict__["_registry"], aug.__dict__["_parts"].model._modules
    mine, its = own.get(name), theirs[name]
    if mine is its:
        return its  # type: ignore[no-any-return]
    if torch.compiler.is_compiling():  # which must not change a registry
        return mine if its is aug.__dict__["_agreed"].get(name) else its  # type: ignore[no-any-return]
    return agree(aug).get(name)


def agree(aug: Any) -> dict[str, nn.Module | None]:
    """The registry of the rewritten model, brought to the state of the user's model, or that to its state."""
    own: dict[str, nn.Module | None] = aug.__dict__["_registry"]
    parts = aug.__dict__["_parts"]
    theirs, before, added = parts.model._modules, aug.__dict__["_agreed"], parts.added
    if len(theirs) == len(before) and all(
        theirs.get(n, _GONE) is m and own.get(n, _GONE) is m for n, m in before.items()
    ):
        return own
    for name in {**before, **theirs}.keys() - added.keys():
        was, its, mine = before.get(name, _GONE), theirs.get(name, _GONE), own.get(name, _GONE)
        followed, value = (own, its) if its is not was or mine is its else (theirs, mine)
        if value is _GONE:
            followed.pop(name, None)
        else:
            followed[name] = value
    order = [*theirs, *(name for name in own if name not in theirs)]
    if list(own) != order:  # else left as it is, for somebody may be going through it
        entries = {name: own[name] for name in order}
        own.clear()
        own.update(entries)
    before.clear()
    before.update(theirs)
    return own


def later(aug: Any) -> dict[str, nn.Module]:
    """Children that were added to the rewritten model itself."""
    known = {*aug._parts.model._modules, *aug._parts.added}
    return {name: m for name, m in aug._modules.items() if m is not None and name not in known}


def add_child(aug: Any, name: str, module: nn.Module | None) -> None:
    """Add a child, or exchange one; a child of the model is exchanged there as well."""
    model = aug._parts.model
    its_way = type(model).add_module is not nn.Module.add_module
    if name in aug._modules and not its_way:  # its name may be one that the class has an attribute of
        aug.__dict__["_modules"][name] = module
    elif its_way or is_of_the_model(aug, name, module):
        model.add_module(name, module)
    else:
        nn.Module.add_module(aug, name, module)
    agree(aug)


def is_of_the_model(aug: Any, name: str, value: Any = None) -> bool:
    """Whether setting an attribute of the rewritten model means the user's model, whose forward may ask for it.

    That is all but what every module has, what the rewritten model is made of, and new children: those are added to the
    rewritten model alone, as a projector is, unless the forward was seen to ask for them.
    """
    parts = aug.__dict__.get("_parts")
    if parts is None or name.startswith("__"):
        return False
    if name in parts.model._modules:
        return True
    if hasattr(nn.Module, name) or name in OF_EVERY_MODULE or name in aug.__dict__["_registry"]:
        return False
    if isinstance(value, nn.Module) or name in aug.__dict__ or hasattr(type(aug), name):
        return hasattr(parts.model, name) or _is_asked_for(parts, name)
    return True


def _is_asked_for(parts: Any, name: str) -> bool:
    """Whether the forward asked for what the model lacks, ``hasattr(self, "adapter")``, or went through its children.

    A container goes through them by itself: what is added to the rewritten form of one is no part of its forward.
    """
    for fact in (f for facts in parts.facts.values() for f in facts):
        if isinstance(fact, Fact) and not fact.path and fact.name == name:
            return True
        if isinstance(fact, Children) and not fact.path:
            swept = fact.names is not None and not isinstance(parts.model, CONTAINERS)
            once_there = (*fact.modules, *dict(fact.same), *dict(fact.alike))
            if swept or name in (*fact.absent, *fact.empty, *once_there):
                return True
    return False
