"""What a model needs to run in the shadow: real memory for what is on the meta device, and its traced way."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_MATERIALISED = 1 << 26
"""Tensors of more numbers than this stay on the meta device."""


def with_memory(model: nn.Module, run: Callable[[], None]) -> None:
    """Call ``run`` while the model's tensors on the meta device are real ones, the very large excepted."""
    owned = [*model.named_parameters(), *model.named_buffers()]
    real = {
        f"model.{name}": _materialised(t) for name, t in owned if t.is_meta and t.numel() <= _MATERIALISED
    }
    if real:
        torch.func.functional_call(_Holder(model), real, (run,))
    else:
        run()


class _Holder(nn.Module):
    """Lets `torch.func.functional_call` put other tensors into a model while a function runs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, run: Callable[[], None]) -> None:
        run()


def _materialised(tensor: Tensor) -> Tensor:
    """A real tensor in place of one on the meta device; memory that nobody touches costs nothing."""
    if tensor.numel():  # numpy leaves its zeros to the operating system, and torch writes them
        memory = torch.from_numpy(np.zeros(tensor.numel() * tensor.element_size(), dtype=np.uint8))
        made = memory.view(tensor.dtype).reshape(tensor.shape)
    else:  # no bytes have no view as numbers
        made = torch.empty(tensor.shape, dtype=tensor.dtype)
    return nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


@contextlib.contextmanager
def as_traced() -> Iterator[list[bool]]:
    """Let transformers take the way through its masks that it takes when it is traced, as the capture did.

    It looks at a mask's numbers otherwise, to leave out one that masks nothing. The list is not empty if it asked.
    """
    asked: list[bool] = []

    def is_tracing(*_: object, **__: object) -> bool:
        asked.append(True)
        return True

    scopes = [vars(m) for name, m in list(sys.modules.items()) if name.partition(".")[0] == "transformers"]
    patched = [
        (scope, scope["is_tracing"]) for scope in scopes if inspect.isfunction(scope.get("is_tracing"))
    ]
    for scope, _ in patched:
        scope["is_tracing"] = is_tracing
    try:
        yield asked
    finally:
        for scope, before in patched:
            scope["is_tracing"] = before


def but_collectors(changes: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """All but the hooks that transformers installs when a model is first asked for hidden states.

    They hand what a module returns to whoever asked, and change nothing.
    """
    by = "transformers.utils.output_capturing"
    return ((name, value) for name, value in changes if getattr(value, "__module__", None) != by)
