"""Which rows meet which: permutations within classes, nearest neighbours, means and spreads of classes, and shares."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from graphaug.augment.shapes import finest, precise
from graphaug.augment.transform import random_of
from graphaug.errors import BatchError


def check_labels(labels: Tensor | None, rows: Tensor) -> Tensor:
    """Return the labels of these rows.

    Raises:
        BatchError: there are none, or they are no integers of shape (n,).
    """
    if labels is None:
        raise BatchError(
            "Rows meet within their class, but the labels of the rows were not given: "
            "with aug.given(labels=...): aug(x)."
        )
    if labels.shape != rows.shape[:1] or labels.is_floating_point() or labels.is_complex():
        raise BatchError(
            f"Labels of {rows.shape[0]} rows are {rows.shape[0]} integers, not {labels.dtype} {tuple(labels.shape)}."
        )
    return labels


def random_partners(
    rows: Tensor, labels: Tensor | None, generator: Generator | None
) -> tuple[Tensor, Tensor]:
    """Two partners of each row: two rows of its class (of any if there are no labels), drawn uniformly.

    Each of the two is a permutation of the class; those of one row differ from each other in a class of two rows
    or more, and may be the row itself. A row that is alone in its class is its own.

    Returns:
        Indices of shape (n,), twice.
    """
    n, device = rows.shape[0], rows.device
    shuffled = torch.randperm(n, device=device, **random_of(generator))
    if labels is None:
        return shuffled, shuffled.roll(1)
    # both orders stand class by class; the second is random within each
    plain = torch.argsort(labels, stable=True)
    mixed = shuffled[torch.argsort(labels[shuffled], stable=True)]
    ordered = labels[plain]
    place = torch.arange(n, device=device)
    first = torch.searchsorted(ordered, ordered)
    last = torch.searchsorted(ordered, ordered, right=True) - 1
    following = torch.where(place == last, first, place + 1)
    back = torch.empty_like(plain).scatter_(0, plain, place)
    return mixed[back], mixed[following][back]


def nearest_partners(
    rows: Tensor, labels: Tensor | None, neighbours: int, generator: Generator | None
) -> Tensor:
    """One partner of each row: one of its nearest by Euclidean distance, of its class if there are labels.

    It is drawn uniformly from them. A row that is alone in its class is its own partner.

    Returns:
        Indices of shape (n,).
    """
    n, device = rows.shape[0], rows.device
    itself = torch.arange(n, device=device)
    if n < 2:
        return itself
    flat = precise(rows.detach()).flatten(1)
    distance = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
    barred = itself[:, None] == itself
    if labels is not None:
        barred = barred | (labels[:, None] != labels)
    nearest = distance.masked_fill(barred, math.inf).topk(min(neighbours, n - 1), largest=False).indices
    others = (~barred).sum(1).clamp(max=nearest.shape[1])
    uniform = torch.rand(n, dtype=torch.float32, device=device, **random_of(generator))
    choice = (uniform * others).long().clamp(max=nearest.shape[1] - 1)
    chosen = nearest.gather(1, choice[:, None])[:, 0]
    return torch.where(others > 0, chosen, itself)


def class_mean(rows: Tensor, labels: Tensor | None) -> Tensor:
    """The mean of each row's class, (n, …), or of all rows, (1, …), without gradient and in float32 or float64."""
    flat = precise(rows.detach())
    if labels is None:
        return flat.mean(0, keepdim=True)
    return _class_sum(flat, labels) / _class_size(labels, flat)


def class_spread(rows: Tensor, labels: Tensor | None) -> Tensor:
    """The unbiased standard deviation of every feature over each row's class, (n, …), or over all rows, (1, …).

    Without gradient. Of a single row it is 0: one row has no spread.
    """
    flat = precise(rows.detach())
    if labels is None:
        return flat.std(0, keepdim=True) if flat.shape[0] > 1 else torch.zeros_like(flat[:1])
    squares = _class_sum((flat - class_mean(rows, labels)).square(), labels)
    return (squares / (_class_size(labels, flat) - 1).clamp(min=1)).sqrt()


def _class_sum(values: Tensor, labels: Tensor) -> Tensor:
    """The sum over each row's class, by a matrix of who is of whose class: a sum by class would need their number."""
    same = (labels[:, None] == labels).to(values.dtype)
    with torch.autocast(values.device.type, enabled=False):
        return (same @ values.flatten(1)).view_as(values)


def _class_size(labels: Tensor, like: Tensor) -> Tensor:
    size = (labels[:, None] == labels).sum(1).to(like.dtype)
    return size.view(-1, *[1] * (like.dim() - 1))


def symmetric_beta(n: int, alpha: Tensor, device: torch.device, generator: Generator | None) -> Tensor:
    """Draw n numbers of Beta(alpha, alpha), in float64 where the device has it.

    By the polar method for Student's t with 2·alpha degrees of freedom (Bailey 1994), of which the symmetric Beta
    is the image ``(1 + t / sqrt(2·alpha + t²)) / 2`` (Devroye 1996): exact for every alpha > 0, without rejection,
    so of fixed shape, and alpha can change without a recompile.
    """
    radius, angle = torch.rand(2, n, dtype=finest(device), device=device, **random_of(generator))
    cosine = torch.cos(2 * math.pi * angle)
    power = torch.log(radius) / alpha.to(
        device
    )  # radius^(1/alpha) may be too small to be told from 0, or from 1
    inverse = torch.exp(power) / -torch.expm1(power)
    return (1 + cosine / torch.sqrt(inverse + cosine.square())) / 2
