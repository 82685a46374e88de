"""Rows of all processes, with gradients that flow back to the process a row came from."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def process_count() -> int:
    """How many processes train together; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if process_count() > 1 else 0


def all_rows(x: Tensor) -> Tensor:
    """The rows of every process, in the order of their ranks.

    The gradient of a row is the sum over all processes of the gradients that their losses send to it: averaged over
    the processes, as DDP does with gradients, the parameters get the gradient of the mean of the local losses.

    Args:
        x: ``(n, …)``, of one shape in all processes.

    Returns:
        ``(processes · n, …)``; ``x`` itself where there is one process.

    """
    return x if process_count() == 1 else _AllRows.apply(x)


class _AllRows(torch.autograd.Function):
    """torch's own ``all_gather`` in ``torch.distributed.nn`` needs a reduce-scatter, which not every backend has."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(process_count())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total.narrow(0, process_rank() * ctx.rows, ctx.rows)
