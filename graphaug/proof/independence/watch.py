"""What no operation shows: hooks on gradients, and which questions about sizes are torch's own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from graphaug.capture.recording.checks import ASSERTIONS, unchecked
from graphaug.proof.independence.follow import Follow
from graphaug.proof.independence.symbols import RowCount
from graphaug.torch_private import FakeTensorMode, symbolic_operations

_HOOKS = ("register_hook", "register_post_accumulate_grad_hook")


class Watch(TorchFunctionMode):
    """Watches what no operation shows: hooks on gradients, and which questions are torch's own.

    Args:
        count: the number of rows, as a symbol.
    """

    def __init__(self, count: RowCount) -> None:
        super().__init__()
        self.count = count
        self.hooked = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in ASSERTIONS and isinstance(args[0], Tensor):
            return None  # of data that there is none of; it lets no rows meet
        name = getattr(func, "__name__", "")
        if name in _HOOKS:
            self.hooked = self.hooked or name
        if name == "__get__" and getattr(func, "__self__", None) is Tensor.grad_fn:
            self.hooked = self.hooked or "grad_fn"
        # resizing reads every size as a plain number, and uses the last ones only
        inside = self.count.kernel if name in ("interpolate", "upsample") else self.count.torch_function
        with inside():
            return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def following(follow: Follow, watch: Watch, fake: FakeTensorMode) -> Iterator[None]:
    """Let everything that runs here be followed."""
    uncounted = follow.count.suppress_guards()
    with symbolic_operations(), fake, follow, watch, uncounted, torch.enable_grad(), unchecked():
        yield
