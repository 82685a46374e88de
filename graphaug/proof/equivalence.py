"""What two runs of one model have in common: the inputs to try, forwards exchanged, results that are equal."""

from __future__ import annotations

import collections
import contextlib
import decimal
import enum
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from graphaug.capture.inputs.signature import map_tensors
from graphaug.capture.recording.values.structures import held_in

THE_EXAMPLE, ANOTHER_SIZE, ANOTHER_LENGTH = "the example", "another batch size", "another sequence length"


def as_identities(modules: Iterable[nn.Module]) -> contextlib.AbstractContextManager[None]:
    """Let modules return what they are given, in this block."""
    return with_forwards((m, lambda value, *_: value) for m in modules)


@contextlib.contextmanager
def with_forwards(forwards: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Let modules run other functions in the place of their forwards, in this block."""
    before: list[tuple[nn.Module, Any]] = []
    try:
        for module, forward in forwards:
            before.append((module, vars(module).get("forward")))
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, own in reversed(before):
            if own is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = own


def quiet(module: nn.Module) -> Callable[..., Any]:
    """The call of a module; a graph's own prints what goes wrong in it, which in a comparison is an answer."""
    return functools.partial(nn.Module.__call__, module) if isinstance(module, fx.GraphModule) else module


def variants(examples: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The example, and the same at another batch size and another length: (what it is, the inputs)."""
    yield THE_EXAMPLE, dict(examples)
    tensors = tensors_in(examples)
    if any(t.layout is not torch.strided for t in tensors):  # an adjacency, which has no more or less rows
        return
    rows = {t.shape[0] for t in tensors if t.dim() > 0}
    if len(rows) == 1 and next(iter(rows)) > 0:
        yield ANOTHER_SIZE, map_tensors(lambda t: torch.cat([t, t[:1]]) if t.dim() else t, dict(examples))
    lengths = {t.shape[1] for t in tensors if t.dim() == 2 and not t.is_floating_point()}
    if len(lengths) == 1 and next(iter(lengths)) > 2:
        shorter = next(iter(lengths)) - 1

        def cut(t: Tensor) -> Tensor:
            return t[:, :shorter] if t.dim() >= 2 and t.shape[1] == shorter + 1 else t

        yield ANOTHER_LENGTH, map_tensors(cut, dict(examples))


def plain_containers(value: Any, within: tuple[int, ...] = ()) -> Any:
    """Outputs as dicts, which every pytree knows; objects by their attributes. What holds itself is held once."""
    held = None if id(value) in within else held_in(value)
    if held is None:
        return None if id(value) in within else value
    return {key: plain_containers(entry, (*within, id(value))) for key, entry in held.items()}


_VALUES = (
    *(bool, int, float, complex, str, bytes, range, enum.Enum, decimal.Decimal, np.generic),
    *(torch.dtype, torch.device, torch.layout),
)
"""Types of values that are the same where they are equal."""


def same(a: Any, b: Any, within: tuple[int, ...] = ()) -> bool:
    """Equal structures, objects by their attributes, with bit-equal tensors and arrays; NaN equals NaN."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.shape == b.shape and a.dtype == b.dtype and _bit_equal(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return bool(a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind in "fc"))
    if isinstance(a, _VALUES):
        return bool(a == b or (a != a and b != b))
    if isinstance(a, (set, frozenset)):
        return len(a) == len(b) and (a == b or any(isinstance(entry, Tensor) for entry in a))
    if isinstance(a, collections.deque):
        return same(list(a), list(b), (*within, id(a)))
    held, other = held_in(a), held_in(b)
    if held is None or other is None or id(a) in within:
        return True
    return list(held) == list(other) and all(same(held[k], other[k], (*within, id(a))) for k in held)


def _bit_equal(a: Tensor, b: Tensor) -> bool:
    if a.layout is not b.layout:
        return False
    a, b = dense(a.detach()), dense(b.detach())
    return bool(torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)) and torch.equal(a.isnan(), b.isnan()))


def dense(tensor: Tensor) -> Tensor:
    """The numbers of a tensor, also of a sparse one."""
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


def numbers_in(output: Any) -> list[Tensor]:
    """The tensors of an output that can be differentiated, complex ones as their real and imaginary parts."""
    leaves = [
        dense(t) for t in tensors_in(plain_containers(output)) if t.is_floating_point() or t.is_complex()
    ]
    return [torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in leaves]


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of a nested value."""
    return [v for v in torch.utils._pytree.tree_leaves(value) if isinstance(v, Tensor)]


def copied(value: Any) -> Any:
    """The value with its tensors copied, their gradients as they were, also in a region without."""
    return torch.utils._pytree.tree_map_only(Tensor, _copied, value)


def _copied(tensor: Tensor) -> Tensor:
    with torch.set_grad_enabled(tensor.requires_grad):
        return tensor.clone()
