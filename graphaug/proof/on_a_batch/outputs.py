"""What models return, as numbers that can be compared and differentiated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphaug.errors import VerificationError
from graphaug.proof.equivalence import dense, numbers_in, plain_containers, tensors_in


def loss_of(output: Any, weights: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
    """A fixed random projection of every floating-point or complex output to one number."""
    leaves = numbers_in(output)
    if not leaves:
        raise VerificationError("the model returns no floating-point tensor to differentiate.")
    if weights is None:
        generator = torch.Generator().manual_seed(0)
        weights = [torch.randn(v.shape, generator=generator).to(v) for v in leaves]
    return torch.stack([(v * w).float().sum() for v, w in zip(leaves, weights, strict=True)]).sum(), weights


def distance(a: Any, b: Any, terms: float = 0.0) -> float:
    """Largest difference between two structures of tensors, relative to the largest entry; inf: other form.

    Entries that are not finite have to be so in both. Of terms of the size ``terms`` that cancel each other, as in the
    gradient of an attention's key bias, the rounding is left: so much is no difference.
    """
    first, second = (tensors_in(plain_containers(value)) for value in (a, b))
    if len(first) != len(second):
        # no gradient and a gradient of zeros are the same thing
        return 0.0 if not any(bool(dense(t).any()) for t in [*first, *second]) else float("inf")
    worst = 0.0
    for s, t in zip(first, second, strict=True):
        if s.shape != t.shape:
            return float("inf")
        if not (s.is_floating_point() or s.is_complex()) or s.numel() == 0:
            continue
        s, t = dense(s.detach()), dense(t.detach())
        finite = s.isfinite()
        if not torch.equal(finite, t.isfinite()):
            return float("inf")
        s, t = s[finite], t[finite]
        if s.numel() == 0:
            continue
        size = max(float(s.abs().max()), float(t.abs().max()), 1e-6)
        rounding = 8 * torch.finfo(s.dtype).eps * terms
        worst = max(worst, (float((s - t).abs().max()) - rounding) / size)
    return worst


def by_how_much(a: Any, b: Any) -> str:
    """How far two outputs are apart, in words."""
    gap = distance(a, b)
    return f" (by {gap:.2g})" if gap != float("inf") else " in its structure"


def first_tensor(value: Any) -> Tensor:
    """The first tensor in a nested value."""
    return tensors_in(plain_containers(value))[0]
