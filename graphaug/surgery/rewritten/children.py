"""Children that the rewritten model and the user's model have in common: exchanged in one, they are in both.

Each has a registry of children, for the rewritten one has the augmentations besides. They are compared with what both
had when they were the same, which tells where a child was exchanged.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

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


def is_of_the_model(aug: Any, name: str) -> bool:
    """Whether setting an attribute of the rewritten model means the user's model: it is a child or attribute there."""
    parts = aug.__dict__.get("_parts")
    if parts is None or name in parts.model._modules:
        return parts is not None
    return name not in aug.__dict__ and not hasattr(type(aug), name) and hasattr(parts.model, name)
