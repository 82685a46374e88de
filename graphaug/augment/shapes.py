"""The shapes and types of rows: which dimensions are channels or positions, and what is computed in which precision."""

from __future__ import annotations

import torch
from torch import Tensor

from graphaug.errors import BatchError


def check_rows(rows: Tensor) -> None:
    """Raise ``BatchError`` unless these are rows of activations: floating-point, of rank 2 or more."""
    if rows.dim() < 2 or not rows.is_floating_point():
        raise BatchError(
            f"A transform needs floating-point rows of shape (n, features, …), "
            f"not {rows.dtype} of shape {tuple(rows.shape)}: choose another site."
        )


def channel_dim(rank: int) -> int:
    """The channels of rows of that rank: dimension 1 of N×C×H×W and above, the last of N×T×D and N×D."""
    return 1 if rank > 3 else rank - 1


def position_dims(rank: int) -> list[int]:
    """The dimensions of places or tokens: those that are neither rows nor channels."""
    return [i for i in range(1, rank) if i != channel_dim(rank)]


def along_rows(values: Tensor, rows: Tensor) -> Tensor:
    """Values of shape (n,) so that they broadcast against rows of shape (n, …)."""
    return values.view(-1, *[1] * (rows.dim() - 1))


def precise(value: Tensor) -> Tensor:
    """The value in float32 if its type is shorter, in which sums and differences would lose what they measure."""
    return value if value.dtype in (torch.float32, torch.float64) else value.float()


def draw_dtype(rows: Tensor) -> torch.dtype:
    """The type that random numbers for these rows are drawn in: float64 for float64, else float32."""
    return torch.float64 if rows.dtype == torch.float64 else torch.float32


def finest(device: torch.device) -> torch.dtype:
    """The longest type that the device has."""
    return torch.float32 if device.type == "mps" else torch.float64
