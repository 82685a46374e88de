"""The vocabulary of a captured graph: its constants, its assumptions, its marks, names of operations."""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from graphaug.capture.values import spelled

CONSTANTS = "graphaug_constants"
"""Child module of a captured model that holds what opened code refers to and no module owns."""

# `h += x` is the site "add", as it is without the equals sign
PLAIN_NAMES: dict[Any, str] = {
    getattr(operator, f"i{name}"): name
    for name in (
        *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"),
        *("and", "or", "xor"),
    )
}


@dataclass
class Assumption:
    """A fact about the inputs that opened code asked for and the captured graph relies on."""

    what: str
    expected: Any

    def __str__(self) -> str:
        return spelled(self.what, self.expected)


def mark(value: Any) -> Any:
    """The identity: marks the input or output of an opened module until surgery replaces it."""
    return value


@dataclass
class Frame:
    """A module whose forward is being captured."""

    path: str
    call: int
    ops: Counter[str]


def differentiable(t: Tensor) -> Tensor:
    """Let floating-point inputs require a gradient, as non-leaf tensors that may be changed in place."""
    return t.detach().requires_grad_(True).clone() if t.is_floating_point() else t


def tensor_names(root: nn.Module) -> dict[int, tuple[Tensor, str]]:
    """Every tensor that a module of ``root`` owns, by identity: parameters, buffers, plain attributes."""
    names: dict[int, tuple[Tensor, str]] = {}
    for path, m in root.named_modules():
        owned = (m._parameters, m._buffers, vars(m))
        for name, tensor in ((k, v) for group in owned for k, v in group.items()):
            if isinstance(tensor, Tensor):
                names.setdefault(id(tensor), (tensor, f"{path}.{name}" if path else name))
    return names
