"""Which modules a table of sites looks into."""

from __future__ import annotations

from torch import nn

from graphaug.errors import InvalidOption
from graphaug.select.model_structure import ancestors, is_torch_leaf
from graphaug.select.stages import CONTAINERS, is_block_list


def openable(model: nn.Module, depth: int | None, everything: bool) -> list[str]:
    """Modules worth opening for a table: wrappers and those that hold lists of blocks, or all down to ``depth``."""
    if depth is not None and (type(depth) is not int or depth < 0):
        raise InvalidOption(f"depth is a number of levels, 0 or more, not {depth!r}.")
    paths = [p for p, m in model.named_modules() if list(m.children()) and not is_torch_leaf(m)]
    if everything:
        return paths
    if depth is not None:
        return [p for p in paths if (p.count(".") + 1 if p else 0) <= depth - 1]
    lists = [p for p, m in model.named_modules() if is_block_list(m)]
    return sorted({a for p in lists for a in [*ancestors(p), p]} | {"", *_wrapped(model)})


def _wrapped(model: nn.Module) -> list[str]:
    """Paths of the network inside of a wrapper, of the one inside of that, and so on.

    A wrapper holds one module with children of its own, or one that is no container and has more than half of the
    parameters: a backbone beside its projection head.
    """
    path, module, found = "", model, list[str]()
    while not is_block_list(module):
        inner = {
            name: m for name, m in module.named_children() if list(m.children()) and not is_torch_leaf(m)
        }
        half = sum(p.numel() for p in module.parameters()) / 2
        large = [
            name
            for name, m in inner.items()
            if len(inner) == 1
            or (not isinstance(m, CONTAINERS) and sum(p.numel() for p in m.parameters()) > half)
        ]
        if len(large) != 1:
            break
        path, module = f"{path}.{large[0]}".lstrip("."), inner[large[0]]
        found.append(path)
    return found
