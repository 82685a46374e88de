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

_SAMPLERS = frozenset(
    {
        *(
            "bernoulli",
            "binomial",
            "cauchy",
            "exponential",
            "geometric",
            "log_normal",
            "multinomial",
            "normal",
        ),
        *(
            "poisson",
            "rand",
            "rand_like",
            "randint",
            "randint_like",
            "randn",
            "randn_like",
            "random",
            "randperm",
        ),
        "uniform",
    }
)
"""Operations whose result is nothing but what was drawn: no dropout, and no attention with one."""


class OwnDraws(TorchDispatchMode):
    """In this block the n-th draw of a kind and size is the same in every run, wherever it stands.

    A sparse step draws its rows before the prefix, and noise for fewer of them, so that the generator stands elsewhere
    when the suffix draws; of draws that come before the cut and serve the suffix alone it even changes the order.

    Args:
        model: whose devices have generators.
        level: every draw is the same number everywhere, so that one for fewer rows is the same too.
    """

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module, *, level: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.level = level
        held = [*model.parameters(), *model.buffers()]
        self.devices = sorted({t.device.index or 0 for t in held if t.device.type == "cuda"})
        self.count: Counter[str] = Counter()
        self.sampled: Counter[str] = Counter()
        self.in_front: Counter[str] = Counter()
        self.is_aside = False

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let what a model compiles for itself (flex attention) be compiled in this block too."""
        return True

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Draw as ever in this block, and count nothing: an augmentation draws here what the oracle is told."""
        before, self.is_aside = self.is_aside, True
        self.in_front = self.sampled.copy()
        try:
            yield
        finally:
            self.is_aside = before

    def differs_in_front(self, other: OwnDraws) -> bool:
        """Whether two runs sampled other sizes, and that only in front of what was done aside last: the cut."""
        mine, theirs = self.sampled - other.sampled, other.sampled - self.sampled
        return bool(mine or theirs) and mine <= self.in_front and theirs <= other.in_front

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = kwargs.get("generator") is not None  # one of the model's own
        draws = isinstance(func, OpOverload) and torch.Tag.nondeterministic_seeded in func.tags
        if self.is_aside or given or not draws:
            return func(*args, **kwargs)
        kind = repr((str(func), torch.utils._pytree.tree_map_only(Tensor, _size, (args, kwargs))))
        self.count[kind] += 1
        name = func._schema.name.removeprefix("aten::").rstrip("_")
        self.sampled[kind] += name in _SAMPLERS  # attention without dropout samples nothing
        with torch.random.fork_rng(devices=self.devices):
            if not self.level or name not in _SAMPLERS:
                torch.manual_seed(zlib.crc32(f"{kind} {self.count[kind]}".encode()))
                return func(*args, **kwargs)
            torch.manual_seed(0)
            categories = args[0].shape[-1] if name == "multinomial" else None
            return _leveled(name, func(*args, **kwargs), categories)


def _size(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.dtype


def _leveled(name: str, drawn: Tensor, categories: int | None) -> Tensor:
    """One number in all places of what was drawn; of an order, or of categories, one after the other."""
    if name in ("randperm", "multinomial"):
        order = torch.arange(drawn.shape[-1], device=drawn.device) % (categories or drawn.shape[-1] or 1)
        return drawn.copy_(order.expand(drawn.shape))
    if drawn.is_floating_point() and name != "bernoulli":
        return drawn.fill_(0.5)
    return drawn.fill_(drawn.flatten()[0] if drawn.numel() and name.startswith("rand") else 1)
