"""Random numbers that do not depend on what was drawn before them, so that two orders of a step draw the same."""

from __future__ import annotations

import contextlib
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from graphaug.torch_private import OpOverload


class OwnDraws(TorchDispatchMode):
    """In this block the n-th draw of a kind and size is the same in every run, wherever it stands.

    A sparse step draws its rows before the prefix, and noise for fewer of them, so that the generator stands elsewhere
    when the suffix draws; of draws that come before the cut and serve the suffix alone it even changes the order.
    """

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        held = [*model.parameters(), *model.buffers()]
        self.devices = sorted({t.device.index or 0 for t in held if t.device.type == "cuda"})
        self.count: Counter[str] = Counter()
        self.is_aside = False

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let what a model compiles for itself (flex attention) be compiled in this block too."""
        return True

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Draw as ever in this block, and count nothing: an augmentation draws here what the oracle is told."""
        before, self.is_aside = self.is_aside, True
        try:
            yield
        finally:
            self.is_aside = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = kwargs.get("generator") is not None  # one of the model's own
        draws = isinstance(func, OpOverload) and torch.Tag.nondeterministic_seeded in func.tags
        if self.is_aside or given or not draws:
            return func(*args, **kwargs)
        kind = repr((str(func), torch.utils._pytree.tree_map_only(Tensor, _size, (args, kwargs))))
        self.count[kind] += 1
        with torch.random.fork_rng(devices=self.devices):
            torch.manual_seed(zlib.crc32(f"{kind} {self.count[kind]}".encode()))
            return func(*args, **kwargs)


def _size(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.dtype
