"""What no operation shows: hooks on gradients, the grad mode, and which questions about sizes are torch's own."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from graphaug.capture.recording.checks import ASSERTIONS, unchecked
from graphaug.capture.regions import SETS_A_MODE
from graphaug.proof.independence.follow import Follow
from graphaug.proof.independence.symbols import RowCount
from graphaug.torch_private import FakeTensorMode, symbolic_operations

_HOOKS = ("register_hook", "register_post_accumulate_grad_hook")
_OF_THE_MODE = (Tensor.requires_grad, Tensor.is_leaf)
_TORCH = os.path.dirname(str(torch.__file__)) + os.sep
_LAYERS = os.path.dirname(str(nn.__file__)) + os.sep
_CHECKPOINTS = str(torch.utils.checkpoint.__file__)
"""In torch 2.11 its code reads `grad_fn`, to see whether there is anything to recompute."""
_COMPUTES_NOTHING = (*(function.__name__ for function in SETS_A_MODE), "register_hook")


class Watch(TorchFunctionMode):
    """Watches what no operation shows: hooks on gradients, and which questions are torch's own.

    Args:
        count: the number of rows, as a symbol.
        calls: a list for what is called, function by function, to compare two forwards; None to keep nothing.

    Attributes:
        hooked: what looks into the backward, or an empty string.
        mode: how the code asks whether there are gradients, or an empty string.
        differs: whether it then computes something else.
    """

    def __init__(self, count: RowCount, calls: list[Any] | None = None) -> None:
        super().__init__()
        self.count, self.calls = count, calls
        self.hooked = self.mode = ""
        self.differs = False
        self._numbers: dict[int, tuple[int, Tensor]] = {}

    def number(self, value: Any) -> Any:
        """A value with a number for each tensor, in the order in which they are first seen."""

        def numbered(leaf: Any) -> Any:
            if isinstance(leaf, torch.Generator):
                return "generator"
            if not isinstance(leaf, Tensor):
                return repr(leaf) if isinstance(leaf, (torch.SymInt, torch.SymFloat, float)) else leaf
            # the tensor is held on to, so that no other gets its id
            return "tensor", self._numbers.setdefault(id(leaf), (len(self._numbers), leaf))[0]

        return torch.utils._pytree.tree_map(numbered, value)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in ASSERTIONS and isinstance(args[0], Tensor):
            return None  # of data that there is none of; it lets no rows meet
        name = getattr(func, "__name__", "")
        if name in _HOOKS:
            self.hooked = self.hooked or name
        asked = getattr(func, "__self__", None) if name == "__get__" else None
        if asked is Tensor.grad_fn and sys._getframe(1).f_code.co_filename != _CHECKPOINTS:
            self.hooked = self.hooked or "grad_fn"
        if any(asked is question for question in _OF_THE_MODE) and is_asked_by_a_layer(sys._getframe(1)):
            self.mode = self.mode or str(asked.__name__)  # type: ignore[union-attr]
        # resizing reads every size as a plain number, and uses the last ones only
        resizes = name in ("interpolate", "upsample")
        with self.count.kernel() if resizes else self.count.torch_function(name):
            result = func(*args, **(kwargs or {}))
        computes = name not in _COMPUTES_NOTHING and (asked is None or isinstance(result, Tensor))
        if self.calls is not None and computes:
            self.calls.append((name, self.number((args, kwargs or {})), self.number(result)))
        return result


def is_asked_by_a_layer(frame: Any) -> bool:
    """Whether code of a module asks, and not what torch does around it (``no_grad``, checkpoints, fake tensors)."""
    file = str(frame.f_code.co_filename)
    return file.startswith(_LAYERS) or not file.startswith(_TORCH)


@contextlib.contextmanager
def _questions(watch: Watch) -> Iterator[None]:
    """Note whether code asks for the grad mode, which no mode of torch's sees."""
    ask = torch.is_grad_enabled

    def is_grad_enabled() -> bool:
        if is_asked_by_a_layer(sys._getframe(1)):
            watch.mode = watch.mode or "is_grad_enabled"
        return ask()

    torch.is_grad_enabled = is_grad_enabled
    try:
        yield
    finally:
        torch.is_grad_enabled = ask


def names_the_question(model: nn.Module) -> str:
    """ "is_grad_enabled" where a file of the modules' code has that function by itself, not as torch's."""
    names = {cls.__module__ for kind in set(map(type, model.modules())) for cls in kind.__mro__}
    files = (sys.modules.get(name) for name in names if name.partition(".")[0] != "torch")
    known = any(getattr(file, "is_grad_enabled", None) is torch.is_grad_enabled for file in files)
    return "is_grad_enabled" if known else ""


@contextlib.contextmanager
def following(follow: Follow, watch: Watch, fake: FakeTensorMode, gradients: bool = True) -> Iterator[None]:
    """Let everything that runs here be followed."""
    uncounted, mode = follow.count.suppress_guards(), torch.set_grad_enabled(gradients)
    with _questions(watch), symbolic_operations(), fake, follow, watch, uncounted, mode, unchecked():
        yield
