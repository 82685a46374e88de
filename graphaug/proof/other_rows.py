"""Rows to probe a prefix with: those of the example, made different from each other or replaced."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def distinct(value: Any, dimension: int | None, generator: torch.Generator) -> Any:
    """Rows made different from each other: floating-point ones, and tokens that all rows share."""
    if not isinstance(value, Tensor) or dimension is None or not is_movable(value):
        return value
    if value.is_floating_point():
        return value + _noise(value, value.shape, generator) * value.std().nan_to_num(1.0).clamp(min=0.1)
    first = value.narrow(dimension, 0, 1)
    return _tokens(value, value.shape, generator) if torch.equal(value, first.expand_as(value)) else value


def other_row(value: Any, dimension: int | None, j: int, generator: torch.Generator) -> Any:
    """The same batch with row ``j`` replaced, by noise, by other tokens or by a mask of another length."""
    if not isinstance(value, Tensor) or dimension is None:
        return value
    changed = value.clone()
    row = changed.select(dimension, j)
    if is_mask(value):
        row.copy_(_other_mask(row))
        return changed
    if not is_movable(value):
        return value
    if value.is_floating_point():
        row.copy_(_noise(value, row.shape, generator) * 3)
    else:
        row.copy_(_tokens(value, row.shape, generator))
    return changed


def is_movable(value: Any) -> bool:
    """Whether a row can be replaced by other values: of numbers and tokens; masks are only cut shorter or filled."""
    if not isinstance(value, Tensor) or value.dtype is torch.bool or not value.numel():
        return False
    if not value.is_floating_point():
        return int(value.max()) > 1
    # an additive mask holds the lowest number there is
    return bool(value.isfinite().all()) and float(value.abs().max()) < 0.1 * torch.finfo(value.dtype).max


def is_mask(value: Any) -> bool:
    """Whether a value is of zeros and ones, with a dimension of positions."""
    if not isinstance(value, Tensor) or value.dim() < 2 or not value.numel():
        return False
    if value.dtype is torch.bool:
        return True
    whole = not (value.is_floating_point() or value.is_complex())
    return whole and int(value.min()) >= 0 and int(value.max()) == 1


def short(mask: Tensor) -> Tensor:
    """A mask without the second half of its positions."""
    shorter = mask.clone()
    shorter[..., (mask.shape[-1] + 1) // 2 :] = 0
    return shorter


def _other_mask(row: Tensor) -> Tensor:
    """A row of a mask cut short; filled, if there is nothing to cut or nothing would be left."""
    shorter = short(row)
    whole_again = torch.equal(shorter, row) or bool((row.any(-1) & ~shorter.any(-1)).any())
    return torch.ones_like(row) if whole_again else shorter


def _noise(value: Tensor, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Normal noise; without negative numbers where the example has none, as it may be under a root or a logarithm."""
    drawn = torch.randn(shape, generator=generator).to(value)
    return drawn.abs() if bool(value.min() >= 0) else drawn


def _tokens(value: Tensor, shape: torch.Size, generator: torch.Generator) -> Tensor:
    low = int(value.min()) if int(value.min()) < int(value.max()) else 1  # 0 may be a length of nothing
    return torch.randint(low, int(value.max()) + 1, shape, generator=generator).to(value)
