"""A proof holds for the modules that it was made of: whether they are still the same in a later step."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from graphaug.torch_private import FSDP_MARKS

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PLAIN = (bool, int, float, str, type(None))


class Kept:
    """What the modules of a prefix were when their rows were proved independent.

    Args:
        modules: the modules.
        changed: whether they have changed already.
    """

    def __init__(self, modules: Iterable[nn.Module], changed: bool = False) -> None:
        self.changed = changed
        self.seen = [(module, _description(module), module.training) for module in dict.fromkeys(modules)]

    def holds(self) -> bool:
        """Whether nothing of them has changed: no child, hook, method or plain attribute.

        Eval mode is no change, nor are sharding's own hooks and marks. While a step is compiled nothing is
        looked at.
        """
        if torch.compiler.is_compiling():
            return True
        return not self.changed and all(
            (training or not module.training) and _description(module) == seen
            for module, seen, training in self.seen
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Kept:
        return Kept([copy.deepcopy(m, memo) for m, _, _ in self.seen], not self.holds())

    def __reduce__(self) -> tuple[Any, ...]:
        return Kept, ([m for m, _, _ in self.seen], not self.holds())


def _description(module: nn.Module) -> tuple[Any, ...]:
    """What decides about a module's forward, beside its tensors and what its attributes refer to."""
    held = vars(module)
    ours = [(k, v) for k, v in held.items() if k != "training" and k not in FSDP_MARKS]
    plain = [(k, v) for k, v in ours if isinstance(v, _PLAIN)]
    hooks = [h for name in _HOOKS for h in (held.get(name) or {}).values() if not _is_torchs(h)]
    return type(module).forward, plain, hooks, list(module._modules.items()), held.get("forward")


def _is_torchs(hook: Any) -> bool:
    """Whether torch's own code registered it: sharding and gradient reduction do."""
    return str(getattr(hook, "__module__", "")).startswith("torch.distributed")
