"""Contrastive losses on two batches of embeddings."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from graphaug.errors import BatchError, InvalidOption

SUPCONTRAST_BASE_TEMPERATURE = 0.07
"""SupContrast multiplies its loss by ``temperature / 0.07``; learning rates published with it depend on that."""


def info_nce(
    z1: Tensor,
    z2: Tensor,
    temperature: float = 0.5,
    *,
    symmetric: bool = False,
    base_temperature: float | None = None,
) -> Tensor:
    """InfoNCE, Eq. 1 of the Deep Augmentation paper: anchors ``z1``, candidates the N second views.

    ``mean_i -log( exp(cos(z1_i, z2_i)/τ) / Σ_j exp(cos(z1_i, z2_j)/τ) )``

    Args:
        z1: ``(N, D)`` embeddings of the first views; normalised here.
        z2: ``(N, D)`` embeddings of the second views, row i the positive of row i.
        temperature: τ > 0, in units of cosine similarity.
        symmetric: average with the same loss with the views exchanged.
        base_temperature: if given, multiply by ``temperature / base_temperature`` (SupContrast: 0.07).

    Returns:
        A scalar in nats; ``log N`` when all similarities are equal.

    Raises:
        BatchError: the shapes differ, are not two-dimensional, or there are fewer than 2 rows.
        InvalidOption: a temperature is not a positive number.

    """
    _check(z1, z2, temperature, base_temperature)
    logits = F.normalize(z1, dim=1) @ F.normalize(z2, dim=1).T / temperature
    target = torch.arange(len(z1), device=z1.device)
    loss = F.cross_entropy(logits, target)
    if symmetric:
        loss = (loss + F.cross_entropy(logits.T, target)) / 2
    return loss * _scale(temperature, base_temperature)


def nt_xent(
    z1: Tensor, z2: Tensor, temperature: float = 0.5, *, base_temperature: float | None = None
) -> Tensor:
    """NT-Xent, Eq. 1 of SimCLR: each of the 2N rows is an anchor, the 2N-1 other rows are its candidates.

    Args:
        z1: ``(N, D)`` embeddings of the first views; normalised here.
        z2: ``(N, D)`` embeddings of the second views, row i the positive of row i.
        temperature: τ > 0, in units of cosine similarity.
        base_temperature: if given, multiply by ``temperature / base_temperature`` (SupContrast: 0.07).

    Returns:
        A scalar in nats, the mean over the 2N anchors; ``log(2N-1)`` when all similarities are equal.

    Raises:
        BatchError: the shapes differ, are not two-dimensional, or there are fewer than 2 rows.
        InvalidOption: a temperature is not a positive number.

    """
    _check(z1, z2, temperature, base_temperature)
    n = len(z1)
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    itself = torch.eye(2 * n, dtype=torch.bool, device=z.device)
    logits = (z @ z.T / temperature).masked_fill(itself, -math.inf)
    target = torch.arange(2 * n, device=z.device).roll(n)
    return F.cross_entropy(logits, target) * _scale(temperature, base_temperature)


LOSSES = {"nt_xent": nt_xent, "info_nce": info_nce}
"""The losses by the name they have on the command line."""


def _scale(temperature: float, base_temperature: float | None) -> float:
    return 1.0 if base_temperature is None else temperature / base_temperature


def _check(z1: Tensor, z2: Tensor, temperature: float, base_temperature: float | None) -> None:
    if z1.ndim != 2 or z1.shape != z2.shape:
        raise BatchError(
            f"two batches of embeddings of one shape (N, D) are needed, not {tuple(z1.shape)} and {tuple(z2.shape)}."
        )
    if len(z1) < 2:
        raise BatchError(f"{len(z1)} pair has no negatives: a contrastive loss needs at least 2 pairs.")
    for name, value in {"temperature": temperature, "base_temperature": base_temperature}.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise InvalidOption(f"{name} must be a positive number, not {value!r}.")
